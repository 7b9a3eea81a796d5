"""A cut by hooks: the network's own forward code runs, is listened to, and is stopped at the furthest tap."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn

from fastai_heads.archs.places import Enough, Place, catch
from fastai_heads.archs.probe import measure_taps, on_meta, reached, touched_by
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Measured
from fastai_heads.archs.surgery import blank, halves
from fastai_heads.errors import MISFITS, HeadsError

__all__ = ["HooksCut"]


@dataclass(frozen=True)
class HooksCut:
    "Runs the network's own forward code, listens at its modules, and stops it at the furthest tap."

    places: Mapping[str, Place]  # by the tap's name, from the image on
    by_hand: Mapping[str, Place]  # further modules that a tap may name
    classifier: tuple[str, ...]
    no_vector: str = ""  # why there is no `pre_logits`
    no_features: str = ""  # why there is no `features`
    logits: None = None
    unproved: str = ""

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Return every tap asked for, in one pass that ends at the furthest."
        places = {t: self._place(t) for t in taps if t != INPUT}  # the body has it already
        found: dict[str, Tensor] = {}

        def take(tap: str, value: Tensor) -> None:
            last = found.keys() | {tap} >= places.keys()
            found[tap] = places[tap].seen(
                value if last else value.clone(), x.shape
            )  # later code may change it in place
            if last:
                raise Enough

        if places:
            with catch(net, places, take), suppress(Enough):
                net(x)
        return found

    def _place(self, tap: str) -> Place:
        return self.places.get(tap) or self.by_hand[tap]

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Measure channels and strides of all taps; find which modules a map needs and which only the vector needs."
        every = (*self.places, *(t for t in self.by_hand if t not in self.places))
        shapes = on_meta(net, shape, lambda n, x: {k: v.shape for k, v in self.run(n, x, every).items()}, True)
        taps = tuple((t, str(place)) for t, place in self.places.items())
        maps = self._uses(net, shape, (FEATURES,)) if FEATURES in self.places else frozenset()
        both = self._uses(net, shape, (PRE_LOGITS,)) if PRE_LOGITS in self.places else maps
        hand = (t for t in every if t not in self.places and t in shapes)
        by_hand = tuple(p for t in hand for p in measure_taps(((t, str(self._place(t))),), shapes, shape, {}))
        return Measured(measure_taps(taps, shapes, shape, {}), maps, both - maps, by_hand)

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...],
              careful: bool = False) -> None:  # fmt: skip
        "Take off, in place, all that the taps do not need, and freeze what runs beside the way to them."
        taps = tuple(t for t in taps if t != INPUT)
        used = self._uses(net, shape, taps, careful) if taps else frozenset()
        blank(net, used, measured.map_modules | measured.head_modules | set(self.classifier))
        every = [k for k, _ in net.named_parameters()]
        live = reached(net, shape, lambda n, x: self._in_both_modes(n, x, taps), every)
        for name, p in net.named_parameters():
            if name not in live:
                p.requires_grad_(False)

    def _uses(
        self, net: nn.Module, shape: tuple[int, ...], taps: tuple[str, ...], careful: bool = False
    ) -> frozenset[str]:
        "Return what the code calls and reads on its way; not the module at which it is stopped."
        order: list[str] = []
        seen = touched_by(net, shape, lambda n, x: self._in_both_modes(n, x, taps, order), True)
        used = frozenset(seen.used | seen.asked if careful else seen.used)
        end = self._place(order[-1])
        stopped = end.before and end.call == 0 and not any(path.startswith(f"{end.path}.") for path in used)
        return used - {end.path} if stopped else used

    def _in_both_modes(
        self, net: nn.Module, x: Tensor, taps: tuple[str, ...], order: list[str] | None = None
    ) -> list[Tensor]:
        "Run to the taps, and once more in training, where other layers may run; not on numbers, as norms count them."
        found = [self.run(net, x, taps)]
        if x.is_meta:
            net.train()
            with suppress(*MISFITS):
                found.append(self.run(net, x, taps))
            net.eval()
        if order is not None:
            order.extend(found[0])
        return [t for taps in found for t in taps.values()]

    def add_checkpoints(self, net: nn.Module) -> "HooksCut":
        "Refuse it for a network whose forward code is not known."
        raise HeadsError(f"`grad_checkpointing`: {type(net).__name__} has no row and is run as it is.")

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "Split the parameters in two groups, early and late, in the network's order."
        by_depth = [list(m.parameters(recurse=False)) for m in net.modules()]
        by_depth = [ps for ps in by_depth if ps]
        return halves(by_depth, (len(by_depth) + 1) // 2)
