"""Trackers on any head's loss or metric know which way is better."""

import numpy as np
import pytest
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TrackerCallback
from fastai.metrics import F1Score, HammingLossMulti, Perplexity, RocAuc, error_rate, mae, mse, rmse
from sklearn.metrics import max_error, mean_absolute_error, median_absolute_error

from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.tasks.box import iou
from fastai_heads.tasks.point import distance
from fastai_heads.training.metrics import HeadMetric

from .conftest import ALL

DIRECTION = {
    "digit_accuracy": np.greater,
    "tags_accuracy_multi": np.greater,
    "ink_mae": np.less,
    "centre_distance": np.less,
    "box_iou": np.greater,
    **dict.fromkeys(("train_loss", "valid_loss", *(f"{s}_{n}_loss" for s in ("train", "valid") for n in ALL)), np.less),
}


@pytest.mark.parametrize("tracker", [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau, TrackerCallback])
def test_every_column_is_tracked_in_the_right_direction(learner, tracker):
    learn = learner()
    assert set(DIRECTION) == set(learn.recorder.columns())
    for monitor, comp in DIRECTION.items():
        cb = tracker(monitor=monitor, min_delta=0.5)
        with learn.added_cbs(cb):
            assert cb.comp is comp and cb.min_delta == (0.5 if comp is np.greater else -0.5), monitor
        learn.add_cb(cb)
        assert cb.comp is comp, "also when it is added again"
        learn.remove_cb(cb)


def test_the_users_own_word_stays(learner):
    learn, cb = learner(("digit",)), TrackerCallback("digit_accuracy", comp=np.less, min_delta=1)
    learn.add_cb(cb)
    assert cb.comp is np.less and cb.min_delta == -1


def test_a_head_whose_name_looks_like_a_loss(learner):
    heads = {"blossom": ClassificationHead(target="digit"), "error": RegressionHead(target="ink")}
    learn = learner(("digit", "ink"), heads)
    for monitor, comp in (("blossom_accuracy", np.greater), ("error_mae", np.less)):
        cb = TrackerCallback(monitor)
        learn.add_cb(cb)
        assert cb.comp is comp


def own(pred, targ):
    return pred.mean()


def told(pred, targ):
    return pred.mean()


told.higher_is_better = False


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        *((m, False) for m in (error_rate, mae, mse, rmse, distance, Perplexity, HammingLossMulti())),
        *((m, False) for m in (mean_absolute_error, median_absolute_error, max_error, told)),
        *((m, True) for m in (iou, F1Score(), RocAuc(), own)),
    ],
    ids=str,
)
def test_every_metric_has_a_direction(three, metric, higher):
    assert HeadMetric(three()["breed"], 0, metric).higher_is_better is higher


class Written(Callback):
    "Writes a column of the table by hand."

    order = 55  # after the recorder, before the trackers

    def __init__(self, column, values):
        self.column, self.column_values = column, values

    def after_epoch(self):
        at = self.recorder.metric_names.index(self.column) - 1
        self.recorder.values[-1][at] = self.column_values[self.epoch]


def run(learn, values, cb):
    with learn.no_bar(), learn.no_logging():
        learn.fit(len(values), 1e-3, cbs=[Written(cb.monitor, values), cb])
    return learn


def test_early_stopping_waits_for_the_mean_error_to_fall(learner, tmp_path, capsys):
    learn = run(learner(("digit", "ink")), [3, 2, 1, 5, 9], EarlyStoppingCallback("ink_mae", patience=2))
    assert len(learn.recorder.values) == 5 and "since epoch 2" in capsys.readouterr().out
    learn = run(learner(("digit", "ink")), [0.1, 0.3, 0.2, 0.2], EarlyStoppingCallback("digit_accuracy", patience=1))
    assert len(learn.recorder.values) == 3 and "since epoch 1" in capsys.readouterr().out


def test_the_best_epoch_is_saved_and_loaded_at_the_end(learner, tmp_path, capsys):
    learn = learner(("digit", "ink"), path=tmp_path)
    run(learn, [3, 1, 2], SaveModelCallback("ink_mae", with_opt=True))
    said = capsys.readouterr().out
    assert "epoch 0" in said and "epoch 1" in said and "epoch 2" not in said
    assert (tmp_path / "models" / "model.pth").exists()


def test_the_rate_falls_when_a_heads_loss_does_not(learner, capsys):
    learn = run(learner(("digit", "ink")), [1, 2, 2, 2], ReduceLROnPlateau("valid_ink_loss", patience=1, factor=10))
    assert learn.opt.hypers[-1]["lr"] == pytest.approx(1e-6) and "reducing lr" in capsys.readouterr().out


def test_an_unknown_column_is_refused_before_training(learner):
    learn = learner(("digit", "ink"))
    with pytest.raises(HeadsError, match=r"`monitor='accuracy'` of SaveModelCallback is no column .*'digit_accuracy'"):
        learn.fit(1, cbs=SaveModelCallback("accuracy"))
