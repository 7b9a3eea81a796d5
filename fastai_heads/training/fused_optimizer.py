"""fastai's `Adam` and `SGD`, stepped by torch's fused kernels."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from fastai.optimizer import SGD, Adam, Optimizer, average_grad, average_sqr_grad, l2_reg
from fastcore.foundation import L
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

__all__ = ["FusedAdam", "FusedOptimizer", "FusedSGD", "fuse"]

_DTYPES = (torch.float32, torch.float64)
"In half precision fastai rounds after each operation and a kernel does not: their steps would differ."
_AVERAGES = {average_grad: "grad_avg", average_sqr_grad: "sqr_avg"}
"What a part of fastai's optimizers keeps in a parameter's state."


def fuse(
    opt_func: Callable,  # a learner's
) -> Callable:  # (groups, lr=…) → an optimizer
    "Make fastai's `Adam` or `SGD`, with keywords or without, step by fused kernels. Return anything else as it is."
    maker = opt_func.func if isinstance(opt_func, partial) else opt_func
    kind = FusedAdam if maker is Adam else FusedSGD if maker is SGD else None
    if kind is None:
        return opt_func
    # a partial with the same keywords, as fastai takes the learner's rate from those of one
    return partial(_make, kind, opt_func, **getattr(opt_func, "keywords", {}))


def _make(kind: type["FusedOptimizer"], opt_func: Callable, groups: Sequence, **options: Any) -> "FusedOptimizer":
    return kind(opt_func(groups, **options))


class FusedOptimizer(Optimizer):
    """An optimizer of fastai's that steps many parameters in one call. Its groups, hyperparameters and state are
    fastai's, in fastai's form. A parameter that torch has no fused kernel for takes fastai's own step."""

    torchs: ClassVar[type[torch.optim.Optimizer]]
    "torch's optimizer of this kind."

    def __init__(
        self,
        plain: Optimizer,  # what fastai's function made
    ):
        vars(self).update(vars(plain))
        parts = [getattr(cb, "func", cb) for cb in self.cbs]
        self._averages = tuple(key for part, key in _AVERAGES.items() if part in parts)
        self._decoupled = l2_reg not in parts
        self._dropped: set[nn.Parameter] = set()

    def drop_grads(self) -> None:
        """Drop the gradients, where `zero_grad` fills them with zeros to which the next ones are added. What has no new
        gradient by the next step is stepped with zeros then, as after `zero_grad`."""
        for param in (param for params in self.param_lists for param in params):
            if param.grad is not None:
                param.grad = None
                self._dropped.add(param)

    def step(self, closure: Callable | None = None) -> None:
        "Step every parameter that has a gradient."
        if closure is not None:
            super().step(closure)  # refuses it
        for param in self._dropped:
            if param.grad is None:
                param.grad = torch.zeros_like(param.data)
        self._dropped.clear()
        left = [self._step_group(params, hyper) for params, hyper in zip(self.param_lists, self.hypers)]
        if any(left):
            rest = copy(self)  # with the same state
            rest.param_lists = L(L(params) for params in left)
            Optimizer.step(rest)

    def _step_group(
        self,
        params: Sequence[nn.Parameter],  # of one group
        hyper: Mapping[str, Any],  # its hyperparameters
    ) -> list[nn.Parameter]:  # those that are left to fastai
        "Step those that decay in one call, and those that do not in another."
        params = [param for param in params if param.grad is not None]
        if not self._knows(hyper) or len(set(params)) < len(params):  # fastai steps twice what stands there twice
            return params
        left: list[nn.Parameter] = []
        parts: dict[tuple[bool, torch.device], list[Stepped]] = {}
        for param in params:
            one = Stepped(param.data, param.grad, self.state[param])
            if self._fits(one):
                parts.setdefault((bool(one.state.get("do_wd", True)), one.data.device), []).append(one)
            else:
                left.append(param)
        for (decays, _), part in parts.items():
            self._step_part(part, hyper, float(hyper["wd"]) if decays else 0.0)
        return left

    def _fits(self, one: "Stepped") -> bool:
        "Tell whether a kernel can step a parameter. The kernels take types, devices and layouts for granted."
        data, kind = one.data, _kind(one.data)
        if type(data) is not Tensor or not _has_kernel(self.torchs, data.device, data.dtype) or _kind(one.grad) != kind:
            return False
        for key in self._averages:
            if key in one.state and _kind(one.state[key]) != kind:
                return False
        return data.is_contiguous() or torch.empty_like(data, device="meta").stride() == data.stride()  # no gaps

    @staticmethod
    def _average(
        key: str,  # in the state
        part: Sequence["Stepped"],
    ) -> list[Tensor]:  # of each, to be written to
        "List an average of the parameters' gradients, which starts from zero."
        for data, _, state in part:
            state[key] = _laid_out(state[key], data) if key in state else torch.zeros_like(data)
        return [state[key] for _, _, state in part]

    @abstractmethod
    def _knows(self, hyper: Mapping[str, Any]) -> bool:
        "Tell whether torch's step is fastai's with these hyperparameters."

    @abstractmethod
    def _step_part(
        self,
        part: Sequence["Stepped"],  # parameters on one device
        hyper: Mapping[str, Any],  # of their group
        wd: float,  # their weight decay
    ) -> None:
        "Step parameters in one call."

    def __getstate__(self) -> dict[str, Any]:
        "Leave out what was dropped: parameters leave their gradients behind, too."
        return {**vars(self), "_dropped": set()}


