"""How a network is run so that nothing of it has changed afterwards, and what is done with one that is compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.torch_core import get_model
from torch import Tensor, nn

__all__ = ["compiled_in_place", "evaluating", "in_eval", "unchanged"]


def compiled_in_place(
    model: nn.Module,  # (body, heads), perhaps compiled by `torch.compile(model)`, perhaps in a `DataParallel`
) -> nn.Module:  # the same without torch's wrapper, as `model.compile()` would have it
    """The network that still answers `model[0]`, whose files have the names that they had, and that runs compiled. A
    wrapper for several devices stays, as it does something of its own."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        inner = compiled_in_place(inner)
        inner._compiled_call_impl = model.dynamo_ctx(inner._call_impl)
        return inner
    if get_model(model) is not model:
        model.module = compiled_in_place(model.module)
    return model


@torch.no_grad()
def in_eval(
    module: nn.Module,  # a body, a trunk, or a whole model
    *inputs: Tensor,  # what it takes
) -> Any:
    """The module's output in evaluation mode; its mode is back afterwards, no statistic has moved. For one look it runs
    on one device, and is not compiled anew."""
    module = get_model(module)
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    with evaluating(module):
        return module.forward(*inputs) if compiled else module(*inputs)


@contextmanager
def evaluating(
    module: nn.Module,  # a body, a trunk, or a whole model
) -> Iterator[None]:
    "The module in evaluation mode; afterwards each of its parts is in the mode that it was in."
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


@contextmanager
def unchanged(
    network: nn.Module,
    device: torch.device,  # where it is to stand for a while
) -> Iterator[None]:
    "The network on a device; afterwards every buffer is what it was, where it was."
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
