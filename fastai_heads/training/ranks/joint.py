"""What a batch is over all ranks of a distributed run: losses, labels, items. One process is the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.torch_core import rank_distrib
from torch import Tensor

from fastai_heads.training.bound import BoundHead
from fastai_heads.training.ranks.exchange import sum_over_ranks

__all__ = [
    "JointBatch",
    "SharedLoader",
    "gather_items",
    "gather_target",
    "is_shared",
    "join_batch",
    "over_counts",
    "speaks",
]


@dataclass(frozen=True)
class JointBatch:
    "The batches of all ranks as one."

    losses: Tensor  # (K,) each head's loss over what counts on all ranks
    sums: Tensor  # (K,) the same as a sum, as `BoundHead.measure` gives it
    counts: Tensor  # (K,) how much it is the sum of
    labels: Tensor  # (K,) how many items have a label


class SharedLoader:
    """A data loader that gives every rank a part of the items. The parts of the ranks' n-th batches are one batch.

    It is no `ABC`: the `__slots__` of that one keep fastai's `store_attr` from its work."""

    dl: DataLoader  # of the whole data
    own_items: int  # how many items of the current batch are this rank's, and no other's
    joint: JointBatch | None = None  # what the current batch is over all ranks, once its losses are known

    def join(
        self,
        tensor: Tensor,  # (B, …) of the current batch, without a graph
        alike: Callable[[list[Tensor]], list[Tensor]] = list,  # gives the ranks' tensors one shape, but for the items
    ) -> Tensor:  # one row per item, the same on all ranks
        "Join the items of all ranks, in order."
        raise NotImplementedError


def join_batch(
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


def is_shared(
    learn: Learner,  # within a batch, or outside of one
) -> bool:
    "Tell whether the ranks have their parts of one batch."
    return isinstance(getattr(learn, "dl", None), SharedLoader)


def speaks(
    learn: Learner,  # within a batch
) -> bool:
    "Tell whether this process speaks and writes for all that have a part of the batch."
    return not (is_shared(learn) and rank_distrib())


def gather_items(
    learn: Learner,  # within a batch
    tensors: Any,  # a tensor whose first axis counts the items of this rank, or tuples of such
) -> Any:  # detached, where there are several ranks on all of them alike
    "Join the items of all ranks, in order."
    return learn.dl.to_detach(tensors, cpu=False) if is_shared(learn) else tensors


def gather_target(
    learn: Learner,  # within a batch
    align: Callable[[list[Tensor]], list[Tensor]],  # brings the ranks' parts to shapes that can be joined
    targ: Tensor,  # (B, …) of this rank
) -> Tensor:
    "Join the target of the items of all ranks."
    if not is_shared(learn):
        return targ
    return learn.dl.join(targ.detach(), align)
