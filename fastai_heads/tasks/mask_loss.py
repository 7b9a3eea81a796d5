"""Losses of masks: cross-entropy, Dice, focal, Lovász, and their sums, blind to pixels without a label."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastai_heads.data.missing import IGNORE_PIXEL
from fastai_heads.tasks.smp import smp

__all__ = ["MASK_LOSSES", "MODES", "WEIGHTED", "MaskLoss"]

MODES = ("multiclass", "binary", "multilabel")
_SMP = {"dice": "DiceLoss", "focal": "FocalLoss", "lovasz": "LovaszLoss"}
MASK_LOSSES = ("cross_entropy", *_SMP)
WEIGHTED = ("cross_entropy", "dice", "focal")  # those that take class weights


class MaskLoss(nn.Module):
    """A weighted sum of losses on logits (B, C, H, W) and codes (B, H, W), or 0 and 1 (B, C, H, W) for several labels.

    Cross-entropy is torch's (binary: with logits), the others are segmentation_models_pytorch's; a pixel of the code
    `ignore_index` counts in none. With `reduction='none'` it has a value for each image: cross-entropy is averaged over
    the image's labelled pixels, the others are of the image by itself."""

    def __init__(
        self,
        terms: Mapping[str, float],  # name, a key of `MASK_LOSSES` → its weight
        mode: str = "multiclass",  # one of `MODES`
        class_weights: Sequence[float] | None = None,  # (C,) for the terms in `WEIGHTED`, of exclusive codes
        ignore_index: int = IGNORE_PIXEL,  # the code of a pixel without a label
    ):
        super().__init__()
        self.terms, self.mode, self.ignore_index = dict(terms), mode, ignore_index
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.losses = nn.ModuleDict({name: self._smp(name, class_weights) for name in terms if name in _SMP})

    def _smp(self, name: str, class_weights: Sequence[float] | None) -> nn.Module:
        "SMP's loss. Its focal and Lovász losses of several labels cannot leave pixels out, and the binary ones can."
        one_by_one = name != "dice" and self.mode == "multilabel"
        options = {"class_weights": list(class_weights)} if class_weights is not None and name in WEIGHTED else {}
        mode = "binary" if one_by_one else self.mode
        return getattr(smp("losses"), _SMP[name])(mode, ignore_index=self.ignore_index, **options)

    def forward(
        self,
        pred: Tensor,  # (B, C, H, W) logits
        targ: Tensor,  # (B, H, W) codes, or (B, C, H, W)
        reduction: str = "mean",  # or 'none'
    ) -> Tensor:  # a scalar, or (B,), NaN for an image without a labelled pixel
        pred, targ = pred.as_subclass(Tensor), targ.as_subclass(Tensor).long()
        if reduction == "none":
            return torch.stack([self._of_image(p[None], t[None]) for p, t in zip(pred, targ)])
        known = targ != self.ignore_index
        if not known.any():
            return pred.sum() * 0  # a zero that keeps the graph
        return self._sum(pred, targ, known, self._cross_entropy)

    def loss_count(
        self,
        pred: Tensor,  # (B, C, H, W) logits
        targ: Tensor,  # (B, H, W) codes, or (B, C, H, W)
    ) -> Tensor | None:
        """Return what the loss is a mean of: labelled pixels, or in weighted cross-entropy the sum of their weights.

        None where it is no mean over pixels: Dice, Lovász, and a sum of losses."""
        if list(self.terms) not in (["cross_entropy"], ["focal"]):
            return None
        targ = targ.as_subclass(Tensor).long()
        known = targ[targ != self.ignore_index]
        weighted = self.class_weights is not None and "cross_entropy" in self.terms
        return self.class_weights[known].sum() if weighted else torch.tensor(known.numel(), device=targ.device)

    def _of_image(self, pred: Tensor, targ: Tensor) -> Tensor:
        known = targ != self.ignore_index
        return self._sum(pred, targ, known, self._unweighted_mean) if known.any() else pred.sum() * torch.nan

    def _sum(self, pred: Tensor, targ: Tensor, known: Tensor, cross_entropy: Callable[..., Tensor]) -> Tensor:
        parts = [
            (cross_entropy(pred, targ, known) if name == "cross_entropy" else self.losses[name](pred, targ)) * weight
            for name, weight in self.terms.items()
        ]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def _cross_entropy(self, pred: Tensor, targ: Tensor, known: Tensor) -> Tensor:
        if self.mode == "multiclass":
            return F.cross_entropy(pred, targ, self.class_weights, ignore_index=self.ignore_index)
        known, targ = known.view(pred.shape), targ.view(pred.shape)
        return F.binary_cross_entropy_with_logits(pred[known], targ[known].to(pred.dtype))

    def _unweighted_mean(self, pred: Tensor, targ: Tensor, known: Tensor) -> Tensor:
        "Cross-entropy over the number of pixels and not over their weights: what it is without a reduction, averaged."
        if self.class_weights is None:
            return self._cross_entropy(pred, targ, known)
        values = F.cross_entropy(pred, targ, self.class_weights, ignore_index=self.ignore_index, reduction="none")
        return values[known].mean()
