"""What a batch is over all ranks of a distributed run: losses, labels, predictions. One process is the whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import find_bs, rank_distrib
from torch import Tensor

from fastai_heads.data.detection import same_count
from fastai_heads.data.targets import Target
from fastai_heads.training.across import sum_over_ranks
from fastai_heads.training.bound import BoundHead

__all__ = [
    "JointBatch",
    "is_joined",
    "joined",
    "joined_target",
    "joint_batch",
    "seen_items",
    "seen_labels",
    "seen_loss",
    "speaks",
    "whole_item_losses",
]


@dataclass(frozen=True)
class JointBatch:
    "The batches of all ranks as one."

    losses: Tensor  # (K,) each head's loss over the labelled items of all ranks
    counts: Tensor  # (K,) how many of them there are
    items: Tensor  # () all items


def joint_batch(
    losses: Sequence[Tensor],  # K, of this rank: a scalar each, or one value per item
    counts: Tensor,  # (K,) how many labels each is of
    items: int,  # of this rank
) -> JointBatch:
    "The same on every rank, by one exchange. A head's losses are averaged by the labels that each rank has for it."
    means = torch.stack([loss.detach().mean().double() for loss in losses])
    counts = counts.to(means)
    sums = torch.where(counts > 0, means * counts, 0.0)  # of no item the mean is NaN
    whole = sum_over_ranks(torch.cat([sums, counts, means.new_tensor([items])]))
    sums, counts = whole[:-1].chunk(2)
    return JointBatch(sums / counts.clamp(min=1), counts.long(), whole[-1].long())


def seen_loss(
    learn: Learner,  # with `heads`, after a batch
    place: int,  # of one of them among the losses
) -> Tensor:  # a scalar without a graph
    "One head's loss of the batch over all ranks."
    batch, own = getattr(learn, "joint_batch", None), learn.head_losses[place].detach()
    return own.mean() if batch is None else batch.losses[place].to(own.dtype)


def seen_labels(
    learn: Learner,  # with `heads`, after a batch
    head: BoundHead,  # one of them
    place: int,  # its place among the losses
) -> Tensor | int:  # a scalar on the batch's device where it had to be counted
    "How many labels the batch has for one head over all ranks."
    batch = getattr(learn, "joint_batch", None)
    if batch is not None:
        return batch.counts[place]
    targ = learn.yb[head.target.index]
    return head.labelled(targ).sum() if head.target.partial else len(targ)


def seen_items(
    learn: Learner,  # after a batch
) -> int:
    "How many items the batch has over all ranks."
    batch = getattr(learn, "joint_batch", None)
    return find_bs(learn.yb) if batch is None else int(batch.items)


def whole_item_losses(
    learn: Learner,  # after a batch whose losses are per item
) -> tuple[Tensor, ...]:  # K, of this rank
    """The losses per item, scaled to the batch over all ranks: where labels are missing, their mean is the loss over
    the labelled items of the whole batch and not of this rank's."""
    batch = getattr(learn, "joint_batch", None)
    if batch is None:
        return learn.head_losses
    return tuple(
        loss * _scale(head, learn.yb[head.target.index], batch.items / count.clamp(min=1))
        for head, loss, count in zip(learn.heads.values(), learn.head_losses, batch.counts)
    )


def _scale(head: BoundHead, targ: Tensor, whole: Tensor) -> float:
    mask = head.labelled(targ)
    return float(whole * mask.sum() / len(mask)) if mask.any() else 1.0


def is_joined(
    learn: Learner,  # within a batch
) -> bool:
    "Whether the ranks have their parts of one batch."
    return hasattr(getattr(learn, "dl", None), "joined")


def speaks(
    learn: Learner,  # within a batch
) -> bool:
    "Whether this process speaks and writes for all that have a part of the batch."
    return not (is_joined(learn) and rank_distrib())


def joined(
    learn: Learner,  # within a batch
    tensors: Any,  # a tensor whose first axis counts the items of this rank, or tuples of such
) -> Any:  # detached, where there are several ranks on all of them alike
    "The items of all ranks, in order."
    return learn.dl.to_detach(tensors, cpu=False) if is_joined(learn) else tensors


def joined_target(
    learn: Learner,  # within a batch
    target: Target,  # which target it is
    targ: Tensor,  # (B, …) of this rank
) -> Tensor:
    "As `joined`; of boxes the ranks have their own number of rows."
    if not is_joined(learn):
        return targ
    return learn.dl.joined(targ.detach(), same_count if target.kind == "detection" else list)
