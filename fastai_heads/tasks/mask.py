"""A mask: a code for every pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fastai_heads.data.missing import IGNORE_PIXEL
from fastai_heads.errors import HeadsError
from fastai_heads.tasks.mask_loss import MaskLoss
from fastai_heads.tasks.mask_metrics import BoundaryF1, ForegroundAccuracy, MaskDice, MaskIoU, apply_threshold
from fastai_heads.tasks.task import Task

__all__ = ["MaskTask"]


@dataclass(eq=False)
class MaskTask(Task):
    """A mask at the size of the image. Logits (B, n_out, H, W); the target (B, H, W) holds codes, or (B, n_out, H, W) 0
    and 1 where a pixel may have several labels. Pixels of the code `ignore_index` count nowhere."""

    terms: Mapping[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})  # a `MaskLoss`'s
    mode: str = "multiclass"  # codes exclude each other; 'binary': one logit for code 1; 'multilabel': they do not
    class_weights: Sequence[float] | None = None  # (n_out,) for the terms that take them
    ignore_index: int = IGNORE_PIXEL  # the code of a pixel without a label
    threshold: float = 0.5  # a probability, for 'binary' and 'multilabel'
    refine: bool = False  # boundaries are measured, too

    blends: ClassVar[bool] = False
    moves_with_image: ClassVar[bool] = True
    shown_by_fastai: ClassVar[bool] = True
    near_loss: ClassVar[str] = "CrossEntropyLossFlat(axis=1)"

    def default_loss(self) -> Callable:
        return MaskLoss(self.terms, self.mode, self.class_weights, self.ignore_index)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        "A channel per code, at any size."
        return (self.n_out, None, None)

    def default_metrics(self) -> Sequence[Callable]:
        reading = {"mode": self.mode, "threshold": self.threshold, "ignore_index": self.ignore_index}
        found = [MaskIoU(**reading), MaskDice(**reading), ForegroundAccuracy(**reading)]
        return [*found, BoundaryF1(**reading)] if self.refine else found

    def prepare_target(self, pred: Tensor, targ: Tensor) -> Tensor:
        "Refuse masks of another size, and codes that no channel stands for."
        if targ.shape[-2:] != pred.shape[-2:] or len(targ) != len(pred):
            raise HeadsError(
                f"a mask has the size of its image: the target is {tuple(targ.shape)} for a prediction of "
                f"{tuple(pred.shape)}. Give both the same `item_tfms`, such as `Resize`."
            )
        n = self.n_out if self.mode == "multiclass" else 2
        wrong = targ[(targ != self.ignore_index) & ((targ >= n) | (targ < 0))]
        if wrong.numel():
            codes = ", ".join(map(str, wrong.unique().tolist()[:5]))
            raise HeadsError(
                f"a mask holds codes from 0 to {n - 1}, or {self.ignore_index} for a pixel without a label; found "
                f"{codes}. Name all codes, `MaskBlock(codes=…)`, or map the masks to their places; of several masks "
                "pass `n_out=`, as fastai keeps the codes of one block alone."
            )
        return targ

    def activation(self, pred: Tensor) -> Tensor:
        "Return probabilities."
        return pred.softmax(1) if self.mode == "multiclass" else pred.sigmoid()

    def decode(self, pred: Tensor) -> Tensor:
        "Return codes, in the form of the target."
        return pred.argmax(1) if self.mode == "multiclass" else apply_threshold(pred, self.mode, self.threshold)

    def flatten_pairs(self, said: Any, truth: Any) -> tuple[Any, Any]:
        "Return the labelled pixels, in a row."
        there = truth.reshape(-1) != IGNORE_PIXEL
        return said.reshape(-1)[there], truth.reshape(-1)[there]
