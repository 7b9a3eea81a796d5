"""Make a strategy of the value that a user passes as `strategy=`."""

from inspect import isabstract
from typing import Any

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import Strategy, WeightedSum
from fastai_heads.training.strategies.bridge import Aggregator, Scalarizer, classes_by_name, is_one_of, make
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.training.strategies.scalarized import Scalarized

__all__ = ["as_strategy"]

_OURS = {"WeightedSum": WeightedSum, "Disjoint": Disjoint, "Balance": Balance}


def as_strategy(
    value: Any,  # None, a strategy, an aggregator, a scalarizer, a class of one of them, or the name of such a class
    n: int,  # number of heads
) -> Strategy:
    """Make a strategy. None gives the sum by `loss_weight`, an aggregator `Balance(aggregator)`, a scalarizer
    `Scalarized(scalarizer)`. A strategy stays as it is.

    A class that needs to know how many heads there are is told so: `UW` is `UW(n)`."""
    if value is None:
        return WeightedSum()
    classes = classes_by_name() | _OURS
    value = classes.get(value, value) if isinstance(value, str) else value
    if isinstance(value, Strategy):
        return value
    if isinstance(value, type) and issubclass(value, Strategy) and not isabstract(value):
        return make(value, n)
    if is_one_of(value, Scalarizer):
        return Scalarized(make(value, n))
    if is_one_of(value, Aggregator):
        return Balance(make(value, n))
    near = did_you_mean(value, classes, n=1) if isinstance(value, str) else ""
    found = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    raise HeadsError(
        "`strategy` is None, an aggregator or a scalarizer of torchjd, `Balance(aggregator, over=…)` or `Disjoint(…)`, "
        f"found {found}.{near}"
    )
