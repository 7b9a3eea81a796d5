"""Cutting a network that no row knows: run once, its classifier and last map found, and the cut proved on the spot."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastai_heads.archs.probe import measure_taps, on_meta, paused, unspoken
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Measured
from fastai_heads.archs.surgery import blank, halves
from fastai_heads.errors import HeadsError

__all__ = ["HooksCut", "trace"]

SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384)
"Sides of the image that are tried, in this order."


class _Enough(Exception):
    "Ends a forward pass at the furthest tap."


@dataclass(frozen=True)
class HooksCut:
    "Runs the network's own forward code, listens at its modules, and stops it at the furthest tap."

    places: Mapping[str, str]  # module whose output is the tap, by the tap's name
    vector: str  # module whose input is `pre_logits`; '' without one
    by_hand: frozenset[str]  # further modules that a tap may name
    classifier: tuple[str, ...]
    no_vector: str = ""  # why there is no `pre_logits`
    no_features: str = ""  # why there is no `features`
    logits: None = None
    unproved: str = ""

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Every tap asked for, in one pass that ends at the furthest."
        found: dict[str, Tensor] = {}
        taps = tuple(t for t in taps if t != INPUT)  # the body has it already
        inner = [t for t in taps if t != PRE_LOGITS]
        if not taps:
            return found
        handles = [net.get_submodule(self._place(t)).register_forward_hook(_keep(found, t, taps)) for t in inner]
        if PRE_LOGITS in taps:
            reader = net.get_submodule(self.vector)
            handles.append(reader.register_forward_pre_hook(_keep_input(found, taps)))
        try:
            net(x)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _place(self, tap: str) -> str:
        return self.places.get(tap, tap)

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Channels and strides of all taps; which modules a map needs and which only the vector needs."
        listed = (*self.places, *((PRE_LOGITS,) if self.vector else ()))
        every = (*listed, *sorted(self.by_hand - set(listed)))
        shapes = on_meta(net, shape, lambda n, x: {k: v.shape for k, v in self.run(n, x, every).items()})
        taps = tuple((t, self._place(t) if t != PRE_LOGITS else f"input of {self.vector}") for t in listed)
        maps = self._uses(net, shape, (FEATURES,)) if FEATURES in self.places else frozenset()
        both = self._uses(net, shape, (PRE_LOGITS,)) if self.vector else maps
        by_hand = tuple(p for t in every if t not in listed for p in measure_taps(((t, t),), shapes, shape, {}))
        return Measured(measure_taps(taps, shapes, shape, {}), maps, both - maps, by_hand)

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...]) -> None:
        "Takes off, in place, all that the taps do not need."
        taps = tuple(t for t in taps if t == PRE_LOGITS or t in self.places or t in self.by_hand)
        used = self._uses(net, shape, taps) if taps else frozenset()
        blank(net, used, measured.map_modules | measured.head_modules | set(self.classifier))

    def _uses(self, net: nn.Module, shape: tuple[int, ...], taps: tuple[str, ...]) -> frozenset[str]:
        used = unspoken(net, shape, lambda n, x: list(self.run(n, x, taps).values()), self.classifier)
        return used - set(self.classifier)  # it is called, and stopped there

    def add_checkpoints(self, net: nn.Module) -> "HooksCut":
        "Not to be had for a network whose forward code is not known."
        raise HeadsError(f"`grad_checkpointing`: {type(net).__name__} has no row and is run as it is.")

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "The parameters in two groups, early and late, in the network's order."
        by_depth = [list(m.parameters(recurse=False)) for m in net.modules()]
        by_depth = [ps for ps in by_depth if ps]
        return halves(by_depth, (len(by_depth) + 1) // 2)


def _keep(found: dict[str, Tensor], tap: str, taps: tuple[str, ...]):
    def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
        last = set(found) | {tap} >= set(taps)
        found[tap] = out if last else out.clone()  # later code may change it in place
        if last:
            raise _Enough

    return hook


def _keep_input(found: dict[str, Tensor], taps: tuple[str, ...]):
    def hook(module: nn.Module, args: tuple) -> None:
        found[PRE_LOGITS] = args[0]
        if set(found) >= set(taps):
            raise _Enough

    return hook


@dataclass
class _Seen:
    "What one run showed."

    out: object  # what the network gave
    calls: dict[str, int] = field(default_factory=dict)  # how often each module ran
    gave: dict[str, object] = field(default_factory=dict)  # what each module gave, in the order of their ends
    took: dict[str, tuple] = field(default_factory=dict)  # what each module was given


def trace(
    net: nn.Module,
    n_in: int,  # channels of the image
    name: str,  # for messages
) -> tuple[HooksCut, int]:  # how to cut it, and a side of the image that it takes
    """Runs the network once and finds its taps. The classifier is the last linear layer, if it gives the network's own
    output, bit for bit; otherwise nothing is claimed, and only modules named by hand are taps."""
    seen, side = _run_once(net, n_in, name)
    maps = {p: t.shape for p, t in seen.gave.items() if seen.calls[p] == 1 and _is_map(t)}
    by_hand = frozenset(p for p, t in seen.gave.items() if seen.calls[p] == 1 and _tappable(t))
    classifier = _classifier(net, seen)
    features = _last_map(net, seen, maps, classifier)
    if features is None or (classifier is None and not _is_map(seen.out)):
        why = _unproved(seen, name)
        places = {path: path for path in _levels(maps, "")}
        return HooksCut(places, "", by_hand, (), no_vector=why, no_features=why), side
    places = {path: path for path in _levels(maps, features)} | {FEATURES: features}
    why = "" if classifier else "it gives a map and has no classifier"
    return HooksCut(places, classifier or "", by_hand, (classifier,) if classifier else (), why), side


def _unproved(seen: _Seen, name: str) -> str:
    gave = f"a {type(seen.out).__name__}" if not isinstance(seen.out, Tensor) else f"a tensor {tuple(seen.out.shape)}"
    return (
        f"the cut of {name} could not be proved: it gives {gave}, and no linear layer gives just that from a vector "
        f"after a last map. Modules seen: {_listed(seen)}. Name the modules to tap by hand, "
        f"taps=('{_example(seen)}',), register a row with `register_arch`, "
        "or wrap it in a module that gives its last map"
    )


def _example(seen: _Seen) -> str:
    return next((p for p in reversed(seen.gave) if _is_map(seen.gave[p])), "layer4")


def _run_once(net: nn.Module, n_in: int, name: str) -> tuple[_Seen, int]:
    p = next(net.parameters(), torch.empty(0))
    if any(isinstance(m, nn.Conv3d) for m in net.modules()):
        raise HeadsError(
            f"`arch`: {name} has convolutions in three dimensions: it takes clips, and a body takes images."
        )
    failures = []
    for side in SIDES:
        x = torch.rand(2, n_in, side, side, device=p.device, dtype=p.dtype)
        try:
            with torch.no_grad(), paused(net), _listening(net) as seen:
                seen.out = net(x)
            return seen, side
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as e:
            failures.append(f"{side}: {str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__}")
    raise HeadsError(
        f"`arch`: {name} takes no batch of images (2, {n_in}, side, side). Sides tried: {'; '.join(failures[:3])}."
    )


@contextmanager
def _listening(net: nn.Module) -> Iterator[_Seen]:
    seen = _Seen(None)

    def listen(path: str):
        def hook(module: nn.Module, args: tuple, out: object) -> None:
            seen.calls[path] = seen.calls.get(path, 0) + 1
            seen.gave.pop(path, None)  # so that the order is the one of the ends
            seen.gave[path], seen.took[path] = out, args

        return hook

    handles = [m.register_forward_hook(listen(path)) for path, m in net.named_modules() if path]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_map(t: object) -> bool:
    return isinstance(t, Tensor) and t.ndim == 4 and t.is_floating_point() and t.shape[-1] > 1


def _tappable(t: object) -> bool:
    return isinstance(t, Tensor) and t.ndim in (2, 4) and t.is_floating_point()


def _classifier(net: nn.Module, seen: _Seen) -> str | None:
    for path in reversed(seen.gave):
        layer, out = net.get_submodule(path), seen.gave[path]
        if not isinstance(layer, nn.Linear) or seen.calls[path] > 1:
            continue
        vector = seen.took[path][0] if seen.took[path] else None
        same = isinstance(seen.out, Tensor) and out.shape == seen.out.shape and torch.equal(out, seen.out)
        return path if same and isinstance(vector, Tensor) and vector.ndim == 2 else None
    return None


def _last_map(net: nn.Module, seen: _Seen, maps: Mapping[str, torch.Size], classifier: str | None) -> str | None:
    "The last map, provided that most trained layers run before it: a ViT's patches are no last map."
    if not maps:
        return None
    path = list(maps)[-1]
    order = [p for p in seen.gave if p == path or (p != classifier and _trained(net.get_submodule(p)))]
    return path if 2 * order.index(path) >= len(order) - 1 else None


def _trained(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _levels(maps: Mapping[str, torch.Size], features: str) -> list[str]:
    "The last module at each resolution."
    ordered = [(p, s) for p, s in maps.items()]
    ends = [p for (p, s), (_, after) in pairwise(ordered) if s[-1] != after[-1]]
    return list(dict.fromkeys([*ends, features or next(reversed(maps), "")])) if maps else []


def _listed(seen: _Seen) -> str:
    names = [p for p in seen.gave if "." not in p]
    return ", ".join(names[:12]) or "no modules"
