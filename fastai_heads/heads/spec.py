"""What every head says of itself: the public base of all specs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, ClassVar

import torch
from fastai.losses import BaseLoss
from fastcore.basics import getcallable
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.missing import labelled
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError

__all__ = ["HeadSpec", "TapShape", "weights_of"]


@dataclass(frozen=True)
class TapShape:
    "What a head knows of a tap when its module is built."

    name: str  # the tap's canonical name, or a trunk's
    channels: int  # channels of the map, or width of the vector
    stride: int | None  # input pixels per cell; None: a vector (B, channels)


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

    kinds: ClassVar[frozenset[str]] = frozenset()  # the kinds of target that fit; empty: any

    def __post_init__(self) -> None:
        "Refuse what no head can mean. Subclasses that check more call this first."
        for field in ("loss_weight", "lr_mult"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not isfinite(value) or value < 0:
                raise HeadsError(f"`{field}` of {self.label} is a finite number of at least 0, found {value!r}.")
        if self.n_out is not None and (not isinstance(self.n_out, int) or self.n_out < 1):
            raise HeadsError(f"`n_out` of {self.label} is a whole number of at least 1, found {self.n_out!r}.")
        self._check_tap()
        if self.loss is not None and not callable(self.loss):
            raise HeadsError(f"`loss` of {self.label} is a function of (pred, target), found {self.loss!r}.")

    def _check_tap(self) -> None:
        taps = self.taps
        if not taps or not all(isinstance(t, str | int) and not isinstance(t, bool) for t in taps):
            raise HeadsError(
                f"`tap` of {self.label} is a tap's name, a stride, or a tuple of either, found {self.tap!r}."
            )

    @property
    def label(self) -> str:
        "The spec's kind, for messages."
        return type(self).__name__

    @property
    def taps(self) -> tuple[str | int, ...]:
        "What it reads, always as a tuple."
        return self.tap if isinstance(self.tap, tuple) else (self.tap,)

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
            raise HeadsError(f"`n_out={self.n_out}` of {self.label} contradicts target {target.name!r}: {what}.")
        return replace(self, n_out=self.n_out if needed is None else needed)

    def loss_func(self) -> Callable:
        "The loss in use: `loss`, made if it is a class, or the kind's default."
        if self.loss is None:
            return self.default_loss()
        return self.loss() if isinstance(self.loss, type) else self.loss

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
    ) -> Tensor:  # (B,) one value per item, their mean the trained value where the loss is separable
        "The value per item, for reports."
        per_item = _not_reduced(loss_func)(pred, targ)
        if per_item.numel() == 0 or per_item.numel() % len(targ):
            raise HeadsError(
                f"the loss of {self.label} cannot be told apart by items: it gave {tuple(per_item.shape)}."
            )
        per_item = per_item.view(len(targ), -1).mean(1)
        mean, whole = per_item.mean(), self.train_loss(loss_func, pred, targ)
        return per_item * (whole / mean) if mean != 0 and torch.isfinite(whole / mean) else per_item

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "The module's output as probabilities, or as it is."
        return getcallable(loss_func, "activation")(pred)

    def decode(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "The activated output in the form of the target."
        return getcallable(loss_func, "decodes")(pred)

    def mask(
        self,
        targ: Tensor,  # (B, …) targets as they come from the batch
    ) -> Tensor:  # (B,) bool
        "True where an item has a label."
        return labelled(targ)


def _not_reduced(loss_func: Callable) -> Callable:
    "`loss_func` with `reduction='none'`, whichever way it takes it; its own reduction is back after the call."
    if not hasattr(loss_func, "reduction"):
        return partial(loss_func, reduction="none")

    def one_by_one(pred: Tensor, targ: Tensor) -> Tensor:
        own, loss_func.reduction = loss_func.reduction, "none"
        try:
            return loss_func(pred, targ)
        finally:
            loss_func.reduction = own

    return one_by_one


def weights_of(
    loss_func: Callable,  # a fastai or torch loss, or one that wraps another as `.loss_func`
) -> list[nn.Module]:  # outermost first
    "The modules inside a loss, whose tensors must stand on the predictions' device."
    found = [loss_func] if isinstance(loss_func, nn.Module) else []
    inner = loss_func.func if isinstance(loss_func, BaseLoss) else getattr(loss_func, "loss_func", None)
    return found + (weights_of(inner) if inner is not None else [])
