"""What is asked of callbacks before a fit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.schedule import LRFinder
from fastai.callback.tracker import TrackerCallback
from fastai.learner import Learner
from fastcore.foundation import L

from fastai_heads.errors import HeadsError
from fastai_heads.training.mixing import check_mixing
from fastai_heads.training.precision import check_precision
from fastai_heads.training.recorder import HeadsRecorder
from fastai_heads.training.trackers import check_monitor

__all__ = ["are_callbacks", "check_callbacks"]


def check_callbacks(
    learn: Learner,  # with `heads`
    cbs: Iterable[Callback | type],  # of this fit alone, besides the learner's own
) -> None:
    "Refuse, before any training, what a callback could not do with these heads."
    are_callbacks(cbs)
    cbs = [*learn.cbs, *cbs]
    check_mixing(cbs, learn.heads)
    recorders = [cb for cb in cbs if isinstance(cb, HeadsRecorder)]
    for cb in cbs:
        if isinstance(cb, TrackerCallback) and recorders:
            check_monitor(cb, recorders[0].columns())
            _check_folder(cb, learn)
        if learn.ranks > 1 and isinstance(cb, LRFinder):
            raise HeadsError(
                "`lr_find` restores the weights on the first rank only: find the rate in a run with one process."
            )
        if hasattr(cb, "check_heads"):
            cb.check_heads(learn.heads)
        if learn.dls.device is not None:
            check_precision(cb, learn.dls.device)
        if len(learn.data_targets) > 1:
            _check_drawing(cb)


def _check_folder(
    tracker: TrackerCallback,  # of a fit
    learn: Learner,
) -> None:
    "Refuse a tracker that would save to a folder that is not there."
    name = Path(str(getattr(tracker, "fname", "")))
    if name.parent != Path() and not (folder := (learn.path / learn.model_dir / name).parent).is_dir():
        raise HeadsError(f"`fname` of {type(tracker).__name__}: there is no folder {folder}.")


def are_callbacks(
    cbs: Any,  # as a user passes them: one, a list, or None
) -> None:
    "Refuse, before any is added to a learner, what is no callback."
    for cb in L(cbs):
        kind = cb if isinstance(cb, type) else type(cb)
        if not issubclass(kind, Callback):
            raise HeadsError(f"`cbs` is a callback or a list of them, such as `SaveModelCallback()`, found {cb!r}.")


def _check_drawing(cb: Callback | type) -> None:
    "Refuse to have fastai's `TensorBoardCallback` draw samples: it can for one target, and fails after an epoch."
    kinds = (cb if isinstance(cb, type) else type(cb)).__mro__  # by name, as tensorboard need not be installed
    if any(kind.__name__ == "TensorBoardCallback" for kind in kinds) and getattr(cb, "log_preds", True):
        raise HeadsError(
            "`log_preds=True` of TensorBoardCallback draws the samples of one target only: pass `log_preds=False`."
        )
