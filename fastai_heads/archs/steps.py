"""A network as a straight list of named steps. The list is the family's own forward code, as data."""

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
    uses: tuple[str, ...] = ()  # paths of everything that a function reads from the net
    seen: Callable[[nn.Module, Tensor], Tensor] | None = None  # makes what a head sees; None: the output itself

    @property
    def paths(self) -> tuple[str, ...]:
        "Everything in the net that this step needs."
        return (self.run,) if isinstance(self.run, str) else self.uses

    @property
    def label(self) -> str:
        "Its name for people."
        return self.run if isinstance(self.run, str) else self.run.__name__


def step(
    run: str | Callable[[nn.Module, Tensor], Tensor],  # path of a module, or a function of (net, x)
    *taps: str,  # names under which a head may read its output
    uses: tuple[str, ...] = (),  # paths of everything that a function reads from the net
    seen: Callable[[nn.Module, Tensor], Tensor] | None = None,  # makes what a head sees, a map (B, C, H, W)
) -> Step:
    "Make a `Step`. The name is short, so that a family's row is easy to read."
    return Step(run, taps, uses, seen)


def flatten(net: nn.Module, x: Tensor) -> Tensor:
    "Call `torch.flatten(x, 1)`, as networks do before a classifier."
    return torch.flatten(x, 1)


@dataclass(frozen=True)
class StepsCut:
    "Follows a network step by step as far as the furthest tap."

    steps: tuple[Step, ...]  # from the image to the vector that the classifier reads
    classifier: tuple[str, ...]  # paths of the layers that read that vector
    late: str = ""  # the first step of the late parameter group; '' cuts the depth in halves
    no_vector: str = ""  # the reason, if there is no `pre_logits`
    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None  # (net, taps) → logits without `pre_logits`
    unproved: str = ""  # the reason, if no tap gives the logits
    checkpoint: bool = False  # compute a step's activations again in the backward pass

    def taps(self, net: nn.Module) -> tuple[tuple[str, str], ...]:
        "List (name, module) of every tap, from the image on."
        return tuple((tap, s.label) for s in self.steps for tap in s.taps)

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Compute the chosen taps in one pass, which ends at the furthest of them."
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

    def add_checkpoints(self, net: nn.Module) -> "StepsCut":
        """Return the same cut, which computes activations again in the backward pass: those of every step with layers
        inside."""
        return replace(self, checkpoint=True)

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        """Measure channels and strides of all taps. Find the modules that a map needs, and those that only the vector
        needs."""
        taps = self.taps(net)
        names = tuple(name for name, _ in taps)
        shapes = self._shapes(net, shape, names)
        # a map of one cell may have a stride of more pixels than the image has
        if min((s[-1] for s in shapes.values() if len(s) == 4), default=2) == 1:
            shape = (*shape[:2], 4 * shape[2], 4 * shape[3])
            shapes = self._shapes(net, shape, names)
        params = {name: sum(p.numel() for p in self._params_upto(net, name)) for name in names}
        maps, both = (_below(net, self._needs(t)) for t in ((FEATURES,), (FEATURES, PRE_LOGITS)))
        return Measured(measure_taps(taps, shapes, shape, params), maps, both - maps)

    def _shapes(self, net: nn.Module, shape: tuple[int, ...], names: tuple[str, ...]) -> dict[str, torch.Size]:
        return on_meta(net, shape, lambda n, x: {k: v.shape for k, v in self.run(n, x, names).items()})

    def prune(
        self,
        net: nn.Module,
        taps: tuple[str, ...],
        measured: Measured,
        shape: tuple[int, ...],
        careful: bool = False,
    ) -> None:
        "Take off, in place, all that the taps do not need."
        keep_only(net, self._needs(taps))

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "Split the parameters into two groups, early and late."
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
    "Add all paths below the given ones."
    return paths | {k for k, _ in net.named_modules() if any(k.startswith(f"{p}.") for p in paths)}


def _parameters(net: nn.Module, s: Step) -> Iterator[nn.Parameter]:
    for path in s.paths:
        found = get_path(net, path)
        if isinstance(found, nn.Parameter):
            yield found
        elif found is not None:
            yield from found.parameters()
