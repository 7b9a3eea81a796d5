"""Several labels per image, each by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import accuracy_multi
from torch import Tensor
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.spec import check_weights, is_number

__all__ = ["MultiLabelHead"]


@dataclass(frozen=True, kw_only=True)
class MultiLabelHead(PooledSpec):
    """Any number of labels of a vocabulary, by a sigmoid each. Logits (B, n_out), target (B, n_out) of 0 and 1."""

    threshold: float = 0.5  # a label is predicted where its probability is above
    pos_weight: Sequence[float] | Tensor | float | None = None  # (n_out,) or one for all: weight of a present label

    kinds: ClassVar[frozenset[str]] = frozenset({"multilabel"})

    def __post_init__(self) -> None:
        super().__post_init__()
        probability = is_number(self.threshold, below=1) and self.threshold > 0
        self.check("threshold", probability, "a probability between 0 and 1")
        if self.loss is not None and self.pos_weight is not None:
            raise HeadsError(
                f"`pos_weight` of {self.label} belongs to its own loss: with `loss=`, give it to that loss."
            )

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "As for every head, with `pos_weight` brought to one weight per label."
        spec = super().fit(target, labels)
        if spec.pos_weight is None:
            return spec
        return replace(spec, pos_weight=check_weights("pos_weight", spec.pos_weight, spec.n_out, target, positive=True))

    def default_loss(self) -> Callable:
        weight = None if self.pos_weight is None else torch.tensor(self.pos_weight)
        return BCEWithLogitsLossFlat(pos_weight=weight, thresh=self.threshold)

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "By the loss where it is fastai's, else a sigmoid: torch's losses and plain functions take logits."
        return super().activation(loss_func, pred) if hasattr(loss_func, "activation") else pred.sigmoid()

    def decode(self, loss_func: Callable, pred: Tensor) -> Tensor:
        return pred > self.threshold

    def default_metrics(self) -> Sequence[Callable]:
        return (partial(accuracy_multi, thresh=self.threshold),)
