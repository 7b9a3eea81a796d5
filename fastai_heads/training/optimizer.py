"""A learning rate per head, under the groups that a user sees."""

from collections.abc import Callable, Sequence
from typing import Any

from fastai.learner import Learner
from fastai.optimizer import OptimWrapper, _BaseOptimizer
from fastai.torch_core import get_model
from fastcore.foundation import L
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.fused_optimizer import fuse

__all__ = ["Groups", "HeadsOptimizer", "ShownGroups", "create_opt", "split_by_rate"]

Groups = Sequence[Sequence[tuple[Sequence[nn.Parameter], float]]]
"Shown group → [(parameters, multiplier of the learning rate), …]"


class ShownGroups(_BaseOptimizer):
    """The groups of an optimizer that a user sees: its `hypers`, `freeze_to` and slices count those. What steps is
    one optimizer, or several, with finer groups inside; before a step these take the hyperparameters of their shown
    groups, the learning rate times a multiplier."""

    def __init__(
        self,
        groups: Groups,
        hypers: dict[str, Any],  # of an inner optimizer, to start with
        lr: float | slice,  # the learner's default rate
    ):
        self.param_lists = L(L(p for params, _ in parts for p in params) for parts in groups)
        self.hypers = L(dict(hypers) for _ in groups)
        self.frozen_idx = 0
        self.set_hyper("lr", lr)  # a slice spreads over the shown groups

    def give_hypers(
        self,
        opt: _BaseOptimizer,  # an inner one
        shown: Sequence[int],  # the shown group of each of its groups
        mults: Sequence[float],  # the multiplier of each
    ) -> None:
        "Give an inner optimizer the hyperparameters of this moment."
        for key in self.hypers[0]:
            values = [self.hypers[group][key] for group in shown]
            opt.set_hyper(key, [lr * mult for lr, mult in zip(values, mults)] if key == "lr" else values)


class HeadsOptimizer(ShownGroups):
    "An optimizer with a learning rate for every head. Any fastai optimizer or `OptimWrapper` may be inside."

    def __init__(
        self,
        opt_func: Callable,  # (groups, lr=…) → a fastai optimizer
        groups: Groups,
        lr: float | slice,  # the learner's default rate
    ):
        inner = [(list(params), mult, shown) for shown, parts in enumerate(groups) for params, mult in parts if params]
        self._mults, self._shown = [mult for _, mult, _ in inner], [shown for _, _, shown in inner]
        self.opt = opt_func([params for params, _, _ in inner], lr=lr)
        super().__init__(groups, self.opt.hypers[0], lr)

    @property
    def state(self) -> dict:
        "The inner optimizer's."
        return self.opt.state

    def step(self, closure: Callable | None = None) -> None:
        "Step the inner optimizer at this moment's hyperparameters."
        self.give_hypers(self.opt, self._shown, self._mults)
        self.opt.step(closure)

    def zero_grad(self) -> None:
        "Clear the gradients."
        self.opt.zero_grad()

    def drop_grads(self) -> None:
        "Drop the gradients where the inner optimizer can, else clear them."
        getattr(self.opt, "drop_grads", self.opt.zero_grad)()

    def clear_state(self) -> None:
        "Clear the inner optimizer's state."
        self.opt.clear_state()

    def state_dict(self) -> dict[str, Any]:
        "Give the inner optimizer's state, and the shown hyperparameters."
        return {"opt": self.opt.state_dict(), "hypers": [dict(h) for h in self.hypers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Load what `state_dict` gave."
        self.opt.load_state_dict(state["opt"])
        self.hypers = L(dict(h) for h in state["hypers"])


def create_opt(
    learn: Learner,  # a `MultiHeadLearner`
) -> _BaseOptimizer:
    """Make a learner's optimizer, or its strategy's, with a group per learning rate where heads have an `lr_mult`.
    Its steps are fused ones, unless `learn.fused` is false. What the strategy learns does not decay."""
    own = learn.strategy.own_opt or any(head.spec.lr_mult != 1 for head in learn.heads.values())
    maker, groups = learn.strategy.opt_maker(learn.opt_func), learn.splitter(learn.model)
    if isinstance(maker, OptimWrapper):
        opt = _reuse(maker, own)
    else:
        keywords = getattr(learn.opt_func if own else maker, "keywords", {})
        learn.lr = keywords.get("lr", learn.lr)  # as fastai takes the rate from those of a partial
        maker = fuse(maker) if learn.fused else maker
        opt = _make_own(learn, maker, groups) if own else maker(groups, lr=learn.lr)
    learned = get_model(learn.model)[1].strategy
    for param in learned.parameters() if learned is not None else ():
        opt.state[param]["do_wd"] = False
    return opt


def _reuse(opt: OptimWrapper, own: bool) -> OptimWrapper:
    "Start an optimizer anew that a user has made already."
    if own:
        raise HeadsError(
            "`opt_func` is an optimizer that is made already, which cannot keep the heads' `lr_mult` or states: "
            "pass what makes one, such as `partial(OptimWrapper, opt=torch.optim.AdamW)`."
        )
    opt.clear_state()
    return opt


def _make_own(learn: Learner, maker: Callable, groups: Sequence[Sequence[nn.Parameter]]) -> _BaseOptimizer:
    return learn.strategy.make_opt(maker, split_by_rate(groups, learn.heads), learn.heads, learn.lr)


def split_by_rate(
    groups: Sequence[Sequence[nn.Parameter]],  # the groups that a user sees, the last that of trunks and heads
    heads: BoundHeads,  # whose `lr_mult`s split the last group
) -> list[list[tuple[list[nn.Parameter], float]]]:  # as `Groups`
    "Split the last group by the learning rates of its heads. Trunks, and what two heads share, keep the group's own."
    owners: dict[nn.Parameter, set[float]] = {}
    for head in heads.values():
        for param in head.parameters():
            owners.setdefault(param, set()).add(head.spec.lr_mult)
    parts: dict[float, list[nn.Parameter]] = {}
    for param in groups[-1]:
        mults = owners.get(param, {1.0})
        parts.setdefault(mults.pop() if len(mults) == 1 else 1.0, []).append(param)
    return [[(list(g), 1.0)] for g in groups[:-1]] + [[(params, mult) for mult, params in parts.items()]]
