"""One run of a network without weights: the shapes at its taps and the modules that took part."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastai_heads.archs.records import TapPoint

__all__ = ["measure_taps", "on_meta", "paused", "ran", "reached"]

T = TypeVar("T")


class _Call(nn.Module):
    "A function of (net, x) as a module, so that `functional_call` can give it other tensors."

    def __init__(self, net: nn.Module, fn: Callable[[nn.Module, Tensor], T]):
        super().__init__()
        self.net, self.fn = net, fn

    def forward(self, x: Tensor) -> T:
        return self.fn(self.net, x)


def on_meta(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
    fn: Callable[[nn.Module, Tensor], T],  # what to run
) -> T:  # what `fn` gave; its tensors have shapes and no values
    "Runs `fn(net, x)` in evaluation mode on the meta device, on real numbers where that fails."
    with torch.no_grad(), paused(net):
        try:
            return _call(net, shape, fn, "meta")
        except (RuntimeError, NotImplementedError, TypeError):
            return _call(net, shape, fn, next((p.device for p in net.parameters()), "cpu"))


def reached(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
    fn: Callable[[nn.Module, Tensor], Sequence[Tensor]],  # what to run
    params: Collection[str],  # names of the parameters in question
) -> frozenset[str]:  # those from which a gradient path leads to what `fn` gives
    "Which parameters take part in what `fn` computes."
    if not params:
        return frozenset()
    with paused(net):
        try:
            return _call(net, shape, lambda n, x: _with_gradient(n, fn(n, x), params), "meta", params)
        except (RuntimeError, NotImplementedError, TypeError):
            device = next(p.device for p in net.parameters())
            return _call(net, shape, lambda n, x: _with_gradient(n, fn(n, x), params), device, params)


def _with_gradient(net: nn.Module, outs: Sequence[Tensor], params: Collection[str]) -> frozenset[str]:
    outs = [o for o in outs if o.requires_grad]
    if not outs:
        return frozenset()
    inside = {k: p for k, p in net.named_parameters() if k in params}
    grads = torch.autograd.grad(sum(o.float().sum() for o in outs), list(inside.values()), allow_unused=True)
    return frozenset(k for k, g in zip(inside, grads) if g is not None)


def _call(
    net: nn.Module,
    shape: tuple[int, ...],
    fn: Callable[[nn.Module, Tensor], T],
    device: torch.device | str,
    wanted: Collection[str] = (),  # parameters that require a gradient
) -> T:
    "Runs `fn` on stand-ins for the network's tensors: without values on the meta device, else the same memory."
    call = _Call(net, fn)
    tensors = {**dict(call.named_parameters()), **dict(call.named_buffers())}
    stand_ins = {k: torch.empty_like(t, device=device) if device == "meta" else t.detach() for k, t in tensors.items()}
    for name in wanted:
        stand_ins[f"net.{name}"].requires_grad_()
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    x = torch.zeros(shape, device=device, dtype=dtype)
    return torch.func.functional_call(call, stand_ins, (x,))


@contextmanager
def paused(net: nn.Module) -> Iterator[None]:
    "Evaluation mode inside, every module's own mode after."
    modes = {m: m.training for m in net.modules()}
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)  # modules that cache in evaluation mode clear that cache here
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def ran(net: nn.Module) -> Iterator[dict[str, None]]:
    "Collects the paths of the modules whose forward is called inside, in the order in which they are first called."
    paths: dict[str, None] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda *_: paths.setdefault(path)

    handles = [m.register_forward_pre_hook(note(path)) for path, m in net.named_modules() if path]
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


def measure_taps(
    taps: tuple[tuple[str, str], ...],  # (name, module) from the image on
    shapes: Mapping[str, tuple[int, ...]],  # shape at each tap
    shape: tuple[int, ...],  # of the input, batch included
    params: Mapping[str, int],  # numbers in the body that ends at a tap, where known
) -> tuple[TapPoint, ...]:
    """Width and stride of every tap. A stride is the product of the whole steps from tap to tap: 299 pixels to
    8 are 37.4, but 299 → 149 → 74 → 37 → 17 → 8 are five halvings."""
    found, stride, side = [], 1.0, shape[-1]
    for name, module in taps:
        s = shapes[name]
        if len(s) == 4:
            stride, side = stride * _ratio(side, s[-1]), s[-1]
        found.append(TapPoint(name, module, s[1], round(stride) if len(s) == 4 else None, params.get(name)))
    return tuple(found)


def _ratio(side: int, map_side: int) -> float:
    return float(round(side / map_side)) if side >= map_side else 1 / round(map_side / side)
