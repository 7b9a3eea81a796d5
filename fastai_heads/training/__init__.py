"""How the heads train together: bound to their targets, their losses summed, each with its own metrics and rate."""

from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.loss import CombinedLoss
from fastai_heads.training.metrics import HeadMetric

__all__ = ["BoundHead", "BoundHeads", "CombinedLoss", "HeadMetric"]
