"""How the heads train together: bound to their targets, their losses summed, each with its own metrics and rate."""

from fastai_heads.training.average import EMACallback
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.conflict_recorder import ConflictRecorder
from fastai_heads.training.metrics import HeadMetric
from fastai_heads.training.monitors import HeadsMonitor
from fastai_heads.training.schedule import LossWeightScheduler
from fastai_heads.training.step import CombinedLoss
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import Strategy
from fastai_heads.training.strategies.disjoint import Disjoint

__all__ = [
    "Balance",
    "BoundHead",
    "BoundHeads",
    "CombinedLoss",
    "ConflictRecorder",
    "Disjoint",
    "EMACallback",
    "HeadMetric",
    "HeadsMonitor",
    "LossWeightScheduler",
    "Strategy",
]
