"""Disjoint training: each loss has an optimizer of its own."""

from collections.abc import Callable, Mapping, Sequence

import torch
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper, _BaseOptimizer
from torch import nn

from fastai_heads.errors import HeadsError, unknown
from fastai_heads.heads.spec import is_number
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.disjoint_optimizer import DisjointOptimizer
from fastai_heads.training.gradients import combine
from fastai_heads.training.strategies.base import StrategyCallback
from fastai_heads.training.strategies.rows import RowsStrategy, add_grad, loss_scale

__all__ = ["Disjoint"]

_BLIND = (StrategyCallback, GradientAccumulation, GradientClip)
"Callbacks that have a `before_step` and do not need the sum of the gradients."


class Disjoint(RowsStrategy):
    """Each loss has an optimizer of its own, with its own accumulators, over the parameters that it reaches. The shared
    parameters take the sum of all steps. With an optimizer that divides by the size of the gradient, such as Adam, a
    loss of 100 does not count more than a loss of 0.5.

    It costs a backward pass through the body and a step of an optimizer for each head. Decoupled weight decay is
    applied once, at the scheduled rate. Decay that is added to the gradient is in every loss's gradient.
    `GradientClip` clips the gradient of each loss. A head without a label in a batch takes no step."""

    fields = ("opt_func", "lrs")

    def __init__(
        self,
        opt_func: Callable | None = None,  # fastai's or `partial(OptimWrapper, opt=…)`; None: the learner's
        lrs: Mapping[str, float] | None = None,  # head → factor of the scheduled rate; 1 for heads that are not named
    ):
        super().__init__()
        if isinstance(opt_func, OptimWrapper):
            raise HeadsError(
                "`opt_func` of Disjoint is an optimizer that is made already; each loss needs one: pass its maker, "
                "such as `partial(OptimWrapper, opt=torch.optim.AdamW)`."
            )
        of_torch = isinstance(opt_func, type) and issubclass(opt_func, torch.optim.Optimizer)
        if opt_func is not None and (of_torch or not callable(opt_func)):
            near = f" Did you mean `partial(OptimWrapper, opt=torch.optim.{opt_func.__name__})`?" if of_torch else ""
            raise HeadsError(f"`opt_func` of Disjoint is a function that makes an optimizer, found {opt_func!r}.{near}")
        if lrs is not None and not isinstance(lrs, Mapping):
            raise HeadsError(f"`lrs` of Disjoint is a dict of head to a number, such as {{'age': 0.1}}, found {lrs!r}.")
        self.opt_func, self.lrs = opt_func, dict(lrs or {})
        for name, mult in self.lrs.items():
            if not is_number(mult, least=0):
                raise HeadsError(f"`lrs[{name!r}]` of Disjoint is a finite number of at least 0, found {mult!r}.")

    def check(self, heads: BoundHeads) -> None:
        for name in self.lrs:
            if name not in heads:
                raise HeadsError(f"`lrs` of Disjoint: {unknown('head', name, heads.names)}")

    @property
    def own_opt(self) -> bool:
        return True

    def opt_maker(self, opt_func: Callable) -> Callable:
        return self.opt_func or opt_func

    def make_opt(
        self,
        opt_func: Callable,
        groups: Sequence[Sequence[tuple[Sequence[nn.Parameter], float]]],
        heads: BoundHeads,
        lr: float | slice,
    ) -> _BaseOptimizer:
        return DisjointOptimizer(opt_func, groups, heads, self.lrs, lr)

    def backward(self, learn: Learner) -> None:
        super().backward(learn)
        if any(param.grad is not None for param in self._variables):
            raise HeadsError(
                "`cbs`: a callback adds a term to the loss that belongs to no head, and under `Disjoint` each loss has "
                "an optimizer of its own. Make it a head's loss, or use another strategy."
            )

    def before_step(self, learn: Learner) -> None:
        "Give the rows to the optimizer. Callbacks that read the gradients see the sum of the rows."
        rows = self.take_rows()
        if any(not isinstance(cb, _BLIND) for cb in learn.ordered_cbs("before_step")):
            for param, grad in zip(self._variables, combine(list(rows.values()), [1.0] * len(rows))):
                if grad is not None:
                    add_grad(param, grad)
        clips = [(cb.max_norm, cb.norm_type) for cb in learn.cbs if isinstance(cb, GradientClip)]
        learn.opt.take(self._variables, rows, loss_scale(learn), clips)

    @property
    def label(self) -> str:
        return "disjoint"

    def opt_label(self, opt_func: Callable) -> str:
        return f"{super().opt_label(self.opt_maker(opt_func))}, one for each head"

    def __repr__(self) -> str:
        name = getattr(self.opt_func, "__name__", self.opt_func)
        given = [f"opt_func={name}"] * (self.opt_func is not None) + [f"lrs={self.lrs}"] * bool(self.lrs)
        return f"Disjoint({', '.join(given)})"
