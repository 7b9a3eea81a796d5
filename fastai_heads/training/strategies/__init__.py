"""Strategies make one step of the heads' losses: weighted sum, learned weights, gradient balancing, disjoint
optimizers."""

from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import Strategy, StrategyCallback, WeightedSum
from fastai_heads.training.strategies.choose import as_strategy
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.training.strategies.scalarized import Scalarized

__all__ = ["Balance", "Disjoint", "Scalarized", "Strategy", "StrategyCallback", "WeightedSum", "as_strategy"]
