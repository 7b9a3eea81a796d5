"""Several processes that train together: what they tell each other, how they share the data, what a batch is of all."""

from fastai_heads.training.ranks.exchange import train_together, world
from fastai_heads.training.ranks.joint import JointBatch, SharedLoader

__all__ = ["JointBatch", "SharedLoader", "train_together", "world"]
