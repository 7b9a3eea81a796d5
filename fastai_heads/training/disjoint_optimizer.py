"""An optimizer for each loss over the parameters that they share: the step is the sum of theirs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from fastai.optimizer import (
    Lookahead,
    Optimizer,
    OptimWrapper,
    _BaseOptimizer,
    adam_step,
    average_grad,
    average_sqr_grad,
    l2_reg,
    momentum_step,
    qhadam_step,
    radam_step,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from fastcore.foundation import L
from torch import Tensor, nn

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.gradients import Row
from fastai_heads.training.optimizer import Groups, ShownGroups

__all__ = ["DisjointOptimizer"]

_PLACELESS = {average_grad, average_sqr_grad, step_stat, sgd_step, momentum_step, rms_prop_step, adam_step, radam_step,
              qhadam_step, weight_decay, l2_reg}  # fmt: skip
"Parts of fastai's optimizers whose step does not depend on where the parameters are, without weight decay."
_PLACELESS_TORCH = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
                    torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop)  # fmt: skip
"Those of torch."
_DECOUPLED_TORCH = tuple(getattr(torch.optim, n) for n in ("AdamW", "Adafactor", "Muon") if hasattr(torch.optim, n))
"Those of torch whose weight decay is always apart from the gradient."


class DisjointOptimizer(ShownGroups):
    """K optimizers, one for each head's loss, over all parameters but those of the other heads. A parameter that
    several losses reach takes the sum of the steps that each would take alone from where it is."""

    def __init__(
        self,
        opt_func: Callable,  # (groups, lr=…) → a fastai optimizer or an `OptimWrapper`
        groups: Groups,
        heads: BoundHeads,  # in the order of their steps
        lrs: Mapping[str, float],  # head → what the rate is multiplied by
        lr: float | slice,  # the learner's default rate
    ):
        self._lrs = {name: float(lrs.get(name, 1.0)) for name in heads}
        self._owner = _owners(heads)
        inner = {name: self._groups_of(name, groups) for name in heads}
        self._shown = {name: [shown for _, _, shown in parts] for name, parts in inner.items()}
        self._mults = {n: [mult * self._lrs[n] for _, mult, _ in parts] for n, parts in inner.items()}
        self._opts = {n: opt_func([params for params, _, _ in parts], lr=lr) for n, parts in inner.items()}
        self._at = {p: (g, m) for g, parts in enumerate(groups) for params, m in parts for p in params}
        self.state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)
        first = next(iter(self._opts.values()))
        _check(first)
        self._placeless, self._decoupled = _is_placeless(first), _is_decoupled(first)
        self._fastai = isinstance(first, Optimizer)
        self._around: Callable[[str], AbstractContextManager] = nullcontext
        super().__init__(groups, first.hypers[0], lr)
        self.zero_grad()

    def _groups_of(self, name: str, groups: Groups) -> list[tuple[list[nn.Parameter], float, int]]:
        "List what one head's optimizer steps: (parameters, multiplier, shown group)."
        ours = [
            ([p for p in params if name in self._owner.get(p, {name})], mult, shown)
            for shown, parts in enumerate(groups)
            for params, mult in parts
        ]
        return [part for part in ours if part[0]]

    def take(
        self,
        variables: Sequence[nn.Parameter],  # those that train
        rows: Mapping[str, Row],  # head → the gradient of its loss
        scale: float,  # what the losses were multiplied by, in half precision
        clips: Sequence[tuple[float, float]],  # (largest norm, kind of norm) of each gradient
    ) -> None:
        "Take what the next step is made of."
        self._taken = list(variables), dict(rows), scale, list(clips)

    def watch(
        self,
        around: Callable[[str], AbstractContextManager] = nullcontext,  # of a head's name; by default nothing watches
    ) -> None:
        "Enter a context around every step of one head's own optimizer, from now on."
        self._around = around

    def step(self) -> None:
        "Step for every loss from the same place, and decay the weights once."
        if self._taken is None:
            raise HeadsError("the optimizer of `Disjoint` steps within its learner's training.")
        variables, rows, scale, clips = self._taken
        reached = [any(row[i] is not None for row in rows.values()) for i in range(len(variables))]
        pulls = self._decayed([p for p, there in zip(variables, reached) if there])
        start = None if self._placeless else [p.detach().clone() for p in variables]
        moves = [torch.zeros_like(p) for p in variables] if start else []
        for name, row in rows.items():
            self._give(name)
            _set_grads(variables, row, scale, pulls, own=bool(clips))
            for max_norm, norm_type in clips:
                nn.utils.clip_grad_norm_(variables, max_norm, norm_type)
            with self._around(name):
                self._opts[name].step()
            if start:
                _take_back(variables, start, moves)
        for param, move in zip(variables, moves):
            param.data.add_(move)

    def _give(self, name: str) -> None:
        "Give the inner optimizers the hyperparameters of this moment, without weight decay."
        opt = self._opts[name]
        self.give_hypers(opt, self._shown[name], self._mults[name])
        if "wd" in self.hypers[0]:
            opt.set_hyper("wd", 0.0)

    def _decayed(self, params: Sequence[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        "Decoupled decay is applied; of the other kind, what it adds to every gradient is given back."
        pulls: dict[nn.Parameter, Tensor] = {}
        for param in params:
            group, mult = self._at[param]
            wd, lr = self.hypers[group].get("wd", 0.0), self.hypers[group]["lr"]
            if not wd or (self._fastai and not self.state[param].get("do_wd", True)):
                continue
            if self._decoupled:
                param.data.mul_(1 - lr * self._own_rate(param, mult) * wd)
            else:
                pulls[param] = param.detach() * wd
        return pulls

    def _own_rate(self, param: nn.Parameter, mult: float) -> float:
        """Say what multiplies the scheduled rate of a parameter that one head owns. For parameters that are shared it
        is 1."""
        owners = self._owner.get(param, set())
        return mult * self._lrs[next(iter(owners))] if len(owners) == 1 else mult

    def zero_grad(self) -> None:
        "Drop the gradients and the rows."
        self._taken: tuple | None = None
        for params in self.param_lists:
            for param in params:
                param.grad = None

    def clear_state(self) -> None:
        "Clear the state of every inner optimizer."
        for opt in self._opts.values():
            opt.clear_state()

    def state_dict(self) -> dict[str, Any]:
        "Give the state by head, and the shown hyperparameters."
        return {
            "opts": {name: opt.state_dict() for name, opt in self._opts.items()},
            "hypers": [dict(h) for h in self.hypers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Take what `state_dict` gave."
        for name, opt in self._opts.items():
            opt.load_state_dict(state["opts"][name])
        self.hypers = L(dict(h) for h in state["hypers"])


def _owners(heads: BoundHeads) -> dict[nn.Parameter, set[str]]:
    "Find the heads that each parameter of a head's module belongs to."
    owners: dict[nn.Parameter, set[str]] = {}
    for name, head in heads.items():
        for param in head.parameters():
            owners.setdefault(param, set()).add(name)
    return owners


def _set_grads(
    variables: Sequence[nn.Parameter],
    row: Row,
    scale: float,  # of the losses
    pulls: Mapping[nn.Parameter, Tensor],  # what decay adds
    own: bool,  # in tensors that may be written to
) -> None:
    "Set one loss's gradient, without the loss scale and with its decay."
    for param, grad in zip(variables, row):
        if grad is not None and (own or scale != 1.0):
            grad = grad / scale
        param.grad = grad + pulls[param] if grad is not None and param in pulls else grad


def _take_back(variables: Sequence[nn.Parameter], start: Sequence[Tensor], moves: Sequence[Tensor]) -> None:
    "Note how far a step went, and go back to where it began."
    for param, at, move in zip(variables, start, moves):
        move.add_(param.detach() - at)
        param.data.copy_(at)


def _check(opt: _BaseOptimizer) -> None:
    if isinstance(opt, Lookahead):
        raise HeadsError(
            "`opt_func`: Lookahead (`ranger`) averages the parameters themselves, and averages of several losses do "
            "not add up. With Disjoint, pass what it wraps, such as `RAdam`."
        )


def _is_placeless(opt: _BaseOptimizer) -> bool:
    "Tell whether a step, without weight decay, depends on gradients alone."
    if isinstance(opt, OptimWrapper):
        return type(opt.opt) in _PLACELESS_TORCH
    return all(getattr(cb, "func", cb) in _PLACELESS for cb in opt.cbs)


def _is_decoupled(opt: _BaseOptimizer) -> bool:
    "Tell whether weight decay is apart from the gradient."
    if isinstance(opt, OptimWrapper):
        return isinstance(opt.opt, _DECOUPLED_TORCH) or opt.opt.defaults.get("decoupled_weight_decay", False)
    return l2_reg not in opt.cbs
