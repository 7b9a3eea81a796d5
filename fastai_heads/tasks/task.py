"""What a head predicts, apart from how it is built: the public base of all tasks."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from fastai.losses import BCELossFlat, L1LossFlat, MSELossFlat
from fastcore.basics import getcallable
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.kinds import ANSWERS, Answer
from fastai_heads.data.missing import labelled
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.tasks.reduction import (
    counted,
    loss_over,
    mean_of_counted,
    measured_count,
    one_by_one,
    unreduced,
    without_gaps,
    zero_of,
)

__all__ = ["Task", "has_shape"]

_MAKERS = (MSELossFlat, L1LossFlat, BCELossFlat)  # fastai's functions that make a loss, named as its classes are


@dataclass(eq=False)
class Task:
    """What a head predicts, apart from how it is built. A subclass names its loss (`default_loss`). It also says how
    predictions are decoded, measured and shown, where that is not as here. A head names it as `predicts`."""

    target: Target  # what is predicted
    n_out: int | None = None  # numbers per image
    loss: Callable | None = None  # the user's: (pred, target) → a scalar; None: `default_loss`
    loss_func: Callable = field(init=False)  # the loss in use

    blends: ClassVar[bool] = True  # False: the target is a place in the image, which MixUp and CutMix cannot blend
    moves_with_image: ClassVar[bool] = False  # the target is a place: it changes when the image is turned or cut
    by_batch: ClassVar[bool] = False  # its output is activated batch by batch: large, or of another shape each time
    shown_by_fastai: ClassVar[bool] = False  # fastai 2.8's `show_results` can draw it on an image
    near_loss: ClassVar[str | None] = None  # a loss that fits, as a user writes it

    def __post_init__(self) -> None:
        "Make the loss. A subclass that has fields of its own is a dataclass, too."
        self.loss_func = self.make_loss()

    @property
    def answers(self) -> Answer | None:
        "What is said of an item, told by the target's kind; None: no metric and no report of fastai's is for it."
        return ANSWERS.get(self.target.kind)

    # the loss

    def default_loss(self) -> Callable:
        "Return the loss where `loss` is None: (pred, target) → a scalar, with fastai's `activation` and `decodes`."
        raise HeadsError(
            f"{type(self).__name__} has no loss of its own: define `default_loss(self)`, or pass `loss=` to the head."
        )

    def make_loss(self) -> Callable:
        "Return the loss in use: `loss`, made if it is a class, or the default."
        if self.loss is None:
            return self.default_loss()
        return self.loss() if isinstance(self.loss, type) or self.loss in _MAKERS else self.loss

    def with_loss(
        self,
        loss_func: Callable,  # (pred, target) → a scalar
    ) -> Self:
        "Return the same task with another loss in use."
        task = copy(self)
        task.loss_func = loss_func
        return task

    def prepare_target(
        self,
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
    ) -> Tensor:
        "Return the target as the loss takes it. Refuse one that it cannot take."
        return targ

    def train_loss(
        self,
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
    ) -> Tensor:  # a scalar, by the loss's own reduction over what counts; a zero where nothing does
        "Return the value that is trained on."
        if self.answers is Answer.CODES and not self.counted(targ).any():
            return zero_of(pred)
        targ = self.prepare_target(pred, targ)
        known = self.counted(targ) if self.has_gaps else None
        if known is None or known.all():
            return self.loss_func(pred, targ)
        return loss_over(self.loss_func, pred, targ, known)

    def item_loss(
        self,
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
    ) -> Tensor:  # (B,) NaN for an item of which nothing counts, such as a mask of ignored pixels
        """Return the loss of each item, whatever stands beside it: what the loss gives with `reduction='none'`,
        averaged over the item's own numbers, tags or pixels, those that count."""
        targ = self.prepare_target(pred, targ)
        known = self.counted(targ)
        values = unreduced(self.loss_func)(pred, without_gaps(targ, known))
        if values.ndim == 0 and not self.blends:  # its `reduction` does nothing, as of SMP's; for reports alone
            values = one_by_one(self.loss_func, pred, targ)
        if values.numel() == 0 or values.numel() % len(targ):
            raise HeadsError(
                f"the loss of target {self.target.name!r} cannot be told apart by items: it gave {tuple(values.shape)}."
            )
        return mean_of_counted(values, targ, known)

    def loss_count(
        self,
        pred: Tensor,  # (B, …) the module's output, labelled items only
        targ: Tensor,  # (B, …) their targets
        loss: Tensor,  # a scalar, their `train_loss`
    ) -> Tensor | None:  # a scalar; None: of nothing that adds up over batches
        """Return what the loss of a batch is a mean of: labelled numbers or pixels, or the sum of their weights.

        By it the batches of a data loader are averaged. A loss may say so itself, by a method `loss_count(pred,
        targ)`, as those of masks and of boxes do. Where it is None, the mean of the items' losses is taken."""
        own = getattr(self.loss_func, "loss_count", None)
        if own is not None:
            return own(pred, targ)
        return measured_count(lambda heard: self.with_loss(heard).item_loss(pred, targ), self.loss_func, targ, loss)

    # what counts

    def labelled(
        self,
        targ: Tensor,  # (B, …) targets as they come from the batch
    ) -> Tensor:  # (B,) bool
        "Tell which items have a label."
        return labelled(targ)

    def counted(
        self,
        targ: Tensor,  # (B, …) targets
    ) -> Tensor:  # bool, of the target's shape
        "Tell which numbers, tags or pixels of a target count."
        return counted(self.loss_func, targ)

    @property
    def has_gaps(self) -> bool:
        "Whether some tags of an item may be missing and others not."
        return self.answers is Answer.TAGS and self.target.partial

    # the prediction

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        "The shape of one item's prediction, None for a length that is free; None where its module alone decides."
        return None

    def activation(
        self,
        pred: Tensor,  # (B, …) the module's output
    ) -> Tensor:
        "Return the module's output as probabilities, or as it is."
        return getcallable(self.loss_func, "activation")(pred)

    def decode(
        self,
        pred: Tensor,  # (B, …) activated
    ) -> Tensor:
        "Return the activated output in the form of the target."
        return getcallable(self.loss_func, "decodes")(pred)

    def in_form(
        self,
        decoded: Tensor,  # (B, …) from `decode`
    ) -> bool:
        "Tell whether decoded values have the form of the target, so that what made the target can undo it."
        return True

    def empty(self) -> Tensor:
        "Return activated predictions of no item."
        return torch.empty(0, self.n_out)

    # how it is measured and shown

    def default_metrics(self) -> Sequence[Callable]:
        "Return the metrics where the head names none."
        return ()

    def as_updated(
        self,
        pred: Tensor,  # (B, …)
        targ: Tensor,  # (B, …) real numbers
        metric: nn.Module,  # the object
    ) -> Tensor:
        "Return targets as an object of torchmetrics is updated with them: in the shape of the predictions."
        return targ.reshape(pred.shape)

    def flatten_pairs(
        self,
        said: Any,  # decoded predictions of labelled items, an array (N, …)
        truth: Any,  # their targets, likewise
    ) -> tuple[Any, Any]:
        "Return predictions and targets as a report counts them."
        return said, truth

    def number_names(
        self,
        n: int,  # numbers of an item
    ) -> list[str]:
        "Return what the numbers of a target are called."
        return [str(i) for i in range(1, n + 1)]

    @staticmethod
    def align(
        parts: Sequence[Tensor],  # targets of several batches, (B, …) each
    ) -> list[Tensor]:
        "Bring the targets of several batches to shapes that can be joined."
        return list(parts)


def has_shape(
    pred: Tensor,  # (B, …)
    shape: tuple[int | None, ...],  # of one item; None: any length
) -> bool:
    "Tell whether every item of a prediction has a shape."
    return pred.ndim == len(shape) + 1 and all(want in (None, got) for want, got in zip(shape, pred.shape[1:]))
