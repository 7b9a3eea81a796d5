"""A learning rate per head, under the groups that a user sees."""

from collections.abc import Callable, Sequence
from typing import Any

from fastai.optimizer import _BaseOptimizer
from fastcore.foundation import L
from torch import nn

from fastai_heads.training.bound import BoundHeads

__all__ = ["Groups", "HeadsOptimizer", "ShownGroups", "multiplied"]

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
        "The hyperparameters of this moment."
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
        "One step of the inner optimizer at this moment's hyperparameters."
        self.give_hypers(self.opt, self._shown, self._mults)
        self.opt.step(closure)

    def zero_grad(self) -> None:
        "The inner optimizer's."
        self.opt.zero_grad()

    def clear_state(self) -> None:
        "The inner optimizer's."
        self.opt.clear_state()

    def state_dict(self) -> dict[str, Any]:
        "The inner optimizer's state, and the shown hyperparameters."
        return {"opt": self.opt.state_dict(), "hypers": [dict(h) for h in self.hypers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "What `state_dict` gave."
        self.opt.load_state_dict(state["opt"])
        self.hypers = L(dict(h) for h in state["hypers"])


def multiplied(
    groups: Sequence[Sequence[nn.Parameter]],  # the groups that a user sees, the last that of trunks and heads
    heads: BoundHeads,  # whose `lr_mult`s split the last group
) -> list[list[tuple[list[nn.Parameter], float]]]:  # as `Groups`
    "The last group by the learning rates of its heads; trunks, and what two heads share, keep the group's own rate."
    owners: dict[nn.Parameter, set[float]] = {}
    for head in heads.values():
        for param in head.parameters():
            owners.setdefault(param, set()).add(head.spec.lr_mult)
    parts: dict[float, list[nn.Parameter]] = {}
    for param in groups[-1]:
        mults = owners.get(param, {1.0})
        parts.setdefault(mults.pop() if len(mults) == 1 else 1.0, []).append(param)
    return [[(list(g), 1.0)] for g in groups[:-1]] + [[(params, mult) for mult, params in parts.items()]]
