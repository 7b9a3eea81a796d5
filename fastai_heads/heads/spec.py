"""How a head is built: the public base of all specs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from inspect import get_annotations
from numbers import Integral
from typing import Any, ClassVar

import torch
from fastai.learner import Metric
from fastcore.foundation import L
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.archs.records import Level, TapPoint
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean, refuse_change
from fastai_heads.heads.said import spec_from_dict, spec_to_dict
from fastai_heads.tasks.task import Task
from fastai_heads.values import check_value, is_number

__all__ = [
    "HeadSpec",
    "TapShape",
    "check_weights",
    "is_metric",
    "is_number",
    "is_tap",
    "read_as",
]


@dataclass(frozen=True)
class TapShape:
    "What a head knows of a tap when its module is built."

    name: str  # the tap's canonical name, or a trunk's
    channels: int  # channels of the map, or width of the vector
    stride: int | None  # input pixels per cell; None: a vector (B, channels)
    sequence: bool = False  # a vector for each token (B, L, channels), zero after the text's end

    @classmethod
    def of(
        cls,
        point: TapPoint,  # of a body
    ) -> Self:
        "Give what a head knows of a body's tap."
        return cls(point.name, point.channels, point.stride, point.sequence)


_OF_A_TASK = {name for name in vars(Task) if not name.startswith("_")} - {"target", "n_out", "loss", "loss_func"}
"What a task is asked for, and a head never."


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is before it is built: a frozen record. A subclass that says how its module is made from the taps
    (`build`) and which `Task` it `predicts` is a head like any other."""

    n_out: int | None = None  # numbers per image; None: as many as the target needs
    tap: str | int | tuple[str | int, ...] = "features"  # what it reads: a tap's name, a stride, or a tuple of either
    target: str | int | None = None  # the target's name or index; None: the head's own name
    loss: Callable | None = None  # (pred, target) → a scalar; None: the kind's default
    loss_weight: float = 1.0  # its share in the sum of the losses; it may change while training
    lr_mult: float = 1.0  # its learning rate as a multiple of the heads' rate
    metrics: Any = None  # a metric or a list of them; None: the kind's defaults; []: none
    train_only: bool = False  # an auxiliary head: trains, is left out of what `predict` decodes and of exports
    mix: bool = True  # under MixUp and CutMix blend the loss; False: the label of the image with the larger share

    kinds: ClassVar[frozenset[str]] = frozenset()  # the kinds of target that fit; empty: any
    predicts: ClassVar[type[Task]] = Task  # what is said of an item: loss, decoding, metrics
    brings_module: ClassVar[bool] = False  # the module is the user's own, who passes it as `module`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        "Refuse what only the task is asked for: on a spec it would be ignored."
        super().__init_subclass__(**kwargs)
        fields_of = get_annotations(cls)
        theirs = [name for name in vars(cls) if name in _OF_A_TASK and name not in fields_of]
        if theirs:
            raise HeadsError(
                f"`{theirs[0]}` of {cls.__name__} belongs to what the head predicts: define it in a `Task`, and name "
                f"that task in the head, `predicts = …`."
            )

    def __new__(cls, *args: Any, **given: Any) -> Self:
        "Refuse a field that the kind does not have, before Python's own error does, with the nearest right one."
        known = list(cls.__dataclass_fields__)
        first = [f.name for f in cls.__dataclass_fields__.values() if f.init and not f.kw_only]
        if len(args) > len(first):
            raise HeadsError(
                f"{cls.__name__} takes its fields by name, found {args[len(first)]!r} without one: "
                f"`{cls.__name__}(n_out={args[len(first)]!r})`."
            )
        for name in given:
            if name not in known:
                raise HeadsError(f"`{name}` is not a parameter of {cls.__name__}.{did_you_mean(name, known)}")
        cls.__setattr__ = refuse_change  # instead of the dataclass's own, which names the field alone
        return super().__new__(cls)

    def __post_init__(self) -> None:
        "Refuse what no head can mean. Subclasses that check more call this first."
        for field in ("loss_weight", "lr_mult"):
            self.check(field, is_number(getattr(self, field), least=0), "a finite number of at least 0")
        whole = isinstance(self.n_out, Integral) and is_number(self.n_out, least=1)
        self.check("n_out", self.n_out is None or whole, "a whole number of at least 1")
        taps = bool(self.taps) and all(is_tap(t) for t in self.taps)
        self.check("tap", taps, "a tap's name, a stride, or a tuple of either")
        self.check("target", self.target is None or is_tap(self.target), "a target's name or its index")
        self.check("loss", self.loss is None or callable(self.loss), "a function of (pred, target)")
        metrics = self.metrics if isinstance(self.metrics, list | tuple | L) else [self.metrics]
        self.check("metrics", self.metrics is None or all(map(is_metric, metrics)), "a metric or a list of them")
        for field in ("train_only", "mix"):
            self.check(field, isinstance(getattr(self, field), bool), "True or False")

    def check(
        self,
        field: str,  # its name
        fits: bool,  # whether its value can be used
        expected: str,  # what can, as the end of the sentence '`field` is …'
    ) -> None:
        "Refuse a field's value. For `__post_init__`."
        check_value(field, self.label, getattr(self, field), fits, expected)

    @property
    def label(self) -> str:
        "The spec's kind, for messages."
        return type(self).__name__

    @property
    def taps(self) -> tuple[str | int, ...]:
        "What it reads, always as a tuple."
        return self.tap if isinstance(self.tap, tuple) else (self.tap,)

    @property
    def reads(self) -> tuple[str | int | Level, ...]:
        "What it reads, as the body resolves it: the strides of a tuple are levels, made where the arch has none."
        return read_as(self.tap)

    # what a subclass says

    def build(
        self,
        taps: tuple[TapShape, ...],  # what it reads, in the order of `tap`
    ) -> nn.Module:  # takes the taps' tensors as plain arguments, gives the prediction (B, …)
        "Make the head's module."
        raise HeadsError(f"{self.label} does not say how its module is built: define `build(self, taps)`.")

    def infer_n_out(self, target: Target) -> int | None:
        "Return how many numbers per image the target needs; None where it cannot be told."
        return target.n_out

    # what follows from it

    def fit(
        self,
        target: Target,  # what it is to predict
        labels: Callable[[], Tensor],  # gives the training set's labels, (N, …), missing ones left out
    ) -> Self:  # the spec with all that the target tells filled in
        "Return the spec for one target. Raises `HeadsError` where the two do not fit."
        if self.kinds and target.kind not in self.kinds:
            raise HeadsError(
                f"{self.label} needs a target of kind {' or '.join(sorted(self.kinds))}, "
                f"and target {target.name!r} is of kind {target.kind}."
            )
        needed = self.infer_n_out(target)
        if self.n_out is None and needed is None:
            raise HeadsError(f"`n_out` of {self.label} cannot be inferred from target {target.name!r}: pass `n_out=`.")
        if self.n_out is not None and needed is not None and self.n_out != needed:
            what = f"its vocabulary has {needed}" if target.vocab is not None else f"it needs {needed}"
            raise HeadsError(
                f"`n_out={self.n_out}` of {self.label} contradicts target {target.name!r}: {what}. With a loss of your "
                f"own any number goes: `CustomHead(module, n_out={self.n_out}, loss=…)`."
            )
        return replace(self, n_out=self.n_out if needed is None else needed)

    def to_dict(self) -> dict[str, Any]:
        """Say the spec as a dict that JSON and TOML can hold: its `kind`, and the fields that are not as by default.

        `heads=` takes it in the place of the spec. Raises `HeadsError` for what cannot be said, such as a lambda."""
        return spec_to_dict(self)

    @staticmethod
    def from_dict(
        said: Mapping[str, Any],  # `{'kind': 'classification', 'tap': 'layer3'}`
    ) -> "HeadSpec":
        "Make a spec of what `to_dict` gave. Raises `HeadsError` for a kind or a field that there is not."
        return spec_from_dict(said)

    def task(
        self,
        target: Target,  # what it is fitted to
    ) -> Task:
        "Return what it predicts. The task takes over those attributes of the spec that bear the names of its fields."
        own = (f.name for f in fields(self.predicts) if f.init and f.name != "target" and hasattr(self, f.name))
        return self.predicts(target, **{name: getattr(self, name) for name in own})


