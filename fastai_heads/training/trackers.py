"""fastai's trackers (`SaveModelCallback`, `EarlyStoppingCallback`, …) on any head's loss or metric."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from fastai.callback.tracker import TrackerCallback
from fastai.learner import Metric

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.training.metrics import HeadMetric

__all__ = ["check_monitor", "set_direction"]


def set_direction(
    tracker: TrackerCallback,  # a callback that is being added to a learner
    metrics: Iterable[Metric],  # of the learner
) -> None:
    """Set the direction in which a tracker's metric is better. fastai goes by the whole name. A head `blossom` makes
    it take an accuracy for a loss, and it believes that a greater `ink_mae` is better. A `comp` other than fastai's
    own guess is the user's, and stays."""
    if not isinstance(getattr(tracker, "fname", "model"), str | Path):
        raise HeadsError(f"`fname` of {type(tracker).__name__} is a name of a file, found {tracker.fname!r}.")
    guess = np.less if "loss" in tracker.monitor or "error" in tracker.monitor else np.greater
    better = {f"{part}{m.name}": m.higher_is_better for m in metrics if isinstance(m, HeadMetric) for part in _PARTS}
    if tracker.comp is not guess or tracker.monitor not in better:
        return
    comp = np.greater if better[tracker.monitor] else np.less
    if comp is not tracker.comp:
        tracker.comp, tracker.min_delta = comp, -tracker.min_delta


def check_monitor(
    tracker: TrackerCallback,  # a callback of a fit
    columns: Iterable[str],  # columns of the table
) -> None:
    "Refuse to track a column that the table does not have."
    columns = list(columns)
    if tracker.monitor not in columns:
        raise HeadsError(
            f"`monitor={tracker.monitor!r}` of {type(tracker).__name__} is no column of the table."
            f"{did_you_mean(tracker.monitor, columns)} There is {', '.join(columns)}."
        )


_PARTS = ("", "train_", "valid_")
