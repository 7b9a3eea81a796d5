"""The table: fastai's columns, and a loss for every head."""

import math

import pytest
import torch
from fastai.callback.core import Callback
from torch import tensor

from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead

TARGETS = ("digit", "ink")
WEIGHTED = {"digit": ClassificationHead(loss_weight=0.5), "ink": RegressionHead(loss_weight=2.0)}


class Kept(Callback):
    "Every head's loss at every step of training."

    def __init__(self):
        self.losses = []

    def after_loss(self):
        if self.training:
            self.losses.append([loss.item() for loss in self.learn.head_losses])


def smoothed(losses, beta=0.98):
    "fastai's running mean, by hand."
    value, found = 0.0, []
    for i, loss in enumerate(losses, 1):
        value = beta * value + (1 - beta) * loss
        found.append(value / (1 - beta**i))
    return found


def test_the_totals_are_followed_by_the_losses_of_the_heads(learner):
    learn, kept = learner(TARGETS, WEIGHTED), Kept()
    with learn.no_logging():
        learn.fit(2, 1e-3, cbs=kept)
    recorder = learn.recorder
    assert list(recorder.metric_names) == [
        "epoch",
        *("train_loss", "valid_loss"),
        *("train_digit_loss", "train_ink_loss"),
        *("valid_digit_loss", "valid_ink_loss"),
        *("digit_accuracy", "ink_mae"),
        "time",
    ]
    assert all(len(row) == 8 for row in recorder.values)
    table = dict(zip(recorder.metric_names[1:], recorder.values[-1]))
    digit, ink = zip(*kept.losses)
    for name, by_hand in (("digit", digit), ("ink", ink)):
        found = [float(v) for v in recorder.losses_by_head[name]]
        assert found == pytest.approx(smoothed(by_hand), rel=1e-4)
        assert table[f"train_{name}_loss"] == pytest.approx(found[-1])
    assert len(recorder.losses) == len(kept.losses) == 8
    assert table["train_loss"] == pytest.approx(0.5 * table["train_digit_loss"] + 2 * table["train_ink_loss"], rel=1e-4)
    assert table["valid_loss"] == pytest.approx(0.5 * table["valid_digit_loss"] + 2 * table["valid_ink_loss"], rel=1e-4)


def test_the_validation_losses_are_those_of_the_whole_set(learner):
    learn = learner(TARGETS, WEIGHTED)
    with learn.no_logging():
        learn.fit(1, 1e-3)
        (digit, ink), targs = learn.get_preds(act=lambda pred: pred)
    table = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    wanted = torch.nn.functional.cross_entropy(digit, targs[0])
    assert table["valid_digit_loss"] == pytest.approx(wanted.item(), rel=1e-4)
    deviation = learn.heads.ink.spec.standardize[1][0]
    assert table["valid_ink_loss"] == pytest.approx((((ink[:, 0] - targs[1]) / deviation) ** 2).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("train", "valid"), [(True, True), (True, False), (False, False)])
def test_columns_and_values_match_however_metrics_are_chosen(learner, train, valid):
    learn = learner(TARGETS)
    learn.recorder.train_metrics, learn.recorder.valid_metrics = train, valid
    with learn.no_logging():
        learn.fit(2, 1e-3)
    metrics = ["digit_accuracy", "ink_mae"]
    wanted = ["epoch", "train_loss", *(["valid_loss"] if valid else []), "train_digit_loss", "train_ink_loss"]
    wanted += [f"train_{m}" for m in metrics] if train else []
    if valid:
        wanted += ["valid_digit_loss", "valid_ink_loss"]
        wanted += [f"valid_{m}" for m in metrics] if train else metrics
    assert list(learn.recorder.metric_names) == [*wanted, "time"]
    assert [len(row) for row in learn.recorder.values] == [len(wanted) - 1] * 2
    if train:
        at = learn.recorder.metric_names.index("train_digit_accuracy") - 1
        assert all(0 <= row[at] <= 1 for row in learn.recorder.values)


class Unlabelled(Callback):
    "Takes the numbers away from some of the training batches."

    def __init__(self, which):
        self.which = which

    def before_batch(self):
        if self.training and self.iter in self.which:
            digit, ink = self.yb
            self.learn.yb = digit, torch.full_like(ink, math.nan)


def test_a_batch_without_a_label_says_nothing_of_that_head(learner):
    learn, kept = learner(TARGETS, missing=0.05), Kept()
    with learn.no_logging():
        learn.fit(1, 1e-3, cbs=[Unlabelled([0, 2]), kept])
    digit, ink = zip(*kept.losses)
    assert len(ink) == 4 and ink[0] == ink[2] == 0 < min(ink[1], ink[3])
    assert [float(v) for v in learn.recorder.losses_by_head["digit"]] == pytest.approx(smoothed(digit), rel=1e-4)
    first, *others = [float(v) for v in learn.recorder.losses_by_head["ink"]]
    one, two = smoothed([ink[1], ink[3]])
    assert math.isnan(first) and others == pytest.approx([one, one, two], rel=1e-4)


def test_a_second_fit_starts_anew_and_the_curve_is_drawn(learner):
    learn = learner(TARGETS)
    with learn.no_logging():
        learn.fit(1, 1e-3)
        learn.fit(1, 1e-3)
    recorder = learn.recorder
    assert len(recorder.losses) == 4 == len(recorder.losses_by_head["ink"])
    assert isinstance(recorder.losses[0], type(tensor(0.0)))
    axes = recorder.plot_loss(skip_start=0)
    train, valid = axes.get_lines()
    assert len(train.get_xdata()) == 4
    column = recorder.metric_names.index("valid_loss") - 1
    assert list(valid.get_ydata()) == [recorder.values[0][column]]
