"""The base of all strategies, what tells them the events of training, and the default: the plain sum of the losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.learner import Learner
from fastai.optimizer import _BaseOptimizer
from torch import Tensor, nn

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.optimizer import HeadsOptimizer
from fastai_heads.training.ranks.exchange import mean_over_ranks, sum_over_ranks
from fastai_heads.training.step import combined_loss, count_labels, share_losses

__all__ = ["LeafStrategy", "Strategy", "StrategyCallback", "WeightedSum"]


class Strategy(ABC):
    """The way in which the losses of the heads become one step. It is the base of every strategy, also of your own.

    A subclass defines `label`, `weights` and `objective`, which makes one scalar of `self.losses(learn)`. For every
    training batch the learner calls `predict`, `objective` and `backward`, in this order. The other methods are events:
    they do nothing until a subclass overrides them. A strategy that learns while training keeps what it learns in a
    module, which `module` makes. This module is saved with the heads."""

    fields: ClassVar[tuple[str, ...]] = ()  # what may be set on one of a class that names them itself

    def __setattr__(self, name: str, value: Any) -> None:
        "Refuse what a strategy of this package does not have: it would change nothing."
        known = type(self).__dict__.get("fields")
        if known is not None and name not in known and not name.startswith("_"):
            kind, there = type(self).__name__, ", ".join(known) or "nothing that may be set"
            raise HeadsError(f"`{name}` is no field of {kind}, which has {there}.{did_you_mean(name, known)}")
        super().__setattr__(name, value)

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The weights of the last training step: head → the weight of its loss in the step of the shared parameters.
        Heads without a label in the batch are left out."""

    @property
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        """The taps at which this batch's graph is cut. A pair holds the tap of the body, and the copy that the heads
        read."""
        return []

    @property
    @abstractmethod
    def label(self) -> str:
        "Its name, in a few words."

    def opt_label(
        self,
        opt_func: Callable,  # the learner's
    ) -> str:
        "Say the name of its optimizer."
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
        """Make the module that holds all that the strategy learns or remembers. It is `model[1].strategy`. None: there
        is none."""
        return None

    def make_opt(
        self,
        opt_func: Callable,  # what `opt_maker` gave, with fused steps where there are such
        groups: Sequence[Sequence[tuple[Sequence[nn.Parameter], float]]],  # group → [(parameters, multiplier), …]
        heads: BoundHeads,  # of the learner
        lr: float | slice,  # the learner's default rate
    ) -> _BaseOptimizer:
        """Make the optimizer. It is called where fastai's own is not enough: for learning rates by head, or if
        `own_opt` is true."""
        return HeadsOptimizer(opt_func, groups, lr)

    def check(
        self,
        heads: BoundHeads,  # of the learner
    ) -> None:
        "Refuse heads that do not fit, with a `HeadsError`. It is called before a strategy is set, and before a fit."

    def check_model(
        self,
        model: nn.Module,  # the learner's
    ) -> None:
        "Refuse a network that does not fit, with a `HeadsError`. It is called together with `check`."

    def before_fit(self, learn: Learner) -> None:
        "Prepare a fit that begins."

    def before_step(self, learn: Learner) -> None:
        """Finish the gradients of a step. All its batches have gone back, and mixed precision and clipping come
        next."""

    def after_step(self, learn: Learner) -> None:
        "Take note of a step: the optimizer has moved the parameters."

    def after_train(self, learn: Learner) -> None:
        "Take note of an epoch: its training is over, and its validation comes next."

    @property
    def own_opt(self) -> bool:
        "True if `make_opt` always makes the optimizer."
        return False

    def predict(self, learn: Learner) -> Any:
        "Predict a training batch."
        return learn.model(*learn.xb)

    def losses(self, learn: Learner) -> dict[str, Tensor]:
        """Give the loss of each head, not weighted: head → a scalar with a graph. On several ranks their mean over the
        ranks is the loss of the joined batches."""
        return dict(zip(learn.heads.names, share_losses(learn, learn.head_losses)))

    @abstractmethod
    def objective(self, learn: Learner) -> Tensor:
        "Make the scalar that `backward` starts from. Callbacks may scale it."

    def backward(self, learn: Learner) -> None:
        "Compute the gradients of `learn.loss_grad`."
        learn.loss_grad.backward()

    def clear(self, learn: Learner) -> None:
        "Clear the gradients after a step. Fused steps drop them, which saves two passes over all numbers."
        getattr(learn.opt, "drop_grads", learn.opt.zero_grad)()


