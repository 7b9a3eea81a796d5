"""The heads of a network, the trunks they share, and both behind a body."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastai_heads.archs.records import Level
from fastai_heads.body import Body
from fastai_heads.errors import HeadsError, unknown
from fastai_heads.heads.levels import LevelFrom, PyramidLevel
from fastai_heads.heads.pooled import PooledHead
from fastai_heads.heads.spec import HeadSpec, TapShape

__all__ = ["PREFIX", "STRATEGY", "Heads", "Trunk", "body_and_heads", "in_eval", "multihead_model", "read_by"]

PREFIX = "head_"  # nn.ModuleDict refuses keys such as 'type' or 'values'
STRATEGY = "strategy."  # before the names of what a strategy learns


@dataclass(frozen=True)
class Trunk:
    """Layers shared by some heads, between a tap and the heads that name the trunk: `trunk={'neck': Trunk(module)}`.

    Its output is a tap by its own name. It stands with the heads in `model[1]` and trains when the body is frozen."""

    module: (
        nn.Module | Callable[[int], nn.Module]
    )  # takes the tap's tensor; or a function of its channels that makes it
    tap: str | int = "features"  # what it reads: a tap's name or stride, or a trunk that stands before it

    def __post_init__(self) -> None:
        if not callable(self.module):
            raise HeadsError(
                f"`module` of Trunk is an nn.Module or a function of the tap's channels, found {self.module!r}."
            )
        if not isinstance(self.tap, str | int) or isinstance(self.tap, bool):
            raise HeadsError(f"`tap` of Trunk is a tap's name or a stride, found {self.tap!r}.")

    def build(self, channels: int) -> nn.Module:
        "The module itself, or what the function makes of the tap's channels."
        module = self.module if isinstance(self.module, nn.Module) else self.module(channels)
        if not isinstance(module, nn.Module):
            raise HeadsError(f"`module` of Trunk is a function that makes an nn.Module, and it made {module!r}.")
        return module


class Heads(nn.Module):
    """Every head of a network, by name, and the trunks before them: {tap: tensor} to one prediction per head, in order.

    Heads on one tap that pool it alike share one pooled vector, bit for bit what each would make by itself."""

    def __init__(
        self,
        heads: Mapping[str, nn.Module],  # name → module
        reads: Mapping[str, tuple[str, ...]],  # name → the taps (or trunks) that it takes, canonical names
        trunks: Mapping[str, nn.Module] | None = None,  # name → module, each after the trunks that it reads
        trunk_reads: Mapping[str, str] | None = None,  # trunk → the tap (or trunk) that it takes
        shapes: Mapping[str, TapShape] | None = None,  # of every tap and trunk, for heads that are added later
    ):
        super().__init__()
        self.shapes = dict(shapes or {})
        self.reads, self.trunk_reads = dict(reads), dict(trunk_reads or {})
        self.trunks = nn.ModuleDict({PREFIX + name: m for name, m in (trunks or {}).items()})
        self.heads = nn.ModuleDict({PREFIX + name: m for name, m in heads.items()})
        self.strategy: nn.Module | None = None  # what a strategy learns while training; no prediction needs it
        self.register_load_state_dict_pre_hook(_without_strategy)

    @property
    def names(self) -> tuple[str, ...]:
        "The heads' names, in the order of the predictions."
        return tuple(self.reads)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.reads:
            raise unknown("head", name, self.names)
        return self.heads[PREFIX + name]

    def __len__(self) -> int:
        return len(self.reads)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reads)

    def add(
        self,
        name: str,  # of the new head, the last in the order
        module: nn.Module,  # its layers
        reads: tuple[str, ...],  # the taps or trunks that it takes, canonical names
    ) -> None:
        "One head more; the others stay as they are."
        self.heads[PREFIX + name], self.reads[name] = module, reads

    def add_trunk(
        self,
        name: str,  # of the new trunk, the last in the order
        module: nn.Module,  # its layers
        tap: str,  # the tap or trunk that it takes, canonical name
    ) -> None:
        "One trunk more."
        self.trunks[PREFIX + name], self.trunk_reads[name] = module, tap

    def drop(
        self,
        name: str,  # of the head
    ) -> None:
        "One head less; the others stay as they are."
        del self.heads[PREFIX + name], self.reads[name]

    def drop_unread(self) -> None:
        "The trunks that no head reads, be it through another trunk, go."
        for name in reversed(tuple(self.trunk_reads)):
            if all(name not in reads for reads in self.reads.values()) and name not in self.trunk_reads.values():
                del self.trunks[PREFIX + name], self.trunk_reads[name], self.shapes[name]

    def trunk(self, name: str) -> nn.Module:
        "One trunk's module."
        return self.trunks[PREFIX + name]

    def forward(
        self,
        taps: dict[str, Tensor],  # what the body gives
    ) -> tuple[Tensor, ...]:  # one prediction per head, in order
        tensors = dict(taps)
        for name, tap in self.trunk_reads.items():
            tensors[name] = self.trunk(name)(tensors[tap])
        pooled: dict[tuple[str, str | None], Tensor] = {}
        return tuple(self._predict(self[name], reads, tensors, pooled) for name, reads in self.reads.items())

    @staticmethod
    def _predict(
        head: nn.Module,
        reads: tuple[str, ...],
        tensors: dict[str, Tensor],
        pooled: dict[tuple[str, str | None], Tensor],
    ) -> Tensor:
        if not isinstance(head, PooledHead):
            return head(*(tensors[tap] for tap in reads))
        key = (reads[0], head.pool_name)
        if key not in pooled:
            pooled[key] = head.pool(tensors[reads[0]])
        return head(pooled[key])


def _without_strategy(heads: Heads, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    "Weights of another strategy, or of none, load: what the strategy of this network learns starts where it is."
    prefix += STRATEGY
    ours = {} if heads.strategy is None else heads.strategy.state_dict(prefix=prefix)
    theirs = {key: value for key, value in state.items() if key.startswith(prefix)}
    if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
        for key in theirs:
            del state[key]
        state.update(ours)


def multihead_model(
    body: Body,  # with every tap that the specs and trunks read
    specs: Mapping[str, HeadSpec],  # name → fitted spec, in the order of the predictions
    trunks: Mapping[str, Trunk] | None = None,  # name → trunk, each after the trunks that it reads
    sample: tuple[Tensor, ...] = (),  # inputs of the body, on which the trunks' outputs are measured
) -> nn.Sequential:  # (body, heads)
    "The network: `model[0]` is the body, `model[1]['digit']` one head."
    shapes = {tap: TapShape(tap, body.channels[tap], body.strides[tap]) for tap in body.taps}
    modules, trunk_reads = _build_trunks(body, trunks or {}, shapes, sample)
    model_heads = Heads({}, {}, modules, trunk_reads, shapes)
    for name, spec in specs.items():
        reads = read_by(spec, body, model_heads)
        model_heads.add(name, spec.build(tuple(model_heads.shapes[tap] for tap in reads)), reads)
    return nn.Sequential(body, model_heads)


def read_by(
    spec: HeadSpec,  # of one head
    body: Body,  # gives the taps
    heads: Heads,  # has the trunks; levels that the arch does not have are added to them
) -> tuple[str, ...]:  # canonical names of taps and trunks
    "What a head reads. A level that has to be made is made once, and shared by every head that reads it."
    found = (_read(tap, body, heads) for tap in spec.reads)
    return tuple(name for name in found if name is not None)


def _read(tap: str | int | Level, body: Body, heads: Heads) -> str | None:
    if not isinstance(tap, Level):
        return _canonical(tap, heads.shapes, body)
    source = body.level_source(tap)
    if source is None or (not body.one_stride and body.strides[source] == tap.stride):
        return source
    name, before = f"stride_{tap.stride}", heads.shapes[source]
    made = heads.trunk(name) if name in heads.trunk_reads else None
    if made is None:
        kind = PyramidLevel if body.one_stride else LevelFrom
        made = kind(before.channels, before.stride, tap.stride)
        heads.add_trunk(name, made, source)
        heads.shapes[name] = TapShape(name, made.n_out, tap.stride)
    elif not isinstance(made, LevelFrom):
        raise HeadsError(f"`trunk` {name!r} has the name of the level that stands for stride {tap.stride}: rename it.")
    return name


def body_and_heads(
    model: nn.Sequential,  # from `multihead_model`
) -> list[list[nn.Parameter]]:  # the body's groups, early layers first, and one group for trunks and heads
    "The parameter groups that a user sees: what `slice`, `freeze_to` and the recorded rate count."
    return [*model[0].groups(), list(model[1].parameters())]


def _canonical(tap: str | int, shapes: Mapping[str, TapShape], body: Body) -> str:
    return tap if tap in shapes else body.tap_name(tap)


def _build_trunks(
    body: Body,
    trunks: Mapping[str, Trunk],
    shapes: dict[str, TapShape],  # of the taps; the trunks' are added
    sample: tuple[Tensor, ...],
) -> tuple[dict[str, nn.Module], dict[str, str]]:  # the modules, and what each reads
    modules: dict[str, nn.Module] = {}
    reads: dict[str, str] = {}
    if not trunks:
        return modules, reads
    tensors = in_eval(body, *sample)
    for name, trunk in trunks.items():
        if any(point.name == name for point in body.points):
            raise HeadsError(f"`trunk` {name!r} has the name of a tap of {body.arch}: call it something else.")
        if trunk.tap in trunks and trunk.tap not in shapes:
            raise HeadsError(f"`trunk` {name!r} reads trunk {trunk.tap!r}: put that one before it.")
        reads[name] = _canonical(trunk.tap, shapes, body)
        before = shapes[reads[name]]
        modules[name] = trunk.build(before.channels)
        tensors[name] = in_eval(modules[name], tensors[reads[name]])
        shapes[name] = _measured(name, tensors[name], tensors[reads[name]], before)
    return modules, reads


def _measured(name: str, after: Tensor, before: Tensor, shape: TapShape) -> TapShape:
    "What a trunk's output is, measured on a sample."
    if not isinstance(after, Tensor) or after.ndim not in (2, 4):
        found = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise HeadsError(f"`trunk` {name!r} gives a map (B, C, H, W) or a vector (B, C), found {found}.")
    stride = None
    if after.ndim == 4 and shape.stride is not None:
        stride = max(1, round(shape.stride * before.shape[-1] / after.shape[-1]))
    return TapShape(name, after.shape[1], stride)


@torch.no_grad()
def in_eval(
    module: nn.Module,  # a body, a trunk, or a whole model
    *inputs: Tensor,  # what it takes
) -> Any:
    "The module's output in evaluation mode; its mode is back afterwards, no statistic has moved."
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        return module(*inputs)
    finally:
        for m, training in modes.items():
            m.training = training
