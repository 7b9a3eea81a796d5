"""The heads of a network, the trunks they share, and both behind a body."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastai.torch_core import get_model
from torch import Tensor, nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.contract import Body
from fastai_heads.errors import HeadsError, refuse_change, unknown
from fastai_heads.heads.levels import LevelFrom, PyramidLevel
from fastai_heads.heads.pooled import PooledHead
from fastai_heads.heads.spec import HeadSpec, TapShape, is_tap, read_as
from fastai_heads.running import in_eval

__all__ = [
    "PREFIX",
    "STRATEGY",
    "Heads",
    "Trunk",
    "body_and_heads",
    "multihead_model",
    "named_maps",
    "read_by",
    "run_trunk",
    "trunk_input",
]

PREFIX = "head_"  # nn.ModuleDict refuses keys such as 'type' or 'values'
STRATEGY = "strategy."  # before the names of what a strategy learns


@dataclass(frozen=True)
class Trunk:
    """Layers shared by some heads, between a tap and the heads that name the trunk: `trunk={'neck': Trunk(module)}`.

    Its output is a tap by its own name. It stands with the heads in `model[1]` and trains when the body is frozen.

    Over a tuple of taps it takes an `OrderedDict` of tap to map, as torchvision's `FeaturePyramidNetwork` does:
    `Trunk(partial(FeaturePyramidNetwork, out_channels=64), tap=(8, 16, 32))`. A trunk that gives a dictionary of maps
    is a pyramid: `tap='neck'` reads all of its levels, `tap='neck.16'` the one at stride 16."""

    module: (
        nn.Module | Callable[..., nn.Module]
    )  # takes the tap's tensor, or of several taps a dictionary; or a function of the channels (of several: a list)
    tap: str | int | tuple[str | int, ...] = "features"  # a tap's name or stride, a trunk before it, or a tuple of them

    def __post_init__(self) -> None:
        if not callable(self.module):
            raise HeadsError(
                f"`module` of Trunk is an nn.Module or a function of the tap's channels, found {self.module!r}."
            )
        several = isinstance(self.tap, tuple)
        if not (is_tap(self.tap) or (several and len(self.tap) > 1 and all(map(is_tap, self.tap)))):
            raise HeadsError(f"`tap` of Trunk is a tap's name or a stride, or a tuple of several, found {self.tap!r}.")

    @property
    def reads(self) -> tuple[str | int | Level, ...]:
        "What it reads, as the body resolves it: the strides of a tuple are levels, made where the arch has none."
        return read_as(self.tap)

    def build(self, channels: int | list[int]) -> nn.Module:
        "The module itself, or what the function makes of the channels."
        module = self.module if isinstance(self.module, nn.Module) else self.module(channels)
        if not isinstance(module, nn.Module):
            raise HeadsError(f"`module` of Trunk is a function that makes an nn.Module, and it made {module!r}.")
        return module


Trunk.__setattr__ = refuse_change


class Heads(nn.Module):
    """Every head of a network, by name, and the trunks before them: {tap: tensor} to one prediction per head, in order.

    Heads on one tap that pool it alike share one pooled vector, bit for bit what each would make by itself."""

    def __init__(
        self,
        heads: Mapping[str, nn.Module],  # name → module
        reads: Mapping[str, tuple[str, ...]],  # name → the taps (or trunks) that it takes, canonical names
        trunks: Mapping[str, nn.Module] | None = None,  # name → module, each after the trunks that it reads
        trunk_reads: Mapping[str, tuple[str, ...]] | None = None,  # trunk → the taps (or trunks) that it takes
        shapes: Mapping[str, TapShape] | None = None,  # of every tap and trunk, for heads that are added later
    ):
        super().__init__()
        self.shapes = dict(shapes or {})
        self.reads, self.trunk_reads = dict(reads), dict(trunk_reads or {})
        self.trunk_gives: dict[str, tuple[str, ...]] = {name: (name,) for name in self.trunk_reads}
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
        reads: tuple[str, ...],  # the taps or trunks that it takes, canonical names
        shapes: Sequence[TapShape],  # of the taps that its output is: one by its own name, or a pyramid's levels
    ) -> None:
        "One trunk more."
        self.trunks[PREFIX + name], self.trunk_reads[name] = module, reads
        self.trunk_gives[name] = tuple(shape.name for shape in shapes)
        self.shapes |= {shape.name: shape for shape in shapes}

    def drop(
        self,
        name: str,  # of the head
    ) -> None:
        "One head less; the others stay as they are."
        del self.heads[PREFIX + name], self.reads[name]

    def drop_unread(self) -> None:
        "The trunks that no head reads, be it through another trunk, go."
        for name in reversed(tuple(self.trunk_reads)):
            read = {tap for reads in (*self.reads.values(), *self.trunk_reads.values()) for tap in reads}
            if read.isdisjoint(self.trunk_gives[name]):
                for shape in self.trunk_gives.pop(name):
                    del self.shapes[shape]
                del self.trunks[PREFIX + name], self.trunk_reads[name]

    def trunk(self, name: str) -> nn.Module:
        "One trunk's module."
        return self.trunks[PREFIX + name]

    def forward(
        self,
        taps: dict[str, Tensor],  # what the body gives
    ) -> tuple[Tensor, ...]:  # one prediction per head, in order
        tensors = dict(taps)
        for name, reads in self.trunk_reads.items():
            tensors |= run_trunk(self.trunk(name), reads, self.trunk_gives[name], tensors)
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
    model_heads = Heads({}, {}, shapes=shapes)
    _add_trunks(body, trunks or {}, model_heads, sample)
    for name, spec in specs.items():
        reads = read_by(spec, body, model_heads)
        try:
            model_heads.add(name, spec.build(tuple(model_heads.shapes[tap] for tap in reads)), reads)
        except HeadsError as error:
            raise HeadsError(f"`heads[{name!r}]`: {error}") from error.__cause__
    return nn.Sequential(body, model_heads)


def read_by(
    spec: HeadSpec,  # of one head
    body: Body,  # gives the taps
    heads: Heads,  # has the trunks; levels that the arch does not have are added to them
) -> tuple[str, ...]:  # canonical names of taps and trunks
    "What a head reads. A level that has to be made is made once, and shared by every head that reads it."
    return _canonical(spec.reads, body, heads)


def _canonical(taps: Iterable[str | int | Level], body: Body, heads: Heads) -> tuple[str, ...]:
    "Names of taps and trunks; of a pyramid those of its levels."
    found: list[str] = []
    for tap in taps:
        if tap in heads.trunk_gives:
            found += heads.trunk_gives[tap]
        elif isinstance(tap, Level):
            level = _level(tap, body, heads)
            found += [] if level is None else [level]
        else:
            found.append(tap if tap in heads.shapes else _tap_name(tap, body, heads))
    return tuple(found)


def _tap_name(tap: str | int, body: Body, heads: Heads) -> str:
    "The body's name of a tap. Raises `HeadsError` for one that neither the body nor a trunk has."
    pyramid = tap.rpartition(".")[0] if isinstance(tap, str) else ""
    if pyramid in heads.trunk_gives:
        raise HeadsError(f"`tap={tap!r}`: trunk {pyramid!r} gives {', '.join(heads.trunk_gives[pyramid])}.")
    return body.tap_name(tap)


def _level(tap: Level, body: Body, heads: Heads) -> str | None:
    "The tap or trunk that a level is; None for an optional one that the arch does not have."
    source = body.level_source(tap)
    if source is None or (not body.one_stride and body.strides[source] == tap.stride):
        return source
    name, before = f"stride_{tap.stride}", heads.shapes[source]
    made = heads.trunk(name) if name in heads.trunk_reads else None
    if made is None:
        kind = PyramidLevel if body.one_stride else LevelFrom
        made = kind(before.channels, before.stride, tap.stride)
        heads.add_trunk(name, made, (source,), [TapShape(name, made.n_out, tap.stride)])
    elif not isinstance(made, LevelFrom):
        raise HeadsError(f"`trunk` {name!r} has the name of the level that stands for stride {tap.stride}: rename it.")
    return name


def body_and_heads(
    model: nn.Sequential,  # from `multihead_model`
) -> list[list[nn.Parameter]]:  # the body's groups, early layers first, and one group for trunks and heads
    "The parameter groups that a user sees: what `slice`, `freeze_to` and the recorded rate count."
    body, heads = get_model(model)
    return [*body.groups(), list(heads.parameters())]


def run_trunk(
    module: nn.Module,  # of the trunk
    reads: tuple[str, ...],  # the taps (or trunks) that it takes
    gives: tuple[str, ...],  # the taps that its output is
    tensors: Mapping[str, Tensor],  # of taps and of the trunks before it
) -> dict[str, Tensor]:  # by the names in `gives`
    "What a trunk makes of the tensors."
    return named_maps(module(trunk_input(reads, tensors)), gives)


def trunk_input(
    reads: tuple[str, ...],  # the taps (or trunks) that a trunk takes
    tensors: Mapping[str, Tensor],  # of taps and of the trunks before it
) -> Tensor | OrderedDict[str, Tensor]:
    "One tap's tensor, or of several an `OrderedDict`."
    return tensors[reads[0]] if len(reads) == 1 else OrderedDict((tap, tensors[tap]) for tap in reads)


def named_maps(
    found: Tensor | Mapping[str, Tensor],  # what a trunk's module gives
    gives: tuple[str, ...],  # the taps that it is
) -> dict[str, Tensor]:
    "A trunk's output by the names of its taps."
    return dict(zip(gives, found.values() if isinstance(found, Mapping) else (found,)))


def _add_trunks(body: Body, trunks: Mapping[str, Trunk], heads: Heads, sample: tuple[Tensor, ...]) -> None:
    "Builds the trunks, and the levels that they read; what they give is measured on a sample."
    if not trunks:
        return
    tensors = in_eval(body, *sample)
    for name, trunk in trunks.items():
        _check_name(name, trunk, trunks, body, heads)
        reads, known = _canonical(trunk.reads, body, heads), set(tensors)
        for level in (tap for tap in reads if tap not in known):
            source = heads.trunk_reads[level][0]
            tensors[level] = in_eval(heads.trunk(level), tensors[source])
        module, found = _tried(name, trunk, [heads.shapes[tap] for tap in reads], trunk_input(reads, tensors))
        shapes = _shapes(name, found, heads.shapes[reads[0]], tensors[reads[0]])
        heads.add_trunk(name, module, reads, shapes)
        tensors |= named_maps(found, heads.trunk_gives[name])


def _tried(name: str, trunk: Trunk, reads: Sequence[TapShape], sample: Any) -> tuple[nn.Module, Any]:
    "A trunk's module, and what it gives for a sample."
    try:
        module = trunk.build([s.channels for s in reads] if len(reads) > 1 else reads[0].channels)
        return module, in_eval(module, sample)
    except HeadsError:
        raise
    except Exception as error:  # the module is the user's
        what = ", ".join(f"{shape.name!r} of {shape.channels} channels" for shape in reads)
        fit = f"`Trunk(lambda channels: nn.Conv2d(channels, 64, 1), tap={trunk.tap!r})`"
        start = f"`trunk[{name!r}]`: `module` of Trunk cannot take what it reads, {what}"
        raise HeadsError(f"{start}: {error}. A function of the channels fits, such as {fit}.") from error


def _shapes(name: str, found: Any, shape: TapShape, before: Tensor) -> list[TapShape]:
    "The taps that a trunk's output is: one by its name, or of a pyramid a level by its name and stride."
    if not isinstance(found, Mapping):
        return [_measured(name, found, shape, before)]
    levels = [_measured(name, level, shape, before) for level in found.values()]
    strides = [level.stride for level in levels]
    if None in strides or len(set(strides)) < len(strides):
        raise HeadsError(f"`trunk` {name!r} gives maps of different strides, found {strides}.")
    return [TapShape(f"{name}.{level.stride}", level.channels, level.stride) for level in levels]


def _check_name(name: str, trunk: Trunk, trunks: Mapping[str, Trunk], body: Body, heads: Heads) -> None:
    "Refuses a trunk that bears a tap's name, or that stands before a trunk that it reads."
    if any(point.name == name or point.name.startswith(f"{name}.") for point in body.points):
        raise HeadsError(f"`trunk` {name!r} has the name of a tap of {body.arch}: call it something else.")
    for tap in trunk.tap if isinstance(trunk.tap, tuple) else (trunk.tap,):
        if tap in trunks and tap not in heads.trunk_gives and tap not in heads.shapes:
            raise HeadsError(f"`trunk` {name!r} reads trunk {tap!r}: put that one before it.")


def _measured(name: str, after: Tensor, shape: TapShape, before: Tensor) -> TapShape:
    "What a trunk's output is, measured on a sample against the first tap that it reads."
    if not isinstance(after, Tensor) or after.ndim not in (2, 4):
        found = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise HeadsError(f"`trunk` {name!r} gives a map (B, C, H, W) or a vector (B, C), found {found}.")
    stride = None
    if after.ndim == 4 and shape.stride is not None:
        stride = max(1, round(shape.stride * before.shape[-1] / after.shape[-1]))
    return TapShape(name, after.shape[1], stride)
