"""Several labels per image, each by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.spec import check_weights, is_number
from fastai_heads.tasks.multilabel import MultiLabelTask

__all__ = ["MultiLabelHead"]


@dataclass(frozen=True, kw_only=True)
class MultiLabelHead(PooledSpec):
    """Any number of labels of a vocabulary, by a sigmoid each. Logits (B, n_out), target (B, n_out) of 0 and 1."""

    threshold: float = 0.5  # a label is predicted where its probability is above
    pos_weight: Sequence[float] | Tensor | float | None = None  # (n_out,) or one for all: weight of a present label

    kinds: ClassVar[frozenset[str]] = frozenset({"multilabel"})
    predicts: ClassVar[type[MultiLabelTask]] = MultiLabelTask

    def __post_init__(self) -> None:
        super().__post_init__()
        probability = is_number(self.threshold, below=1) and self.threshold > 0
        self.check("threshold", probability, "a probability between 0 and 1")
        if self.loss is not None and self.pos_weight is not None:
            raise HeadsError(
                f"`pos_weight` of {self.label} belongs to its own loss: with `loss=`, give it to that loss."
            )

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "Fit as every head does, with `pos_weight` brought to one weight per label."
        spec = super().fit(target, labels)
        if spec.pos_weight is None:
            return spec
        return replace(spec, pos_weight=check_weights("pos_weight", spec.pos_weight, spec.n_out, target, positive=True))