class StrategyCallback(Callback):
    """Passes the events of training on to `learn.strategy`. Before a step it runs after `GradientAccumulation`, which
    decides whether there is a step. It runs before `MixedPrecision` and `GradientClip`, which read the gradients."""

    name = "strategy_events"
    order, run_valid = MixedPrecision.order - 2, False

    def before_fit(self) -> None:
        self.learn.strategy.before_fit(self.learn)

    def before_step(self) -> None:
        self.learn.strategy.before_step(self.learn)

    def after_step(self) -> None:
        self.learn.strategy.after_step(self.learn)

    def after_train(self) -> None:
        self.learn.strategy.after_train(self.learn)


class WeightedSum(Strategy):
    "The default strategy: the sum of the losses, each times its head's `loss_weight`."

    fields = ()

    def __init__(self):
        self._weights: dict[str, float] = {}

    @property
    def weights(self) -> dict[str, float]:
        "The heads' `loss_weight`s."
        return dict(self._weights)

    def objective(self, learn: Learner) -> Tensor:
        self._weights = {name: head.loss_weight for name, head in learn.heads.items()}
        return combined_loss(learn.loss_func).total(list(self.losses(learn).values()))

    @property
    def label(self) -> str:
        return "weighted sum"

    def __repr__(self) -> str:
        return "WeightedSum()"


class LeafStrategy(Strategy):
    """A strategy that reads the losses before it goes back through the network. `learn.loss_grad` is a function of
    their values alone, and callbacks may scale it. The derivative of it by a loss is the coefficient of that loss."""

    def __init__(self):
        self._losses: dict[str, Tensor] = {}
        self._names = self._present = ()
        self._leaf = self._slopes = torch.empty(0)

    @property
    def weights(self) -> dict[str, float]:
        "The derivative of the last step's objective by each loss."
        slopes = dict(zip(self._names, self._slopes.tolist()))
        return {name: slopes[name] for name in self._present}

    def objective(self, learn: Learner) -> Tensor:
        "Make the objective of the weighted losses that the batch has. It is the same on all ranks."
        losses = self.losses(learn)
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
        losses: dict[str, Tensor],  # head → its weighted loss, for the heads that are present
    ) -> Tensor:  # a scalar
        "Make one number of several losses. It is their sum, until a subclass overrides this."
        return torch.stack(list(losses.values())).sum()

    def nothing(
        self,
        losses: Tensor,  # (K,) of a batch without a label for any head
    ) -> Tensor:  # a scalar
        "Make a number that depends on all losses, for a batch in which nothing is labelled."
        return losses.sum()

    def coefficients(self, learn: Learner) -> dict[str, Tensor]:
        "Compute the factor of each loss's gradient: weight, loss scale, and share of an accumulated batch."
        (slopes,) = torch.autograd.grad(learn.loss_grad, self._leaf, retain_graph=True)
        return dict(zip(learn.heads.names, slopes))

    def __getstate__(self) -> dict[str, Any]:
        "Leave out the graph of the last batch."
        return {**self.__dict__, "_losses": {}}


def present_heads(learn: Learner) -> tuple[str, ...]:
    "List the heads that have a weight above 0, and a label in this batch on any rank."
    weighted = [name for name, head in learn.heads.items() if head.loss_weight > 0]
    if not any(learn.heads[name].target.partial for name in weighted):
        return tuple(weighted)
    counts = dict(zip(learn.heads.names, sum_over_ranks(count_labels(learn.loss_func, learn.yb)).tolist()))
    return tuple(name for name in weighted if counts[name])
