"""fastai's `MixUp` and `CutMix` over any number of targets: the losses are blended head by head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from torch import Tensor

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.loss import CombinedLoss

__all__ = ["Targets", "batch_losses", "blended_loss", "check_mixing", "combined_loss", "label_counts", "loss_count"]


class Targets(tuple):
    """Several targets of a batch as the one `learn.y` that `MixUp` and `CutMix` know: one size, one order of the
    items."""

    def size(self, dim: int | None = None) -> Any:
        "The first target's, as all have as many items."
        return self[0].size() if dim is None else self[0].size(dim)

    def __getitem__(self, index: Any) -> Any:
        "One target by its place; by a tensor, those items of every target."
        return Targets(t[index] for t in self) if isinstance(index, Tensor) else super().__getitem__(index)


def batch_losses(
    loss_func: Callable,  # `learn.loss_func`: a `CombinedLoss`, or what `MixUp` and `CutMix` put in its place
    preds: tuple[Tensor, ...] | Tensor,  # one per head
    targs: tuple[Tensor, ...],  # one per target
) -> tuple[Tensor, ...]:  # one per head
    "Return each head's loss, not weighted, blended where images are."
    loss, handler = combined_loss(loss_func), _handler(loss_func)
    if handler is None:
        return loss.losses(preds, targs)
    others = _blended_in(handler)
    return tuple(
        blended_loss(head, pred, targs[head.target.index], others[head.target.index], handler.lam)
        for head, pred in loss.pairs(preds)
    )


def label_counts(
    loss_func: Callable,  # as of `batch_losses`
    targs: tuple[Tensor, ...],  # one per target
) -> Tensor:  # (K,) one per head
    "Count the images of a batch that have a label for each head; where images are blended, one of the two is enough."
    return torch.stack([_label_count(loss_func, head, targs) for head in combined_loss(loss_func).heads.values()])


def loss_count(
    loss_func: Callable,  # as of `batch_losses`
    head: BoundHead,  # one of its heads
    pred: Tensor,  # the head's
    targs: tuple[Tensor, ...],  # one per target
    loss: Tensor,  # the head's, a scalar
) -> Tensor:  # a scalar
    """Return what a head's loss of a batch is a mean of: see `Task.loss_count`. Where images are blended, and where
    a loss is of nothing that adds up, it is images."""
    plain = _handler(loss_func) is None
    count = head.loss_count(pred, targs[head.target.index], loss) if plain else None
    return _label_count(loss_func, head, targs) if count is None else count


def _label_count(loss_func: Callable, head: BoundHead, targs: tuple[Tensor, ...]) -> Tensor:
    handler = _handler(loss_func)
    sides = [targs] if handler is None else [targs, _blended_in(handler)]
    return torch.stack([head.labelled(side[head.target.index]) for side in sides]).any(0).sum()


def _blended_in(handler: MixHandler) -> tuple[Tensor, ...]:
    "The targets of the images that were blended in: `MixUp` and `CutMix` keep them in different ways."
    return handler.yb1[0] if isinstance(handler.yb1[0], Targets) else handler.yb1


def combined_loss(
    loss_func: Callable,  # `learn.loss_func`
) -> CombinedLoss:
    "Return the learner's own loss, also while `MixUp` or `CutMix` stand in its place."
    handler = _handler(loss_func)
    return loss_func if handler is None else handler.old_lf


def blended_loss(
    head: BoundHead,  # whose loss it is
    pred: Tensor,  # (B, …) its prediction for the blended images
    targ: Tensor,  # (B, …) the target of the images
    other: Tensor,  # (B, …) the target of the images that were blended in
    share: Tensor,  # (B,) or one for all: what `targ`'s images have of the blend, 0 to 1
) -> Tensor:  # a scalar
    """Return the loss on either target, blended as the images are, over the labelled items. A label that is missing
    takes its share out of the mean. With `mix=False` the loss on the target of the image with the larger share. As in
    fastai, the weights of classes weight the items, and their mean is over the items.

    Source: Zhang et al. 2018 (mixup), sec. 2, in the form of `fastai.callback.mixup.MixHandler.lf`."""
    share = share.to(pred.device)
    if not head.spec.mix:
        larger = (share >= 0.5).view(-1, *[1] * (targ.ndim - 1))
        return head.train_loss(pred, torch.where(larger, targ, other))
    try:
        losses = head.item_loss(pred, other), head.item_loss(pred, targ)
    except HeadsError as error:
        if share.numel() == 1:  # the whole batch is blended alike
            return torch.lerp(head.train_loss(pred, other), head.train_loss(pred, targ), share.to(pred.dtype).squeeze())
        raise HeadsError(
            f"head {head.name!r} cannot be blended item by item: {error} {_remedy(head)}, or use `CutMix`."
        ) from None
    share = share.to(losses[0].dtype)
    if not head.target.partial:
        blended = torch.lerp(*losses, share)
        return blended.sum() if head.sums else blended.mean()
    there = [head.shares(t).to(losses[0].dtype) for t in (other, targ)]
    known = [torch.where(part > 0, loss, 0) * part for loss, part in zip(losses, there)]
    blended, weight = torch.lerp(*known, share).sum(), torch.lerp(*there, share).sum()
    return blended if head.sums else blended / weight.clamp(min=torch.finfo(weight.dtype).tiny)


def check_mixing(
    cbs: Iterable[Callback | type],  # of a fit
    heads: BoundHeads,  # of the learner
) -> None:
    "Refuse to blend what cannot be blended: points, boxes and masks, whose place in the image is what they say."
    names = [_name(cb) for cb in cbs if _is_handler(cb)]
    if len(names) > 1:
        raise HeadsError(f"`cbs`: {' and '.join(names)} cannot both blend the images of a batch. Pass one of them.")
    fixed = [head for head in heads.values() if head.spec.mix and not head.task.blends]
    if names and fixed:
        which = " or ".join(f"{head.name!r} ({head.target.kind})" for head in fixed)
        raise HeadsError(f"`cbs`: {names[0]} cannot blend the target of {which}. {_remedy(*fixed)}.")


def _remedy(*heads: BoundHead) -> str:
    specs = ", ".join(f"{h.name!r}: {h.spec.label}(mix=False)" for h in heads)
    return f"Pass `heads={{{specs}}}` to train on the label of the image with the larger share"


def _handler(loss_func: Callable) -> MixHandler | None:
    "The callback whose method stands in the loss's place."
    owner = getattr(loss_func, "__self__", None)
    return owner if isinstance(owner, MixHandler) else None


def _is_handler(cb: Callback | type) -> bool:
    return issubclass(cb if isinstance(cb, type) else type(cb), MixHandler)


def _name(cb: Callback | type) -> str:
    return (cb if isinstance(cb, type) else type(cb)).__name__
