"""What every strategy does in a training step, and the plain sum of the losses, which is the default."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastai.learner import Learner
from fastai.optimizer import _BaseOptimizer
from torch import Tensor, nn

from fastai_heads.training.across import mean_over_ranks, sum_over_ranks, world
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.mixing import combined_loss, label_counts
from fastai_heads.training.optimizer import HeadsOptimizer

__all__ = ["LeafStrategy", "Strategy", "WeightedSum", "shared_losses"]


class Strategy(ABC):
    """How the losses of the heads become one step: the public base, also of a strategy of one's own.

    A subclass says `label`, `weights` and `objective`. For every training batch the learner asks for `predict`,
    `objective` and `backward`, in this order. The other methods are events: they do nothing unless a subclass says
    otherwise. What a strategy learns while training is the module that `module` gives. It is saved with the heads."""

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """After a training step: head → the weight with which its loss went into what is shared; heads without a
        label in the batch are left out."""

    @property
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        "Where the way back from this batch's losses is cut: each tap as the body gives it, and as the heads read it."
        return []

    @property
    @abstractmethod
    def label(self) -> str:
        "What it is called, in a few words."

    def opt_label(
        self,
        opt_func: Callable,  # the learner's
    ) -> str:
        "Say what its optimizer is called."
        return getattr(opt_func, "__name__", type(opt_func).__name__)

    def opt_maker(
        self,
        opt_func: Callable,  # the learner's
    ) -> Callable:  # as a learner's `opt_func`
        "Say what makes its optimizer, or each of several."
        return opt_func

    def module(
        self,
        heads: BoundHeads,  # of the learner
    ) -> nn.Module | None:
        "Make the module that holds what is learned or remembered while training. It stands in `model[1].strategy`."
        return None

    def make_opt(
        self,
        opt_func: Callable,  # what `opt_maker` gave, with fused steps where there are such
        groups: Sequence[Sequence[tuple[Sequence[nn.Parameter], float]]],  # shown group → [(parameters, multiplier), …]
        heads: BoundHeads,  # of the learner
        lr: float | slice,  # the learner's default rate
    ) -> _BaseOptimizer:
        """Make the optimizer where fastai's own will not do: for learning rates by head, or for a strategy that has
        its own."""
        return HeadsOptimizer(opt_func, groups, lr)

    def check(
        self,
        heads: BoundHeads,  # of the learner
    ) -> None:
        "Refuse heads that do not fit, by a `HeadsError`. It is called before a strategy is set, and before a fit."

    def check_model(
        self,
        model: nn.Module,  # the learner's
    ) -> None:
        "Refuse a network that does not fit, by a `HeadsError`. It is called when `check` is."

    def before_fit(self, learn: Learner) -> None:
        "Start anew: a fit begins."

    def before_step(self, learn: Learner) -> None:
        """Finish the gradients of a step. Those of all its batches are there, and neither mixed precision nor clipping
        has looked at them."""

    def after_step(self, learn: Learner) -> None:
        "Take note of a step: the optimizer has moved the parameters."

    def after_train(self, learn: Learner) -> None:
        "Take note of an epoch: its training is over, and its validation comes next."

    @property
    def own_opt(self) -> bool:
        "Whether `make_opt` is needed in any case."
        return False

    def predict(self, learn: Learner) -> Any:
        "Predict a training batch."
        return learn.model(*learn.xb)

    @abstractmethod
    def objective(self, learn: Learner) -> Tensor:
        "Make the scalar that callbacks scale and that `backward` starts from."

    def backward(self, learn: Learner) -> None:
        "Go from `learn.loss_grad` to gradients."
        learn.loss_grad.backward()


class WeightedSum(Strategy):
    "The sum of the losses by the heads' `loss_weight`s: the default."

    def __init__(self):
        self._weights: dict[str, float] = {}

    @property
    def weights(self) -> dict[str, float]:
        "The heads' `loss_weight`s."
        return dict(self._weights)

    def objective(self, learn: Learner) -> Tensor:
        self._weights = {name: head.loss_weight for name, head in learn.heads.items()}
        return combined_loss(learn.loss_func).total(shared_losses(learn, learn.head_losses))

    @property
    def label(self) -> str:
        return "weighted sum"

    def __repr__(self) -> str:
        return "WeightedSum()"


class LeafStrategy(Strategy):
    """A strategy that looks at the losses before it goes back through the network: `learn.loss_grad` is a function of
    their values alone, and callbacks may scale it. How it depends on each loss is that loss's coefficient."""

    def __init__(self):
        self._losses: dict[str, Tensor] = {}
        self._names = self._present = ()
        self._leaf = self._slopes = torch.empty(0)

    @property
    def weights(self) -> dict[str, float]:
        "How the objective of the last step depended on each loss."
        slopes = dict(zip(self._names, self._slopes.tolist()))
        return {name: slopes[name] for name in self._present}

    def objective(self, learn: Learner) -> Tensor:
        "Make the objective of the weighted losses that are present in the batch, alike on all ranks."
        losses = dict(zip(learn.heads.names, shared_losses(learn, learn.head_losses)))
        self._losses, self._names, self._present = losses, learn.heads.names, present_heads(learn)
        leaf = torch.stack([loss.detach() for loss in losses.values()])
        mean_over_ranks([leaf])
        self._leaf = leaf.requires_grad_()
        weighted = {
            name: leaf[place] * learn.heads[name].loss_weight
            for place, name in enumerate(losses)
            if name in self._present
        }
        value = self.combine(weighted) if weighted else self.nothing(leaf)
        self._present = self._present or learn.heads.names  # zeros that keep the graph
        (self._slopes,) = torch.autograd.grad(value, self._leaf, retain_graph=True)
        return value.clone()  # callbacks divide it in place

    def combine(
        self,
        losses: dict[str, Tensor],  # head → its loss, weighted, of those present
    ) -> Tensor:  # a scalar
        "Make one number of several: their sum, unless a subclass says otherwise."
        return torch.stack(list(losses.values())).sum()

    def nothing(
        self,
        losses: Tensor,  # (K,) of a batch without a label for any head
    ) -> Tensor:  # a scalar, of which every loss's gradient is zero
        "Make a number that depends on the losses of a batch in which nothing is labelled."
        return losses.sum()

    def coefficients(self, learn: Learner) -> dict[str, Tensor]:
        "Say what each loss's gradient is multiplied by: weight, loss scale, and share of an accumulated batch."
        (slopes,) = torch.autograd.grad(learn.loss_grad, self._leaf, retain_graph=True)
        return dict(zip(learn.heads.names, slopes))

    def __getstate__(self) -> dict[str, Any]:
        "Leave out the graph of the last batch."
        return {**self.__dict__, "_losses": {}}


def present_heads(learn: Learner) -> tuple[str, ...]:
    "List the heads that have a weight, and a label in this batch on any rank."
    weighted = [name for name, head in learn.heads.items() if head.loss_weight > 0]
    if not any(learn.heads[name].target.partial for name in weighted):
        return tuple(weighted)
    counts = dict(zip(learn.heads.names, sum_over_ranks(label_counts(learn.loss_func, learn.yb)).tolist()))
    return tuple(name for name in weighted if counts[name])


def shared_losses(
    learn: Learner,
    losses: Sequence[Tensor],  # one per head
) -> tuple[Tensor, ...]:  # one per head
    """The heads' losses such that their mean over all ranks is the loss of the ranks' batches joined: where labels
    may be missing, each times this rank's share of the labels."""
    if world() == 1 or not any(head.target.partial for head in learn.heads.values()):
        return tuple(losses)
    counts = label_counts(learn.loss_func, learn.yb)
    shares = counts.double() * world() / sum_over_ranks(counts).clamp(min=1)
    return tuple(loss * share.to(loss.dtype) for loss, share in zip(losses, shares))
