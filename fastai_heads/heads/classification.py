"""One class per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.spec import check_weights, is_number
from fastai_heads.tasks.classification import ClassificationTask

__all__ = ["ClassificationHead"]


@dataclass(frozen=True, kw_only=True)
class ClassificationHead(PooledSpec):
    """One class of a vocabulary, by softmax cross-entropy. Logits (B, n_out), target (B,) class indices."""

    label_smoothing: float = 0.0  # Szegedy et al. 2016, as torch's `CrossEntropyLoss` has it
    class_weights: str | Sequence[float] | Tensor | None = None  # (n_out,), or 'balanced': N / (n_out * count)

    kinds: ClassVar[frozenset[str]] = frozenset({"category"})
    predicts: ClassVar[type[ClassificationTask]] = ClassificationTask

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("label_smoothing", is_number(self.label_smoothing, least=0, below=1), "in [0, 1)")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise HeadsError(
                f"`class_weights` of {self.label} is a tensor of one weight per class or 'balanced', "
                f"found {self.class_weights!r}. Did you mean 'balanced'?"
            )
        if self.loss is not None and (self.label_smoothing or self.class_weights is not None):
            raise HeadsError(
                f"`label_smoothing` and `class_weights` of {self.label} belong to its own loss: "
                "with `loss=`, give them to that loss."
            )

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "Fit as every head does, with 'balanced' weights counted on the training set's labels."
        spec = super().fit(target, labels)
        if target.vocab is not None and len(target.vocab) == 1:
            raise HeadsError(
                f"target {target.name!r} is of two classes at least, found {target.vocab[0]!r} alone. Is its column "
                "the right one? A class that no item has is named as `CategoryBlock(vocab=[…])`; "
                f"`heads={{{target.name!r}: None}}` leaves the target out."
            )
        if spec.class_weights is None:
            return spec
        if isinstance(spec.class_weights, str):
            return replace(spec, class_weights=balanced_weights(labels(), spec.n_out, target))
        return replace(spec, class_weights=check_weights("class_weights", spec.class_weights, spec.n_out, target))


def balanced_weights(
    labels: Tensor,  # (N,) class indices
    n_out: int,  # how many classes there are
    target: Target,  # for the message
) -> tuple[float, ...]:  # N / (n_out * count) for each class
    "Weights under which every class counts alike. Source: scikit-learn's `class_weight='balanced'`."
    count = torch.bincount(labels.long().view(-1), minlength=n_out)
    if (count == 0).any():
        empty = [str(target.vocab[i]) if target.vocab else str(i) for i in torch.nonzero(count == 0).view(-1).tolist()]
        raise HeadsError(
            f"`class_weights='balanced'` for target {target.name!r}: the training set has no item of class "
            f"{', '.join(empty)}. Pass a tensor of {n_out} weights."
        )
    return tuple((len(labels) / (n_out * count)).tolist())