class Stepped(NamedTuple):
    "A parameter in a step: its numbers, out of autograd's sight, as fastai steps them."

    data: Tensor
    grad: Tensor
    state: dict[str, Any]


class FusedAdam(FusedOptimizer):
    "fastai's `Adam`. As torch's it takes the bias out of its averages by the momentum of the moment."

    torchs = torch.optim.AdamW

    def _knows(self, hyper: Mapping[str, Any]) -> bool:
        return hyper["mom"] != 1 and hyper["sqr_mom"] != 1  # fastai divides by zero there, and says so

    def _step_part(self, part: Sequence[Stepped], hyper: Mapping[str, Any], wd: float) -> None:
        steps = torch.tensor([float(state.get("step", 0)) for _, _, state in part], device=part[0].data.device)
        adam(
            [data for data, _, _ in part],
            _grads(part),
            self._average("grad_avg", part),
            self._average("sqr_avg", part),
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=float(hyper["lr"]),
            beta1=float(hyper["mom"]),
            beta2=float(hyper["sqr_mom"]),
            eps=float(hyper["eps"]),
            weight_decay=wd,
            decoupled_weight_decay=self._decoupled,
        )
        for _, _, state in part:
            state["step"] = state.get("step", 0) + 1


class FusedSGD(FusedOptimizer):
    "fastai's `SGD`. Its weight decay stays out of the momentum, while torch's goes into it."

    torchs = torch.optim.SGD

    def _knows(self, hyper: Mapping[str, Any]) -> bool:
        return not self._averages or hyper["mom"] != 0  # torch does not keep an average then, and fastai does

    def _step_part(self, part: Sequence[Stepped], hyper: Mapping[str, Any], wd: float) -> None:
        lr, apart = float(hyper["lr"]), self._decoupled and bool(self._averages)
        if apart and wd:
            for data, _, _ in part:
                data.mul_(1 - lr * wd)
        sgd(
            [data for data, _, _ in part],
            _grads(part),
            self._average("grad_avg", part) if self._averages else [None] * len(part),
            fused=True,
            lr=lr,
            momentum=float(hyper["mom"]) if self._averages else 0.0,
            weight_decay=0.0 if apart else wd,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device, torch.layout]:
    return tensor.dtype, tensor.device, tensor.layout


def _grads(part: Sequence[Stepped]) -> list[Tensor]:
    return [_laid_out(grad, data) for data, grad, _ in part]


def _laid_out(tensor: Tensor, data: Tensor) -> Tensor:
    "Give a tensor whose numbers lie in memory in the parameter's order, such as `channels_last`."
    return tensor if tensor.stride() == data.stride() else torch.empty_like(data).copy_(tensor)


@cache
def _has_kernel(kind: type[torch.optim.Optimizer], device: torch.device, dtype: torch.dtype) -> bool:
    "Tell whether torch's fused step of a kind runs there, by one of a single number."
    if dtype not in _DTYPES:
        return False
    param = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    param.grad = torch.zeros_like(param)
    try:
        kind([param], lr=0.0, fused=True).step()
    except RuntimeError:  # `NotImplementedError` is one
        return False
    return True
