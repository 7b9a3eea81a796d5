"""One step: what a batch gives, each head's loss of it, their sum, and what trains. Over all ranks it is one batch."""

from collections.abc import Callable, Sequence

import torch
from fastai.learner import Learner
from torch import Tensor

from fastai_heads.training.bound import BoundHead
from fastai_heads.training.loss import CombinedLoss
from fastai_heads.training.mixing import blend_losses, find_blend, find_others
from fastai_heads.training.ranks.exchange import sum_over_ranks
from fastai_heads.training.ranks.joint import JointBatch, SharedLoader

__all__ = [
    "batch_losses",
    "combined_loss",
    "count_labels",
    "loss_count",
    "measure_batch",
    "read_labels",
    "read_loss",
    "read_measure",
    "run_batch",
    "share_losses",
    "take_losses",
]


def run_batch(
    learn: Learner,  # a `MultiHeadLearner`, with `xb` and `yb`
) -> None:
    "Predict a batch, take its losses, and in training go back from the strategy's objective and step."
    learn.pred = learn.strategy.predict(learn) if learn.training else learn.model(*learn.xb)
    learn("after_pred")
    if len(learn.yb):
        take_losses(learn)
        learn.loss_grad = learn.strategy.objective(learn) if learn.training else learn.loss.clone()
    learn("after_loss")
    if learn.training and len(learn.yb):
        learn._do_grad_opt()


def take_losses(
    learn: Learner,  # a `MultiHeadLearner`, after a prediction
) -> None:
    "Set `head_losses`, each head's loss of this batch, and `loss`, their sum without a graph."
    learn.head_losses = batch_losses(learn.loss_func, learn.pred, learn.yb)
    learn.loss = combined_loss(learn.loss_func).total([loss.detach().float() for loss in learn.head_losses])


def batch_losses(
    loss_func: Callable,  # `learn.loss_func`: a `CombinedLoss`, or what `MixUp` and `CutMix` put in its place
    preds: tuple[Tensor, ...] | Tensor,  # one per head
    targs: tuple[Tensor, ...],  # one per target
) -> tuple[Tensor, ...]:  # one per head
    "Return each head's loss, not weighted, blended where images are."
    if isinstance(loss_func, CombinedLoss):
        return loss_func.losses(preds, targs)
    return blend_losses(find_blend(loss_func), preds, targs)


def combined_loss(
    loss_func: Callable,  # `learn.loss_func`
) -> CombinedLoss:
    "Return the learner's own loss, also while `MixUp` or `CutMix` stand in its place."
    if isinstance(loss_func, CombinedLoss):
        return loss_func
    blend = find_blend(loss_func)
    return loss_func if blend is None else blend.old_lf


def count_labels(
    loss_func: Callable,  # as of `batch_losses`
    targs: tuple[Tensor, ...],  # one per target
) -> Tensor:  # (K,) one per head
    "Count the images of a batch that have a label for each head; where images are blended, one of the two is enough."
    return torch.stack([_count_label(loss_func, head, targs) for head in combined_loss(loss_func).heads.values()])


def _count_label(loss_func: Callable, head: BoundHead, targs: tuple[Tensor, ...]) -> Tensor:
    blend = find_blend(loss_func)
    sides = [targs] if blend is None else [targs, find_others(blend)]
    return torch.stack([head.labelled(side[head.target.index]) for side in sides]).any(0).sum()


def loss_count(
    loss_func: Callable,  # as of `batch_losses`
    head: BoundHead,  # one of its heads
    pred: Tensor,  # the head's
    targs: tuple[Tensor, ...],  # one per target
    loss: Tensor,  # the head's, a scalar
) -> Tensor:  # a scalar
    """Return what a head's loss of a batch is a mean of: see `Task.loss_count`. Where images are blended, and where
    a loss is of nothing that adds up, it is images."""
    plain = find_blend(loss_func) is None
    count = head.loss_count(pred, targs[head.target.index], loss) if plain else None
    return _count_label(loss_func, head, targs) if count is None else count


def share_losses(
    learn: Learner,  # a `MultiHeadLearner`, after a prediction
    losses: Sequence[Tensor],  # one per head
) -> tuple[Tensor, ...]:  # one per head
    """Scale the heads' losses for distributed training: their mean over all ranks is then the loss of the joined
    batches. Each loss is multiplied by this rank's share of what it is a mean of."""
    if learn.ranks == 1:
        return tuple(losses)
    pairs = zip(combined_loss(learn.loss_func).pairs(learn.pred), losses)
    own = torch.stack([loss_count(learn.loss_func, *pair, learn.yb, loss).double() for pair, loss in pairs])
    whole = sum_over_ranks(own)
    adds = torch.tensor([head.sums for head in learn.heads.values()], device=own.device)
    shares = torch.where(adds, 1.0, own / whole.masked_fill(whole == 0, 1)) * learn.ranks
    return tuple(loss * share.to(loss.dtype) for loss, share in zip(losses, shares))


def read_loss(
    learn: Learner,  # after a batch; fastai's own has one head
    place: int,  # of a head among the losses
) -> Tensor:  # a scalar without a graph
    "Return one head's loss of the batch over all ranks."
    joint, own = _joint(learn), _own_losses(learn)[place].detach()
    return own if joint is None else joint.losses[place].to(own.dtype)


def read_measure(
    learn: Learner,  # after a batch; fastai's own has one head
    head: BoundHead,  # one of its heads
    place: int,  # its place among the losses
) -> tuple[Tensor, Tensor]:  # scalars: a sum, and how much it is the sum of
    "Return one head's loss of the batch over all ranks such that batches can be joined."
    joint = _joint(learn)
    return measure_batch(learn, head, place) if joint is None else (joint.sums[place], joint.counts[place])


def read_labels(
    learn: Learner,  # after a batch
    head: BoundHead,  # one of its heads
    place: int,  # its place among the losses
) -> Tensor | int:  # a scalar on the batch's device where it had to be counted
    "Return how many items of the batch have a label for one head over all ranks."
    joint, targ = _joint(learn), learn.yb[head.target.index]
    if joint is not None:
        return joint.labels[place]
    return head.labelled(targ).sum() if head.target.partial else len(targ)


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


def _joint(learn: Learner) -> JointBatch | None:
    "Return what the batch is over all ranks; None where this process has all of it."
    return learn.dl.joint if isinstance(learn.dl, SharedLoader) else None


def _own_losses(learn: Learner) -> Sequence[Tensor]:
    "Return each head's loss; fastai's own learner has one."
    return getattr(learn, "head_losses", None) or (learn.loss,)
