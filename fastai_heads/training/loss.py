"""The losses of the heads, and their sum."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.errors import HeadsError
from fastai_heads.tasks.reduction import loss_modules
from fastai_heads.training.bound import BoundHead, BoundHeads

__all__ = ["CombinedLoss", "loss_name"]


class CombinedLoss(nn.Module):
    """The loss function of a learner with several heads: (predictions, targets) → the sum of the heads' losses, each
    by its `loss_weight`. With `reduction='none'`, one value per item: of the heads that have a label for it."""

    y_int = True  # tells fastai's `MixUp` and `CutMix` to blend losses and to leave targets as they are

    def __init__(self, heads: BoundHeads):
        super().__init__()
        self.heads, self.reduction = heads, "mean"

    def losses(
        self,
        preds: tuple[Tensor, ...] | Tensor,  # one per head, in head order
        targs: tuple[Tensor, ...],  # one per target, in target order
    ) -> tuple[Tensor, ...]:  # one per head: scalars, or (B,) each with `reduction='none'`, NaN without a label
        "Return each head's loss, not weighted."
        pairs = [(h, p, targs[h.target.index]) for h, p in self.pairs(preds)]
        return tuple((h.item_loss if self.reduction == "none" else h.train_loss)(p, t) for h, p, t in pairs)

    def pairs(
        self,
        preds: tuple[Tensor, ...] | Tensor,  # one per head, in head order
    ) -> list[tuple[BoundHead, Tensor]]:
        "Return each head with its prediction."
        preds = preds if isinstance(preds, tuple | list) else (preds,)
        if len(preds) != len(self.heads):
            raise HeadsError(f"the model gave {len(preds)} predictions for {len(self.heads)} heads.")
        return list(zip(self.heads.values(), preds))

    def total(
        self,
        losses: Sequence[Tensor],  # one per head, from `losses`
    ) -> Tensor:
        """Return the sum by the heads' `loss_weight`s. Of an item it is over the heads that have a label for it, and
        NaN where none has."""
        weighted = [loss * h.loss_weight for h, loss in zip(self.heads.values(), losses)]
        if len(weighted) == 1:
            return weighted[0]
        each = torch.stack(weighted)
        return each.sum(0) if each.ndim == 1 else torch.where(each.isnan().all(0), torch.nan, each.nansum(0))

    def forward(self, preds: tuple[Tensor, ...] | Tensor, *targs: Tensor) -> Tensor:
        return self.total(self.losses(preds, targs))

    def activation(
        self,
        preds: tuple[Tensor, ...] | Tensor,  # one per head
    ) -> tuple[Tensor, ...]:  # one per head
        "Activate every prediction as its head does."
        preds = preds if isinstance(preds, tuple | list) else (preds,)
        return tuple(h.activation(p) for h, p in zip(self.heads.values(), preds))

    def decodes(
        self,
        preds: tuple[Tensor, ...],  # activated, one per head
    ) -> tuple[Tensor, ...]:  # one per deciding head
        "Return every activated prediction in the form of its target; auxiliary heads decode nothing."
        return tuple(h.decode(p) for h, p in zip(self.heads.values(), preds) if not h.spec.train_only)

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        "Move the weights inside the heads' losses, too (`class_weights`, `pos_weight`)."
        for head in self.heads.values():
            for module in loss_modules(head.loss_func):
                module._apply(fn)
        return super()._apply(fn, recurse)

    def __repr__(self) -> str:
        parts = [f"{h.loss_weight:g} * {h.name} ({loss_name(h.loss_func)})" for h in self.heads.values()]
        return " + ".join(parts)


def loss_name(
    loss_func: Callable,  # a fastai or torch loss, or a function
) -> str:
    "Return what a loss is called, for people."
    modules = loss_modules(loss_func)
    return type(modules[-1]).__name__ if modules else getattr(loss_func, "__name__", type(loss_func).__name__)
