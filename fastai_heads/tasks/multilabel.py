"""Any number of labels of a vocabulary, each by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import accuracy_multi
from torch import Tensor, nn

from fastai_heads.errors import HeadsError
from fastai_heads.tasks.task import Task

__all__ = ["MultiLabelTask"]


@dataclass(eq=False)
class MultiLabelTask(Task):
    "Any number of labels of a vocabulary, by a sigmoid each. Logits (B, n_out), target (B, n_out) of 0 and 1."

    threshold: float = 0.5  # a label is predicted where its probability is above
    pos_weight: Sequence[float] | None = None  # (n_out,) weight of a present label

    shown_by_fastai: ClassVar[bool] = True
    near_loss: ClassVar[str] = "BCEWithLogitsLossFlat()"

    def default_loss(self) -> Callable:
        weight = None if self.pos_weight is None else torch.tensor(self.pos_weight)
        return BCEWithLogitsLossFlat(pos_weight=weight, thresh=self.threshold)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        "A logit per label."
        return (self.n_out,)

    def activation(self, pred: Tensor) -> Tensor:
        "Activate by the loss where it is fastai's, else by a sigmoid: torch's losses and plain functions take logits."
        return super().activation(pred) if hasattr(self.loss_func, "activation") else pred.sigmoid()

    def decode(self, pred: Tensor) -> Tensor:
        return pred > self.threshold

    def default_metrics(self) -> Sequence[Callable]:
        return (partial(accuracy_multi, thresh=self.threshold),)

    def as_updated(self, pred: Tensor, targ: Tensor, metric: nn.Module) -> Tensor:
        "Return the labels as whole numbers. Refuse a gap that the metric cannot leave out."
        gaps, ignored = targ.isnan(), getattr(metric, "ignore_index", None)
        if ignored is None and gaps.any():
            raise HeadsError(
                f"`metrics`: some tags of an image are missing, and {type(metric).__name__} counts them all. "
                "Make it with `ignore_index=-1`."
            )
        return targ.masked_fill(gaps, 0 if ignored is None else ignored).long()
