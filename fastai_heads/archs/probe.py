"""One run of a network without weights: the shapes at its taps and the modules that took part."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from timm.layers.activations import GELU, GELUTanh
from torch import Tensor, nn

from fastai_heads.archs.records import TapPoint
from fastai_heads.archs.touched import Touched, touched
from fastai_heads.errors import MISFITS
from fastai_heads.modes import evaluate

__all__ = ["fits", "measure_taps", "on_meta", "ran", "reached", "stand_ins", "touched_by"]

T = TypeVar("T")
SAME_SHAPE = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.dropout._DropoutNd)
SAME_SHAPE = (*SAME_SHAPE, nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, GELU, GELUTanh)
"Layers that give back the shape that they get."
CANNOT_ON_META = (RuntimeError, NotImplementedError, TypeError, ValueError)
"What a network raises that needs the values of its tensors."


def on_meta(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
    fn: Callable[[nn.Module, Tensor], T],  # what to run
    every_layer: bool = False,  # run layers of known shapes too, as for code in which a class may be another's child
) -> T:  # what `fn` gave; its tensors have shapes and no values
    "Runs `fn(net, x)` in evaluation mode on the meta device, on real numbers where that fails."
    with evaluate(net):
        try:
            with nullcontext() if every_layer else shapes_only(net):
                return _call(net, shape, fn, "meta")
        except CANNOT_ON_META:
            return _call(net, shape, fn, next((p.device for p in net.parameters()), "cpu"))


def reached(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
    fn: Callable[[nn.Module, Tensor], Sequence[Tensor]],  # what to run
    params: Collection[str],  # names of the parameters in question
) -> frozenset[str]:  # those from which a gradient path leads to what `fn` gives
    "Find which parameters take part in what `fn` computes."
    if not params:
        return frozenset()
    with evaluate(net), torch.enable_grad():
        try:
            return _call(net, shape, lambda n, x: _with_gradient(n, fn(n, x), params), "meta", params)
        except CANNOT_ON_META:
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
    "Runs `fn` on stand-ins for the network's tensors: without values on the meta device, else on the same memory."
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    with stand_ins(net, device):
        for name, p in net.named_parameters():
            p.requires_grad_(name in wanted)
        return fn(net, torch.zeros(shape, device=device, dtype=dtype))


@contextmanager
def shapes_only(net: nn.Module) -> Iterator[None]:
    """Layers whose shapes are known do not compute them: on the meta device, where only shapes count, that is most of
    the time. A layer that gives back the shape that it gets gives back what it gets; a linear layer makes a new one."""
    quick: list[nn.Module] = []
    for m in net.modules():
        if "forward" in vars(m):
            continue
        if isinstance(m, SAME_SHAPE):
            m.forward = _same
        elif type(m) is nn.Linear:
            m.forward = _linear(m.in_features, m.out_features)
        else:
            continue
        quick.append(m)
    try:
        yield
    finally:
        for m in quick:
            del m.forward


def _same(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    return x


def _linear(n_in: int, n_out: int) -> Callable[[Tensor], Tensor]:
    def shape_of(x: Tensor) -> Tensor:
        if x.shape[-1] != n_in:
            raise RuntimeError(f"a linear layer reads {n_in} numbers and was given {x.shape[-1]}")
        return x.new_empty((*x.shape[:-1], n_out))

    return shape_of


def fits(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
) -> bool:
    "Tell whether the network takes such an input, on the meta device alone."
    with evaluate(net):
        try:
            _call(net, shape, lambda n, x: n(x) is None, "meta")
        except MISFITS:
            return False
    return True


@contextmanager
def stand_ins(net: nn.Module, device: torch.device | str) -> Iterator[None]:
    "Other tensors in every parameter and buffer, each shared one replaced once; the network's own are back after."
    memo: dict[int, Tensor] = {}
    own: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for m in net.modules():
        for tensors in (m._parameters, m._buffers):
            own += [(tensors, name, t) for name, t in tensors.items() if t is not None]
    try:
        for tensors, name, t in own:
            if id(t) not in memo:
                other = torch.empty_like(t, device=device) if device == "meta" else t.detach()
                memo[id(t)] = nn.Parameter(other, requires_grad=False) if isinstance(t, nn.Parameter) else other
            tensors[name] = memo[id(t)]
        yield
    finally:
        for tensors, name, t in own:
            tensors[name] = t


def touched_by(
    net: nn.Module,
    shape: tuple[int, ...],  # of the input, batch included
    fn: Callable[[nn.Module, Tensor], object],  # what to run
    every_layer: bool = False,  # as in `on_meta`
) -> Touched:
    "Return what `fn` calls, reads and asks for of the network."

    def follow(n: nn.Module, x: Tensor) -> Touched:
        with touched(n) as seen:
            fn(n, x)
        return seen

    return on_meta(net, shape, follow, every_layer)


@contextmanager
def ran(net: nn.Module) -> Iterator[dict[str, None]]:
    "Collects the paths of the modules whose forward is called inside, in the order in which they are first called."
    paths: dict[str, None] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda *_: paths.setdefault(path)

    handles = [m.register_forward_pre_hook(note(path)) for path, m in net.named_modules(remove_duplicate=False) if path]
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
    "Give width and stride of every tap."
    found, stride, side = [], 1, shape[-1]
    for name, module in taps:
        s = shapes[name]
        if len(s) == 4:
            stride, side = next_stride(stride, side, s[-1], shape[-1]), s[-1]
        found.append(TapPoint(name, module, s[1], stride if len(s) == 4 else None, params.get(name)))
    return tuple(found)


def next_stride(
    stride: int,  # of the map before
    before: int,  # its side
    side: int,  # of this map
    image_side: int,
) -> int:
    """Work out the stride of a map: the whole step from the map before, as 299 pixels to 8 are 37.4, but 299 → 149 → 74
    → 37 → 17 → 8 are five halvings. Where the maps are not one after another (two branches), the step is near neither
    one nor two, and the image's side counts."""
    ratio = before / side if before >= side else side / before
    if 1.2 < ratio < 1.6:
        return round(image_side / side)
    return stride * round(ratio) if before >= side else max(1, stride // round(ratio))
