"""fastai's `MixUp` and `CutMix` over any number of targets: the losses are blended head by head."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from torch import Tensor

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import BoundHead, BoundHeads

__all__ = ["Targets", "blend_loss", "blend_losses", "check_mixing", "find_blend", "find_others"]


class Targets(tuple):
    """Several targets of a batch as the one `learn.y` that `MixUp` and `CutMix` know: one size, one order of the
    items."""

    def size(self, dim: int | None = None) -> Any:
        "Give the first target's size, as all have as many items."
        return self[0].size() if dim is None else self[0].size(dim)

    def __getitem__(self, index: Any) -> Any:
        "Give one target by its place; by a tensor, those items of every target."
        return Targets(t[index] for t in self) if isinstance(index, Tensor) else super().__getitem__(index)


def find_blend(
    loss_func: Callable,  # `learn.loss_func`
) -> MixHandler | None:
    "Return the callback whose method stands in the loss's place, if there is one."
    owner = getattr(loss_func, "__self__", None)
    return owner if isinstance(owner, MixHandler) else None


def find_others(
    blend: MixHandler,  # of a batch
) -> tuple[Tensor, ...]:  # one per target
    "Return the targets of the images that were blended in: `MixUp` and `CutMix` keep them in different ways."
    return blend.yb1[0] if isinstance(blend.yb1[0], Targets) else blend.yb1


def blend_losses(
    blend: MixHandler,  # of a batch
    preds: tuple[Tensor, ...] | Tensor,  # one per head
    targs: tuple[Tensor, ...],  # one per target
) -> tuple[Tensor, ...]:  # one per head
    "Return each head's loss of blended images, not weighted."
    others = find_others(blend)
    return tuple(
        blend_loss(head, pred, targs[head.target.index], others[head.target.index], blend.lam)
        for head, pred in blend.old_lf.pairs(preds)
    )


def blend_loss(
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
            f"head {head.name!r} cannot be blended item by item: {error} {_remedy(head)}, or use `CutMix`.",
            head=head.name,
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


def _is_handler(cb: Callback | type) -> bool:
    return issubclass(cb if isinstance(cb, type) else type(cb), MixHandler)


def _name(cb: Callback | type) -> str:
    return (cb if isinstance(cb, type) else type(cb)).__name__
