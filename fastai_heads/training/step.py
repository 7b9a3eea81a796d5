"""One step: what a batch gives, each head's loss of it, their sum, and what trains. Over all ranks it is one batch."""

from collections.abc import Callable, Sequence

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.errors import HeadsError
from fastai_heads.tasks.reduction import loss_modules, loss_name
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.mixing import blend_losses, find_blend, find_others
from fastai_heads.training.ranks.exchange import sum_over_ranks
from fastai_heads.training.ranks.joint import JointBatch, SharedLoader

__all__ = [
    "CombinedLoss",
    "as_tuple",
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


def as_tuple(
    preds: Sequence[Tensor] | Tensor,  # one per head; the prediction of one head may stand alone
) -> Sequence[Tensor]:
    "Give predictions as what holds one per head."
    return preds if isinstance(preds, tuple | list) else (preds,)


class CombinedLoss(nn.Module):
    """The loss function of a learner with several heads. It gives the sum of the heads' losses, each times its
    `loss_weight`. With `reduction='none'`, one value per item: of the heads that have a label for it."""

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
        preds = as_tuple(preds)
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
        preds = as_tuple(preds)
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


def run_batch(
    learn: Learner,  # a `MultiHeadLearner`, with `xb` and `yb`
) -> None:
    "Predict a batch, take its losses, and in training go back from the strategy's objective and step."
    learn.pred = _predict(learn)
    learn("after_pred")
    if len(learn.yb):
        take_losses(learn)
        learn.loss_grad = learn.strategy.objective(learn) if learn.training else learn.loss.clone()
    learn("after_loss")
    if learn.training and len(learn.yb):
        learn._do_grad_opt()


def _predict(learn: Learner) -> tuple[Tensor, ...]:
    "Predict the batch. Where the network cannot, its body says which input it is not made for."
    try:
        return learn.strategy.predict(learn) if learn.training else learn.model(*learn.xb)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        get_model(learn.model)[0].check_inputs(learn.xb)
        raise


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
    "Return one head's loss of the batch over all ranks, as a sum and a count by which batches can be joined."
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
    """Return one head's loss of this rank's batch, as a sum and a count by which batches can be joined. In training
    it is that which trains."""
    pred = as_tuple(learn.pred)[place]
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
