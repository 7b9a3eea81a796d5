"""From what a user writes as `strategy=` to a strategy."""

from typing import Any

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import Strategy, WeightedSum
from fastai_heads.training.strategies.bridge import Aggregator, Scalarizer, classes_by_name, is_one_of, made
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.training.strategies.scalarized import Scalarized

__all__ = ["as_strategy"]


def as_strategy(
    value: Any,  # None, a strategy, an aggregator, a scalarizer, or a class of one of the last two, or its name
    n: int,  # how many heads there are
) -> Strategy:
    "The sum by `loss_weight`, `Balance(aggregator)`, `Scalarized(scalarizer)`, or the strategy that it is already."
    value = _named(value) if isinstance(value, str) else value
    if value is None:
        return WeightedSum()
    if isinstance(value, Strategy):
        return value
    if is_one_of(value, Scalarizer):
        return Scalarized(made(value, n))
    if is_one_of(value, Aggregator):
        return Balance(made(value, n))
    near = did_you_mean(value, [*classes_by_name(), "Disjoint"], n=1) if isinstance(value, str) else ""
    found = f"the class {value.__name__}: make it, `{value.__name__}(…)`" if isinstance(value, type) else repr(value)
    raise HeadsError(
        "`strategy` is None, an aggregator or a scalarizer of torchjd, `Balance(aggregator, over=…)` or `Disjoint(…)`, "
        f"found {found}.{near}"
    )


def _named(name: str) -> Any:
    "Find what a name stands for; one that stands for nothing stays what it is. `Balance` needs an aggregator."
    if name == Balance.__name__:
        raise HeadsError("`strategy`: Balance needs an aggregator: pass `Balance(UPGrad())`, or 'UPGrad' alone.")
    return Disjoint() if name == Disjoint.__name__ else classes_by_name().get(name, name)
