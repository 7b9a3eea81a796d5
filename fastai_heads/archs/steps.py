"""A network as a straight list of named steps: how a family's own forward code reads, as data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastai_heads.archs.probe import measure_taps, on_meta
from fastai_heads.archs.records import FEATURES, PRE_LOGITS, Measured
from fastai_heads.archs.surgery import get_path, halves, keep_only

__all__ = ["Step", "StepsCut", "flatten", "step"]


@dataclass(frozen=True)
class Step:
    "One call of the arch's forward code."

    run: str | Callable[[nn.Module, Tensor], Tensor]  # path of a module, or a function of (net, x)
    taps: tuple[str, ...] = ()  # names under which a head may read its output
    uses: tuple[str, ...] = ()  # paths of what a function reads from the net
    seen: Callable[[nn.Module, Tensor], Tensor] | None = None  # how a head sees the output; None: as it is

    @property
    def paths(self) -> tuple[str, ...]:
        "Everything in the net that this step needs."
        return (self.run,) if isinstance(self.run, str) else self.uses

    @property
    def label(self) -> str:
        "How a person reads it."
        return self.run if isinstance(self.run, str) else self.run.__name__


def step(
    run: str | Callable[[nn.Module, Tensor], Tensor],  # path of a module, or a function of (net, x)
    *taps: str,  # names under which a head may read its output
    uses: tuple[str, ...] = (),  # paths of what a function reads from the net
    seen: Callable[[nn.Module, Tensor], Tensor] | None = None,  # how a head sees the output, as a map (B, C, H, W)
) -> Step:
    "A `Step`, short enough that a family's row can be read."
    return Step(run, taps, uses, seen)


def flatten(net: nn.Module, x: Tensor) -> Tensor:
    "The functional `torch.flatten(x, 1)` before a classifier."
    return torch.flatten(x, 1)


@dataclass(frozen=True)
class StepsCut:
    "Follows a network step by step as far as the furthest tap."

    steps: tuple[Step, ...]  # from the image to the vector that the classifier reads
    classifier: tuple[str, ...]  # paths of what reads that vector
    late: str = ""  # the step that opens the late parameter group; '' halves the depth
    no_vector: str = ""  # why there is no `pre_logits`, where there is none

    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None  # how the taps make them without that
    unproved: str = ""  # why no tap gives the logits, where none does
    checkpoint: bool = False  # whether a step's activations are computed again in the backward pass

    def taps(self, net: nn.Module) -> tuple[tuple[str, str], ...]:
        "(name, module) of every tap, from the image on."
        return tuple((tap, s.label) for s in self.steps for tap in s.taps)

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Every tap asked for, in one pass that ends at the furthest."
        found = {}
        for s in self._upto(taps):
            x = self._call(net, s, x)
            wanted = [tap for tap in s.taps if tap in taps]
            if wanted:
                found.update(dict.fromkeys(wanted, s.seen(net, x) if s.seen else x))
        return found

    def _call(self, net: nn.Module, s: Step, x: Tensor) -> Tensor:
        if not isinstance(s.run, str):
            return s.run(net, x)
        module = net.get_submodule(s.run)
        if self.checkpoint and torch.is_grad_enabled() and any(True for _ in module.children()):
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def checkpointed(self, net: nn.Module) -> "StepsCut":
        "The same, computing the activations of every step that has layers within again in the backward pass."
        return replace(self, checkpoint=True)

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Channels and strides of all taps; which modules a map needs and which only the vector needs."
        taps = self.taps(net)
        names = tuple(name for name, _ in taps)
        shapes = self._shapes(net, shape, names)
        if (
            min((s[-1] for s in shapes.values() if len(s) == 4), default=2) == 1
        ):  # a stride of more pixels than there are
            shape = (*shape[:2], 4 * shape[2], 4 * shape[3])
            shapes = self._shapes(net, shape, names)
        params = {name: sum(p.numel() for p in self._params_upto(net, name)) for name in names}
        maps, both = (_below(net, self._needs(t)) for t in ((FEATURES,), (FEATURES, PRE_LOGITS)))
        return Measured(measure_taps(taps, shapes, shape, params), maps, both - maps)

    def _shapes(self, net: nn.Module, shape: tuple[int, ...], names: tuple[str, ...]) -> dict[str, torch.Size]:
        return on_meta(net, shape, lambda n, x: {k: v.shape for k, v in self.run(n, x, names).items()})

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...],
              careful: bool = False) -> None:  # fmt: skip
        "Takes off, in place, all that the taps do not need."
        keep_only(net, self._needs(taps))

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "The parameters in two groups, early and late."
        by_step = [list(_parameters(net, s)) for s in self.steps]
        late = next((i for i, s in enumerate(self.steps) if self.late in s.paths), len(self.steps))
        return halves(by_step, late)

    def _upto(self, taps: tuple[str, ...]) -> tuple[Step, ...]:
        last = max((i for i, s in enumerate(self.steps) if set(s.taps) & set(taps)), default=-1)
        return self.steps[: last + 1]

    def _params_upto(self, net: nn.Module, tap: str) -> Iterator[nn.Parameter]:
        for s in self._upto((tap,)):
            yield from _parameters(net, s)

    def _needs(self, taps: tuple[str, ...]) -> frozenset[str]:
        return frozenset(p for s in self._upto(taps) for p in s.paths)


def _below(net: nn.Module, paths: frozenset[str]) -> frozenset[str]:
    "The paths and all those below them."
    return paths | {k for k, _ in net.named_modules() if any(k.startswith(f"{p}.") for p in paths)}


def _parameters(net: nn.Module, s: Step) -> Iterator[nn.Parameter]:
    for path in s.paths:
        found = get_path(net, path)
        if isinstance(found, nn.Parameter):
            yield found
        elif found is not None:
            yield from found.parameters()
