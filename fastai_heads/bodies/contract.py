"""What a body is, whatever it takes: an image, a row of a table, a text, or several of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fasttransform import Transform
from torch import Tensor, nn

from fastai_heads.archs.records import Level, Removed, TapPoint
from fastai_heads.data.inputs import Input
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["Body", "BodySpec", "Found", "split_in_two", "tap_key"]


@dataclass(frozen=True)
class BodyPart:
    "A body as the diagram shows it: one of several, or the only one."

    title: str  # its arch, after its name if it has one
    body: "Body"  # whose parameters it has
    inputs: tuple[str, ...]  # the names of what it reads
    taps: tuple[str, ...]  # those in use that it gives


class Body(nn.Module, ABC):
    """The contract of what stands before the heads: inputs of a batch in, a tensor for every tap in use out.

    Heads, trunks, the learner and the views ask this contract and never which kind of body it is. A subclass sets the
    attributes below, calls `use_taps`, and says `forward`, `groups` and `check_inputs`. The other methods have answers
    that fit a body of vectors without pretrained weights."""

    arch: str  # what it is called, in messages and in the summary
    zoo: str = "module"  # where the arch was found
    weights: str = ""  # which pretrained weights are in use; '' for none: such a body is never frozen
    points: tuple[TapPoint, ...]  # every place that a head may read, from the input on
    unlisted: tuple[TapPoint, ...] = ()  # further places that a head may name
    taps: tuple[str, ...]  # canonical names of the taps in use, in the order of `forward`
    removed: tuple[Removed, ...] = ()  # what of the arch was taken off
    left_out: tuple[Removed, ...] = ()  # trained layers among them that no tap in use needs
    input_names: tuple[str, ...] = ("input",)  # what `forward` takes is called, in messages and in the diagram

    @abstractmethod
    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Give the tensor at every tap, in the order of `taps`: a map (B, C, H, W), a vector (B, C), or a sequence
        (B, L, C), which is zero where a text has ended."""

    @abstractmethod
    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups, early and late, each parameter once."

    @abstractmethod
    def check_inputs(
        self,
        inputs: tuple[Tensor, ...],  # of a batch, as they reach `forward`
    ) -> None:
        "Refuse inputs that the body cannot take, by a `HeadsError` that says which it takes."

    def absent(self, *inputs: Any) -> Tensor:
        "Tell (B,) which items of a batch are the stand-ins of missing ones. An image of NaN is one."
        return inputs[0].flatten(1).isnan().any(1)

    def blank(self, *inputs: Any) -> tuple[Any, ...]:
        "Make inputs of one item for a batch that has none: an image of zeros."
        return (inputs[0].new_zeros(1, *inputs[0].shape[1:]),)

    def restrict(
        self,
        taps: Iterable[str],  # canonical names of those that are wanted
    ) -> "Body":
        "Give a body over the same modules that computes what these taps need: this one, where it is one network."
        return self

    def held(self) -> list[nn.Parameter]:
        "List the parameters that `freeze` holds: all of a pretrained body, none of one that starts from scratch."
        return list(self.parameters()) if self.weights else []

    def describe(self) -> list[str]:
        "Say what each of several bodies reads and whether it trains, a line each; nothing where there is one."
        return []

    def parts(self) -> list["BodyPart"]:
        "List what the diagram shows of it, one for each body."
        return [BodyPart(self.arch, self, self.input_names, tuple(self.taps))]

    def transforms(self) -> list[Transform]:
        "List the batch transforms that the weights in use were trained with, such as `Normalize`."
        return []

    @property
    def channels(self) -> dict[str, int]:
        "Width of the tensor at every tap in use."
        return {tap: self.point(tap).channels for tap in self.taps}

    @property
    def strides(self) -> dict[str, int | None]:
        "Input side / map side at every tap in use, None for a vector."
        return {tap: self.point(tap).stride for tap in self.taps}

    def point(
        self,
        name: str,  # canonical
    ) -> TapPoint:
        "Find what is known of a tap."
        return next(p for p in (*self.points, *self.unlisted) if p.name == name)

    def use_taps(
        self,
        taps: Iterable[str | int | Level],  # names, strides or levels
    ) -> None:
        "Set `taps`, and the named `nn.Identity` that each of them passes, which can be hooked."
        self.taps = self.tap_names(taps)
        if not self.taps:
            known = ", ".join(p.name for p in self.points)
            raise HeadsError(f"`taps` is empty. Taps of {self.arch}: {known}.")
        self.tap_modules = nn.ModuleDict({tap_key(tap): nn.Identity() for tap in self.taps})

    def through_taps(
        self,
        found: dict[str, Tensor],  # at least the taps in use
    ) -> dict[str, Tensor]:
        "Pass every tap through its module. It is the last step of `forward`."
        return {tap: self.tap_modules[tap_key(tap)](found[tap]) for tap in self.taps}

    def tap_names(
        self,
        taps: Iterable[str | int | Level],  # names, strides or levels
    ) -> tuple[str, ...]:
        "List the canonical names, each once. An optional level that the arch does not have is left out."
        found = (self.level_source(tap) if isinstance(tap, Level) else self.tap_name(tap) for tap in taps)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def tap_name(
        self,
        tap: str | int,  # a tap's name, or a stride
    ) -> str:
        "Find the canonical name of a tap. Raises `HeadsError` with the names that there are."
        names = [p.name for p in self.points]
        if tap in (*names, *(p.name for p in self.unlisted)):
            return tap
        raise HeadsError(
            f"`tap={tap!r}`, which {self.arch} does not have.{did_you_mean(tap, names)} "
            f"Taps of {self.arch}: {', '.join(names)}.",
            tap=tap,
        )

    @property
    def one_stride(self) -> bool:
        "Whether every inner map has the same stride, as of a ViT: levels are made of the last one then."
        return False

    def level_source(
        self,
        level: Level,  # a stride
    ) -> str | None:  # its canonical name; None for an optional level that the arch does not have
        "Find the tap that a level is, or is made of. A body without maps has none."
        if level.optional:
            return None
        message = f"`tap={level.stride}`: {self.arch} has no map. Its taps: {', '.join(self.taps)}."
        raise HeadsError(message, tap=level)

    def size_of(
        self,
        inputs: tuple[Tensor, ...],  # of a batch
    ) -> str:
        "Say in a message how large inputs are."
        return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)

    def other_sizes(
        self,
        inputs: tuple[Tensor, ...],  # of a batch, which the network cannot take
    ) -> Iterable[tuple[Tensor, ...]]:  # each a batch of one
        "Make inputs of other sizes to try instead, the nearest first. A body that takes one size alone has none."
        return ()

    def stride_after(
        self,
        stride: int | None,  # of a tap
        before: Tensor,  # what the tap gives for a sample
        after: Tensor,  # what was made of it
    ) -> int | None:
        "Tell the stride of what is made of a tap, None for what is no map or made of none."
        if stride is None or before.ndim != 4 or after.ndim != 4:
            return None
        return max(1, round(stride * before.shape[-1] / after.shape[-1]))

    def tap_also(
        self,
        tap: str | int,  # a tap's name, or a stride
    ) -> str:  # its canonical name
        "Give one tap more, where the body still reaches it. Raises `HeadsError` where it does not."
        name = self.tap_name(tap)
        if name not in self.taps:
            raise HeadsError(
                f"`tap={tap!r}`: this body of {self.arch} was made for {', '.join(self.taps)}. "
                "Read one of those, or make the learner again with all its heads.",
                tap=tap,
            )
        return name


