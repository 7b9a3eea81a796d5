"""Real numbers in the user's own unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from fastai.layers import sigmoid_range
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.spec import TapShape
from fastai_heads.tasks.regression import RegressionTask

__all__ = ["InUnit", "RegressionHead"]


class InUnit(nn.Module):
    "Brings a standardised output into the user's unit, in float32 whatever the model's dtype."

    mean: Tensor  # (n_out,) of the training set's labels, in their unit
    deviation: Tensor  # (n_out,) likewise

    def __init__(
        self,
        mean: Sequence[float],  # one per output, in the user's unit
        deviation: Sequence[float],  # likewise, each above 0
        y_range: tuple[float, float] | None = None,  # in the user's unit: a sigmoid into this range instead
    ):
        super().__init__()
        self.y_range = y_range
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def forward(
        self,
        x: Tensor,  # (B, n_out) standardised
    ) -> Tensor:  # (B, n_out) in the user's unit, float32
        if self.y_range is not None:
            return sigmoid_range(x.float(), *self.y_range)
        return x.float() * self.deviation + self.mean

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        "Keep the statistics in float32 where the rest of the model is cast: 2000 ± 5 does not fit into bfloat16."
        kept = self.mean, self.deviation
        super()._apply(fn, recurse)
        if not (self.mean.is_meta or kept[0].is_meta):
            self.mean, self.deviation = (k.to(self.mean.device) for k in kept)
        return self


@dataclass(frozen=True, kw_only=True)
class RegressionHead(PooledSpec):
    """One or several real numbers. Output (B, n_out) in the user's unit, target (B,) or (B, n_out) likewise.

    By default the targets are standardised: the training set's mean and deviation are buffers of the head's last layer,
    and the loss is taken on (prediction − target) / deviation, so that losses of several heads are comparable while
    predictions, metrics and displays stay in the user's unit. With `standardize=False` it is fastai's head."""

    standardize: bool | tuple[Sequence[float], Sequence[float]] = True  # or (means, deviations), one per output

    kinds: ClassVar[frozenset[str]] = frozenset({"regression"})
    predicts: ClassVar[type[RegressionTask]] = RegressionTask

    def __post_init__(self) -> None:
        super().__post_init__()
        pair = isinstance(self.standardize, Sequence) and len(self.standardize) == 2
        given = pair and all(_as_numbers(part) is not None for part in self.standardize)
        self.check("standardize", isinstance(self.standardize, bool) or given, "True, False or (means, deviations)")

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "Fit as every head does, with the mean and deviation of the training set's labels, missing ones left out."
        spec = super().fit(target, labels)
        if spec.standardize is False:
            return spec
        if spec.standardize is True:
            found = labels().float().view(-1, spec.n_out).double()
            mean, deviation = found.mean(0).tolist(), found.std(0, correction=0).tolist()
        else:
            mean, deviation = (_as_numbers(part) for part in spec.standardize)
        _check_statistics(target, spec.n_out, mean, deviation)
        return replace(spec, standardize=(tuple(mean), tuple(deviation)))

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        head = super().build(taps)
        if self.standardize is not False:
            head.layers.append(InUnit(*self.standardize, y_range=self.y_range))
        return head

    def head_kwargs(self) -> dict:
        kwargs = super().head_kwargs()
        return kwargs if self.standardize is False else {**kwargs, "y_range": None}  # `InUnit` applies it in float32


def _as_numbers(value: object) -> list[float] | None:
    "Return one number or several, in whatever holds them, as a list; None for anything else."
    try:
        return torch.as_tensor(value).double().view(-1).tolist()
    except (TypeError, ValueError, RuntimeError):
        return None


def _check_statistics(target: Target, n_out: int, mean: list[float], deviation: list[float]) -> None:
    "Refuse statistics that cannot standardise: of another count, not finite, or a deviation of zero."
    if len(mean) != n_out or len(deviation) != n_out:
        raise HeadsError(
            f"`standardize` for target {target.name!r} is (means, deviations) with {n_out} numbers each, "
            f"found {len(mean)} and {len(deviation)}."
        )
    bad = [d for d in deviation if not (d > 0 and torch.isfinite(torch.tensor([*mean, d])).all())]
    if bad:
        raise HeadsError(
            f"target {target.name!r} cannot be standardised: its mean is {mean} and its deviation {deviation} on the "
            "training set. Every label is the same or not finite; check the column, or pass `standardize=False`."
        )