def is_metric(
    value: object,  # what the user wrote
) -> bool:
    "Tell whether fastai takes it as a metric."
    return callable(value) or isinstance(value, Metric)


def is_tap(
    value: object,  # what the user wrote
) -> bool:
    "Tell whether it is a name or a whole number."
    return isinstance(value, str | int) and not isinstance(value, bool)


def read_as(
    tap: str | int | tuple[str | int, ...],  # a tap's name, a stride, or a tuple of either
) -> tuple[str | int | Level, ...]:
    "Return what is read, as the body resolves it: the strides of a tuple are levels, made where the arch has none."
    if not isinstance(tap, tuple):
        return (tap,)
    return tuple(Level(t) if isinstance(t, int) else t for t in tap)


def check_weights(
    field: str,  # of the spec
    value: object,  # what the user wrote: a weight for each output, or one for all
    n_out: int,  # how many outputs there are
    target: Target,  # for the message
    positive: bool = False,  # whether every weight is above 0, and one number stands for all
) -> tuple[float, ...]:  # one for each output
    "Refuse what are not finite weights of at least 0, one for each output, of which some count."
    try:
        weights = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        weights = torch.empty(0)
    if positive and weights.ndim == 0:
        weights = weights.expand(n_out)
    fits = weights.shape == (n_out,) and bool((weights.isfinite() & (weights >= 0)).all() and weights.any())
    if not fits or (positive and not weights.all()):
        what = f"is one positive number or {n_out} of them" if positive else f"are {n_out} finite weights of at least 0"
        some = "" if positive else ", one of them above"
        raise HeadsError(f"`{field}` for target {target.name!r} {what}{some}, found {value!r}.")
    return tuple(weights.tolist())
