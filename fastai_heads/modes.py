"""How a network is run for a look, so that nothing of it has changed afterwards; what becomes of a compiled one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.torch_core import get_model, get_random_states, set_random_states
from torch import Tensor, nn

__all__ = ["compile_in_place", "evaluate", "keep_buffers", "same_random"]


@contextmanager
def same_random() -> Iterator[None]:
    "Put the state of every random generator back after an error: what is refused leaves no trace. It decorates, too."
    before = get_random_states()
    try:
        yield
    except Exception:
        set_random_states(**before)
        raise


def compile_in_place(
    model: nn.Module,  # (body, heads), perhaps compiled by `torch.compile(model)`, perhaps in a `DataParallel`
) -> nn.Module:  # the same without torch's wrapper, as `model.compile()` would have it
    """Return the network that still answers `model[0]`, whose files have the names that they had, and that runs
    compiled. A wrapper for several devices stays, as it does something of its own."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        inner = compile_in_place(inner)
        inner._compiled_call_impl = model.dynamo_ctx(inner._call_impl)
        return inner
    if get_model(model) is not model:
        model.module = compile_in_place(model.module)
    return model


@contextmanager
def evaluate(
    *modules: nn.Module,  # bodies, trunks, whole models
) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients, and every part of them back into its own mode.

    What is compiled runs as it is written: it is not compiled anew for a look. Parts that cache something in evaluation
    clear it when they are told to train, and are told so at the end."""
    modes = {part: part.training for module in modules for part in module.modules()}
    compiled = {m: call for m in modes if (call := vars(m).get("_compiled_call_impl")) is not None}
    for module in compiled:
        module._compiled_call_impl = None
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in modules:
            module.train()
        for part, training in modes.items():
            part.training = training
        for module, call in compiled.items():
            module._compiled_call_impl = call


@contextmanager
def keep_buffers(
    network: nn.Module,
    device: torch.device,  # where it is to stand for a while
) -> Iterator[None]:
    "Put a network on a device, and afterwards every buffer back to what it was, where it was."
    held = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if isinstance(buffer, Tensor) and not nn.parameter.is_lazy(buffer)
    ]
    home = next(network.parameters()).device
    if home != device:
        network.to(device)
    try:
        yield
    finally:
        if home != device:
            network.to(home)
        for module, name, buffer, before in held:
            module._buffers[name] = buffer.copy_(before)