@dataclass(frozen=True)
class Found:
    "An arch for a described input, before taps are chosen."

    points: tuple[TapPoint, ...]  # every place that a head may read
    build: Callable[[Iterable[str | int | Level]], Body]  # of the taps in use
    unlisted: frozenset[str] = frozenset()  # names of the places that only a user who knows them reads


class BodySpec(ABC):
    "What a user passes as `arch` where the body depends on its input: on a table's columns, on a text's vocabulary."

    head: ClassVar[Mapping[str, Any]] = {}  # fields of a pooled head on it, where the user names none

    @abstractmethod
    def find(
        self,
        source: Input,  # described
    ) -> Found:
        "Tell which taps there are for an input, and how the body is built. Refuses an input of another kind."


def split_in_two(
    modules: Sequence[nn.Module],  # from the input on
    n_early: int | None = None,  # how many are early; None for half of those that have parameters
) -> list[list[nn.Parameter]]:  # early, late
    "Split the parameters of modules in two groups, each parameter once."
    if n_early is None:
        modules = [m for m in modules if any(True for _ in m.parameters())]
        n_early = len(modules) // 2
    seen: dict[nn.Parameter, int] = {}
    for i, module in enumerate(modules):
        for p in module.parameters():
            seen.setdefault(p, int(i >= n_early))
    return [[p for p, group in seen.items() if group == g] for g in (0, 1)]


def tap_key(
    tap: str,  # canonical name
) -> str:
    "Make a module's name of a tap's: without dots, and with a prefix, as `nn.ModuleDict` refuses some names."
    return f"tap_{tap.replace('.', '_')}"
