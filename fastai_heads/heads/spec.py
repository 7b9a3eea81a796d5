"""What every head says of itself: the public base of all specs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from fastai.learner import Metric
from fastai.losses import BaseLoss, BCELossFlat, L1LossFlat, MSELossFlat
from fastcore.basics import getcallable
from fastcore.foundation import L
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.archs.records import Level, TapPoint
from fastai_heads.data.missing import labelled
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean, refuse_change
from fastai_heads.heads.reduction import (
    counted,
    mean_of_counted,
    measured_count,
    one_by_one,
    unreduced,
    without_gaps,
)

__all__ = [
    "HeadSpec",
    "TapShape",
    "check_weights",
    "has_shape",
    "is_metric",
    "is_number",
    "is_tap",
    "read_as",
    "weights_of",
]


_MAKERS = (MSELossFlat, L1LossFlat, BCELossFlat)  # fastai's functions that make a loss, named as its classes are


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


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is before it is built: a frozen record. A subclass that says how its module is made from the taps
    (`build`) and which loss it takes (`default_loss`) is a head like any other."""

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
    blends: ClassVar[bool] = True  # False: the target is a place in the image, which MixUp and CutMix cannot blend
    moves_with_image: ClassVar[bool] = False  # the target is a place: it changes when the image is turned or cut
    by_batch: ClassVar[bool] = False  # its output is activated batch by batch: large, or of another shape each time

    def __new__(cls, *_args: Any, **fields: Any) -> Self:
        "Refuses a field that the kind does not have, before Python's own error does, with the nearest right one."
        known = list(cls.__dataclass_fields__)
        for name in fields:
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
        if not fits:
            raise HeadsError(
                f"`{field}` of {self.label} is {expected}, found {getattr(self, field)!r}.", parameter=field
            )

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
        "The head's module."
        raise HeadsError(f"{self.label} does not say how its module is built: define `build(self, taps)`.")

    def default_loss(self) -> Callable:
        "The loss where `loss` is None: (pred, target) → a scalar, with fastai's `activation` and `decodes` if any."
        raise HeadsError(f"{self.label} has no loss of its own: define `default_loss(self)` or pass `loss=`.")

    def default_metrics(self) -> Sequence[Callable]:
        "The metrics where `metrics` is None."
        return ()

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        "The shape of one item's prediction, None for a length that is free; None where its module alone decides."
        return None

    def infer_n_out(self, target: Target) -> int | None:
        "How many numbers per image the target needs; None where it cannot be told."
        return target.n_out

    # what follows from it

    def fit(
        self,
        target: Target,  # what it is to predict
        labels: Callable[[], Tensor],  # gives the training set's labels, (N, …), missing ones left out
    ) -> Self:  # the spec with all that the target tells filled in
        "The spec for one target. Raises `HeadsError` where the two do not fit."
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

    def loss_func(self) -> Callable:
        "The loss in use: `loss`, made if it is a class, or the kind's default."
        if self.loss is None:
            return self.default_loss()
        return self.loss() if isinstance(self.loss, type) or self.loss in _MAKERS else self.loss

    def train_loss(
        self,
        loss_func: Callable,  # from `loss_func()`
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
    ) -> Tensor:  # a scalar, by the loss's own reduction
        "The value that is trained on."
        return loss_func(pred, targ)

    def item_loss(
        self,
        loss_func: Callable,  # from `loss_func()`
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
    ) -> Tensor:  # (B,) NaN for an item of which nothing counts, such as a mask of ignored pixels
        """Return the loss of each item, whatever stands beside it: what the loss gives with `reduction='none'`,
        averaged over the item's own numbers, tags or pixels, those that count."""
        known = counted(loss_func, targ)
        values = unreduced(loss_func)(pred, without_gaps(targ, known))
        if values.ndim == 0 and not self.blends:  # its `reduction` does nothing, as of SMP's; for reports alone
            values = one_by_one(loss_func, pred, targ)
        if values.numel() == 0 or values.numel() % len(targ):
            raise HeadsError(f"the loss of {self.label} cannot be told apart by items: it gave {tuple(values.shape)}.")
        return mean_of_counted(values, targ, known)

    def loss_count(
        self,
        loss_func: Callable,  # from `loss_func()`
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
        loss: Tensor,  # a scalar, their `train_loss`
    ) -> Tensor | None:  # a scalar; None: of nothing that adds up over batches
        """Return what the loss of a batch is a mean of: labelled numbers or pixels, or the sum of their weights.

        By it the batches of a data loader are averaged. A loss may say so itself, by a method `loss_count(pred,
        targ)`, as those of masks and of boxes do. Where it is None, the mean of the items' losses is taken."""
        own = getattr(loss_func, "loss_count", None)
        return measured_count(self.item_loss, loss_func, pred, targ, loss) if own is None else own(pred, targ)

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "The module's output as probabilities, or as it is."
        return getcallable(loss_func, "activation")(pred)

    def decode(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "The activated output in the form of the target."
        return getcallable(loss_func, "decodes")(pred)

    def in_form(
        self,
        decoded: Tensor,  # (B, …) from `decode`
    ) -> bool:
        "Whether decoded values have the form of the target, so that what made the target can undo it."
        return True

    def empty(self) -> Tensor:
        "Activated predictions of no item."
        return torch.empty(0, self.n_out)

    def mask(
        self,
        targ: Tensor,  # (B, …) targets as they come from the batch
    ) -> Tensor:  # (B,) bool
        "True where an item has a label."
        return labelled(targ)


def has_shape(
    pred: Tensor,  # (B, …)
    shape: tuple[int | None, ...],  # of one item; None: any length
) -> bool:
    "Tell whether every item of a prediction has a shape."
    return pred.ndim == len(shape) + 1 and all(want in (None, got) for want, got in zip(shape, pred.shape[1:]))


def is_metric(
    value: object,  # what the user wrote
) -> bool:
    "Tell whether fastai takes it as a metric."
    return callable(value) or isinstance(value, Metric)


def is_tap(
    value: object,  # what the user wrote
) -> bool:
    "Whether it is a name or a whole number."
    return isinstance(value, str | int) and not isinstance(value, bool)


def read_as(
    tap: str | int | tuple[str | int, ...],  # a tap's name, a stride, or a tuple of either
) -> tuple[str | int | Level, ...]:
    "What is read, as the body resolves it: the strides of a tuple are levels, made where the arch has none."
    if not isinstance(tap, tuple):
        return (tap,)
    return tuple(Level(t) if isinstance(t, int) else t for t in tap)


def is_number(
    value: object,  # what the user wrote
    least: float = float("-inf"),  # the smallest that will do
    below: float = float("inf"),  # the first that is too large
) -> bool:
    "Whether it is a finite number, and in range. True and False are none."
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) and least <= value < below


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
        raise HeadsError(f"`{field}` for target {target.name!r} {what}{some}, found {value!r}.", parameter=field)
    return tuple(weights.tolist())


def weights_of(
    loss_func: Callable,  # a fastai or torch loss, or one that wraps another as `.loss_func`
) -> list[nn.Module]:  # outermost first
    "The modules inside a loss, whose tensors must stand on the predictions' device."
    found = [loss_func] if isinstance(loss_func, nn.Module) else []
    inner = loss_func.func if isinstance(loss_func, BaseLoss) else getattr(loss_func, "loss_func", None)
    return found + (weights_of(inner) if inner is not None else [])
