"""Layers that heads share: what a user writes, and how they are built, measured and found."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.contract import Body
from fastai_heads.errors import HeadsError, refuse_change
from fastai_heads.heads.levels import LevelFrom, PyramidLevel
from fastai_heads.heads.spec import HeadSpec, TapShape, is_tap, read_as
from fastai_heads.modes import evaluate

__all__ = ["PREFIX", "Trunk", "Trunks", "add_trunks", "read_by"]

PREFIX = "head_"  # nn.ModuleDict refuses keys such as 'type' or 'values'


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
        "Give the module itself, or what the function makes of the channels."
        module = self.module if isinstance(self.module, nn.Module) else self.module(channels)
        if not isinstance(module, nn.Module):
            raise HeadsError(f"`module` of Trunk is a function that makes an nn.Module, and it made {module!r}.")
        return module


Trunk.__setattr__ = refuse_change


class Trunks(nn.Module):
    "Modules by name between taps and heads, and what is known of every tap and trunk."

    def __init__(
        self,
        trunks: Mapping[str, nn.Module] | None = None,  # name → module, each after the trunks that it reads
        trunk_reads: Mapping[str, tuple[str, ...]] | None = None,  # trunk → the taps (or trunks) that it takes
        shapes: Mapping[str, TapShape] | None = None,  # of every tap and trunk, for heads that are added later
    ):
        super().__init__()
        self.shapes, self.trunk_reads = dict(shapes or {}), dict(trunk_reads or {})
        self.trunk_gives: dict[str, tuple[str, ...]] = {name: (name,) for name in self.trunk_reads}
        self.trunks = nn.ModuleDict({PREFIX + name: m for name, m in (trunks or {}).items()})

    def add_trunk(
        self,
        name: str,  # of the new trunk, the last in the order
        module: nn.Module,  # its layers
        reads: tuple[str, ...],  # the taps or trunks that it takes, canonical names
        shapes: Sequence[TapShape],  # of the taps that its output is: one by its own name, or a pyramid's levels
    ) -> None:
        "Add one trunk."
        self.trunks[PREFIX + name], self.trunk_reads[name] = module, reads
        self.trunk_gives[name] = tuple(shape.name for shape in shapes)
        self.shapes |= {shape.name: shape for shape in shapes}

    def trunk(self, name: str) -> nn.Module:
        "Find one trunk's module."
        return self.trunks[PREFIX + name]

    def run_trunks(
        self,
        taps: Mapping[str, Tensor],  # what the body gives
    ) -> dict[str, Tensor]:  # the taps, and what the trunks give
        "Run every trunk on the taps and on the trunks before it."
        tensors = dict(taps)
        for name, reads in self.trunk_reads.items():
            tensors |= _name_maps(self.trunk(name)(_gather(reads, tensors)), self.trunk_gives[name])
        return tensors


def read_by(
    spec: HeadSpec,  # of one head
    body: Body,  # gives the taps
    heads: Trunks,  # has the trunks; levels that the arch does not have are added to them
) -> tuple[str, ...]:  # canonical names of taps and trunks
    "List what a head reads. A level that has to be made is made once, and shared by every head that reads it."
    return _canonical(spec.reads, body, heads)


def _canonical(taps: Iterable[str | int | Level], body: Body, heads: Trunks) -> tuple[str, ...]:
    "Name taps and trunks; of a pyramid its levels."
    found: list[str] = []
    for tap in taps:
        if tap in heads.trunk_gives:
            found += heads.trunk_gives[tap]
        elif isinstance(tap, Level):
            level = _level(tap, body, heads)
            found += [] if level is None else [level]
        else:
            found += [tap] if tap in heads.shapes else _tap_names(tap, body, heads)
    return tuple(found)


def _tap_names(tap: str | int, body: Body, heads: Trunks) -> Sequence[str]:
    "Find the body's names of a tap, several where several bodies have it. Refuses one that nobody has."
    pyramid = tap.rpartition(".")[0] if isinstance(tap, str) else ""
    if pyramid in heads.trunk_gives:
        raise HeadsError(f"`tap={tap!r}`: trunk {pyramid!r} gives {', '.join(heads.trunk_gives[pyramid])}.", tap=tap)
    return body.tap_names([tap])


def _level(tap: Level, body: Body, heads: Trunks) -> str | None:
    "Find the tap or trunk that a level is; None for an optional one that the arch does not have."
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


def add_trunks(
    body: Body,  # gives the taps
    trunks: Mapping[str, Trunk],  # name → trunk, each after the trunks that it reads
    heads: Trunks,  # is given the trunks, and the levels that they read
    sample: tuple[Tensor, ...],  # inputs of the body
) -> None:
    "Build the trunks, and the levels that they read. What they give is measured on the sample."
    if not trunks:
        return
    with evaluate(body):
        tensors = body(*sample)
    for name, trunk in trunks.items():
        _check_name(name, trunk, trunks, body, heads)
        reads, known = _canonical(trunk.reads, body, heads), set(tensors)
        for level in (tap for tap in reads if tap not in known):
            source = heads.trunk_reads[level][0]
            with evaluate(heads.trunk(level)):
                tensors[level] = heads.trunk(level)(tensors[source])
        module, found = _tried(name, trunk, [heads.shapes[tap] for tap in reads], _gather(reads, tensors))
        before = heads.shapes[reads[0]]
        shapes = _shapes(name, found, partial(body.stride_after, before.stride, tensors[reads[0]]))
        heads.add_trunk(name, module, reads, shapes)
        tensors |= _name_maps(found, heads.trunk_gives[name])


def _tried(name: str, trunk: Trunk, reads: Sequence[TapShape], sample: Any) -> tuple[nn.Module, Any]:
    "Build a trunk's module, and run it on a sample."
    try:
        module = trunk.build([s.channels for s in reads] if len(reads) > 1 else reads[0].channels)
        with evaluate(module):
            return module, module(sample)
    except HeadsError:
        raise
    except Exception as error:  # the module is the user's
        what = ", ".join(f"{shape.name!r} of {shape.channels} channels" for shape in reads)
        fit = f"`Trunk(lambda channels: nn.Conv2d(channels, 64, 1), tap={trunk.tap!r})`"
        start = f"`trunk[{name!r}]`: `module` of Trunk cannot take what it reads, {what}"
        raise HeadsError(f"{start}: {error}. A function of the channels fits, such as {fit}.") from error


def _shapes(name: str, found: Any, stride: Callable[[Tensor], int | None]) -> list[TapShape]:
    "Measure a trunk's output: a tap by its name, or of a pyramid a level by its name and stride."
    if not isinstance(found, Mapping):
        return [_measure(name, found, stride)]
    levels = [_measure(name, level, stride) for level in found.values()]
    strides = [level.stride for level in levels]
    if None in strides or len(set(strides)) < len(strides):
        raise HeadsError(f"`trunk` {name!r} gives maps of different strides, found {strides}.")
    return [TapShape(f"{name}.{level.stride}", level.channels, level.stride) for level in levels]


def _check_name(name: str, trunk: Trunk, trunks: Mapping[str, Trunk], body: Body, heads: Trunks) -> None:
    "Refuse a trunk that bears a tap's name, or that stands before a trunk that it reads."
    if any(point.name == name or point.name.startswith(f"{name}.") for point in body.points):
        raise HeadsError(f"`trunk` {name!r} has the name of a tap of {body.arch}: call it something else.")
    for tap in trunk.tap if isinstance(trunk.tap, tuple) else (trunk.tap,):
        if tap in trunks and tap not in heads.trunk_gives and tap not in heads.shapes:
            raise HeadsError(f"`trunk` {name!r} reads trunk {tap!r}: put that one before it.")


def _measure(name: str, found: Any, stride: Callable[[Tensor], int | None]) -> TapShape:
    "Measure one tensor that a trunk gives for a sample. Refuses what is neither a map nor a vector."
    if not isinstance(found, Tensor) or found.ndim not in (2, 4):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise HeadsError(f"`trunk` {name!r} gives a map (B, C, H, W) or a vector (B, C), found {what}.")
    return TapShape(name, found.shape[1], stride(found))


def _gather(reads: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Tensor | OrderedDict[str, Tensor]:
    "Give what a trunk takes: one tap's tensor, or of several an `OrderedDict`."
    return tensors[reads[0]] if len(reads) == 1 else OrderedDict((tap, tensors[tap]) for tap in reads)


def _name_maps(found: Tensor | Mapping[str, Tensor], gives: tuple[str, ...]) -> dict[str, Tensor]:
    "Name what a trunk's module gives as the taps that it is."
    return dict(zip(gives, found.values() if isinstance(found, Mapping) else (found,)))
