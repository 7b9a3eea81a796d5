"""The learner: made from data and an arch, it trains, predicts and shows every head."""

from fastai_heads.learner.factory import multihead_learner
from fastai_heads.learner.learner import MultiHeadLearner

__all__ = ["MultiHeadLearner", "multihead_learner"]
