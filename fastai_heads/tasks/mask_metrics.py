"""Metrics of masks: IoU, Dice, foreground accuracy and boundary F1, blind to pixels without a label."""

import torch
import torch.nn.functional as F
from fastai.learner import Learner, Metric
from torch import Tensor

from fastai_heads.data.missing import IGNORE_PIXEL

__all__ = ["BoundaryF1", "ForegroundAccuracy", "MaskDice", "MaskIoU", "apply_threshold", "boundary", "codes_of"]


def codes_of(
    pred: Tensor,  # (B, C, H, W) logits
    mode: str = "multiclass",  # 'multiclass': the largest; 'binary', 'multilabel': those above `threshold`
    threshold: float = 0.5,  # a probability
) -> Tensor:  # (B, H, W) codes; (B, C, H, W) of 0 and 1 for several labels
    "Return the masks that logits stand for."
    if mode == "multiclass":
        return pred.argmax(1)
    return apply_threshold(pred.sigmoid(), mode, threshold)


def apply_threshold(
    probability: Tensor,  # (B, C, H, W)
    mode: str,  # 'binary' or 'multilabel'
    threshold: float,  # above it, a pixel is of the code
) -> Tensor:  # (B, H, W), or (B, C, H, W)
    "Return 0 and 1, where codes do not exclude each other."
    above = (probability > threshold).long()
    return above.squeeze(1) if mode == "binary" else above


class _MaskMetric(Metric):
    "Counts over all batches, as a mean of batches would give small objects of some batches more weight."

    higher_is_better = True

    def __init__(
        self,
        mode: str = "multiclass",  # what the logits mean, one of `MODES`
        threshold: float = 0.5,  # of a probability, where codes do not exclude each other
        ignore_index: int = IGNORE_PIXEL,  # the code of a pixel without a label
    ):
        self.mode, self.threshold, self.ignore_index = mode, threshold, ignore_index
        self.reset()

    def reset(self) -> None:
        "Forget what was counted."
        self.counts = None

    def accumulate(self, learn: Learner) -> None:
        "Count a batch."
        targ = learn.y.as_subclass(Tensor).long()
        counts = self.counted(
            codes_of(learn.pred.as_subclass(Tensor), self.mode, self.threshold), targ, learn.pred.shape[1]
        )
        counts = counts.double().cpu()
        self.counts = counts if self.counts is None else self.counts + counts


class MaskDice(_MaskMetric):
    """The mean over the codes of Dice's coefficient, 2 · overlap / (predicted + true); codes that are nowhere do not
    count. Without ignored pixels it is fastai's `DiceMulti`, and with `mode='binary'` its `Dice`."""

    name = "dice"

    def counted(self, pred: Tensor, targ: Tensor, n: int) -> Tensor:
        "(3, C): overlap, predicted, true."
        known = targ != self.ignore_index
        if self.mode == "multilabel":
            pairs = [(pred[:, c] == 1, targ[:, c] == 1, known[:, c]) for c in range(n)]
        else:
            codes = range(n) if self.mode == "multiclass" else [1]
            pairs = [(pred == c, targ == c, known) for c in codes]
        return torch.stack([torch.stack([(p & t & k).sum(), (p & k).sum(), (t & k).sum()]) for p, t, k in pairs], 1)

    @property
    def value(self) -> float | None:
        if self.counts is None:
            return None
        overlap, pred, targ = self.counts
        return self.mean(overlap, pred + targ, pred + targ > 0)

    def mean(self, overlap: Tensor, both: Tensor, there: Tensor) -> float | None:
        "Average over the codes that are there."
        return (2 * overlap[there] / both[there]).mean().item() if there.any() else None


class MaskIoU(MaskDice):
    """The mean over the codes of overlap / union; codes that are nowhere do not count. Without ignored pixels it is
    fastai's `JaccardCoeffMulti`, and with `mode='binary'` its `JaccardCoeff`."""

    name = "iou"

    def mean(self, overlap: Tensor, both: Tensor, there: Tensor) -> float | None:
        return (overlap[there] / (both - overlap)[there]).mean().item() if there.any() else None


class ForegroundAccuracy(_MaskMetric):
    "The share of the pixels of any code but 0 that are predicted right. Source: `fastai.metrics.foreground_acc`."

    name = "foreground_acc"

    def counted(self, pred: Tensor, targ: Tensor, n: int) -> Tensor:
        "(2,): right, all."
        front = (targ != 0) & (targ != self.ignore_index)
        return torch.stack([((pred == targ) & front).sum(), front.sum()])

    @property
    def value(self) -> float | None:
        return None if self.counts is None or not self.counts[1] else (self.counts[0] / self.counts[1]).item()


class BoundaryF1(_MaskMetric):
    """The F1 score of the codes' boundaries: a boundary pixel is right if there is one of the other mask within
    `tolerance` pixels. Boundaries of all codes count alike. Source: Csurka et al. 2013, "What is a good evaluation
    measure for semantic segmentation?", with a square instead of a disc."""

    name = "boundary_f1"

    def __init__(
        self,
        tolerance: int = 1,  # pixels
        mode: str = "multiclass",  # as for the others
        threshold: float = 0.5,
        ignore_index: int = IGNORE_PIXEL,
    ):
        super().__init__(mode, threshold, ignore_index)
        self.tolerance = tolerance

    def counted(self, pred: Tensor, targ: Tensor, n: int) -> Tensor:
        "(4,): boundary pixels predicted that are right, predicted; true that are found, true."
        shape = (-1, 1, *targ.shape[-2:])
        pred, targ = pred.reshape(shape), targ.reshape(shape)
        known = ~_grow(targ == self.ignore_index, 1)  # a boundary with what has no label is none
        edges = [boundary(mask) & known for mask in (pred, targ)]
        near = [_grow(edge, self.tolerance) for edge in edges]
        found = [(edges[0] & near[1]).sum(), edges[0].sum(), (edges[1] & near[0]).sum(), edges[1].sum()]
        return torch.stack(found)

    @property
    def value(self) -> float | None:
        if self.counts is None or not self.counts[1] + self.counts[3]:
            return None
        right, pred, found, true = self.counts.tolist()
        precision, recall = right / pred if pred else 0.0, found / true if true else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(
    mask: Tensor,  # (B, 1, H, W) codes
) -> Tensor:  # (B, 1, H, W) bool
    "Find the pixels that have a neighbour, of eight, of another code."
    x = mask.float()
    return F.max_pool2d(x, 3, 1, 1) != -F.max_pool2d(-x, 3, 1, 1)


def _grow(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask.float(), 2 * by + 1, 1, by) > 0
