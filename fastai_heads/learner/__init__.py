"""The learner: made from data and an arch, it trains, predicts and shows every head."""

from fastai_heads.learner.factory import multihead_learner
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.learner.taps import probe_taps

__all__ = ["MultiHeadLearner", "multihead_learner", "probe_taps"]
