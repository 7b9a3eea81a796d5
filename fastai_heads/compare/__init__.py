"""Whether training together is worth it: every head alone against all of them together."""

from fastai_heads.compare.single import compare_to_single
from fastai_heads.compare.tune import tune_weights

__all__ = ["compare_to_single", "tune_weights"]
