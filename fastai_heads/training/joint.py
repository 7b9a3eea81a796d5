"""What a batch is over all ranks of a distributed run: losses, labels, predictions. One process is the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import rank_distrib
from torch import Tensor

from fastai_heads.training.across import sum_over_ranks
from fastai_heads.training.bound import BoundHead
from fastai_heads.training.mixing import loss_count

__all__ = [
    "JointBatch",
    "is_joined",
    "joined",
    "joined_target",
    "joint_batch",
    "measure_batch",
    "over_counts",
    "seen_labels",
    "seen_loss",
    "seen_measure",
    "speaks",
]


@dataclass(frozen=True)
class JointBatch:
    "The batches of all ranks as one."

    losses: Tensor  # (K,) each head's loss over what counts on all ranks
    sums: Tensor  # (K,) the same as a sum, as `BoundHead.measure` gives it
    counts: Tensor  # (K,) how much it is the sum of
    labels: Tensor  # (K,) how many items have a label


def joint_batch(
    heads: Sequence[BoundHead],  # K
    measures: Sequence[tuple[Tensor, Tensor]],  # K, of this rank: a sum, and how much it is the sum of
    labels: Tensor,  # (K,) how many items of this rank have a label
) -> JointBatch:
    "Return the same on every rank, by one exchange."
    own = [torch.stack([torch.as_tensor(part).double() for part in parts]) for parts in zip(*measures)]
    sums, counts, labels = sum_over_ranks(torch.cat([*own, labels.to(own[0])])).chunk(3)
    return JointBatch(over_counts(heads, sums, counts), sums, counts, labels.long())


def over_counts(
    heads: Sequence[BoundHead],  # K
    sums: Tensor,  # (K,) of their losses
    counts: Tensor,  # (K,) how much each is the sum of
) -> Tensor:  # (K,)
    "Return the losses as each head has them: as means, or as sums where its loss adds up."
    whole = torch.tensor([head.sums for head in heads], device=counts.device) | (counts == 0)
    return sums / counts.masked_fill(whole, 1)


def seen_loss(
    learn: Learner,  # after a batch; fastai's own has one head
    place: int,  # of a head among the losses
) -> Tensor:  # a scalar without a graph
    "Return one head's loss of the batch over all ranks."
    batch, own = getattr(learn, "joint_batch", None), _own_losses(learn)[place].detach()
    return own if batch is None else batch.losses[place].to(own.dtype)


def seen_measure(
    learn: Learner,  # after a batch; fastai's own has one head
    head: BoundHead,  # one of its heads
    place: int,  # its place among the losses
) -> tuple[Tensor, Tensor]:  # scalars: a sum, and how much it is the sum of
    "Return one head's loss of the batch over all ranks such that batches can be joined."
    batch = getattr(learn, "joint_batch", None)
    if batch is not None:
        return batch.sums[place], batch.counts[place]
    return measure_batch(learn, head, place)


def measure_batch(
    learn: Learner,  # after a batch; fastai's own has one head
    head: BoundHead,  # one of its heads
    place: int,  # its place among the losses
) -> tuple[Tensor, Tensor]:  # scalars: a sum, and how much it is the sum of
    "Return one head's loss of this rank's batch such that batches can be joined. In training it is that which trains."
    pred = learn.pred[place] if isinstance(learn.pred, tuple | list) else learn.pred
    loss = _own_losses(learn)[place].detach()
    if not learn.training:
        return head.measure(pred, learn.yb[head.target.index], loss)
    count = loss_count(learn.loss_func, head, pred, learn.yb, loss)
    return torch.where(count > 0, loss * count, 0.0), count


def _own_losses(learn: Learner) -> tuple[Tensor, ...]:
    "Each head's; fastai's own learner has one."
    return getattr(learn, "head_losses", None) or (learn.loss,)


def seen_labels(
    learn: Learner,  # after a batch
    head: BoundHead,  # one of its heads
    place: int,  # its place among the losses
) -> Tensor | int:  # a scalar on the batch's device where it had to be counted
    "Return how many items of the batch have a label for one head over all ranks."
    batch = getattr(learn, "joint_batch", None)
    if batch is not None:
        return batch.labels[place]
    targ = learn.yb[head.target.index]
    return head.labelled(targ).sum() if head.target.partial else len(targ)


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
    align: Callable[[Sequence[Tensor]], list[Tensor]],  # brings the ranks' parts to shapes that can be joined
    targ: Tensor,  # (B, …) of this rank
) -> Tensor:
    "Return the target of all ranks' items, as `joined` does."
    if not is_joined(learn):
        return targ
    return learn.dl.joined(targ.detach(), align)
