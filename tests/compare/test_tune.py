"""The search of loss weights: every training by hand, the rounds, an interrupt, and what cannot be run."""

import math
import random
from statistics import fmean

import pandas as pd
import pytest
from fastai.torch_core import no_random

from fastai_heads.compare.tune import TunedWeights, _budgets, _draw, tune_weights
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead
from fastai_heads.learner.factory import multihead_learner


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("tune") / "scenes"


@pytest.fixture
def make(scenes):
    "Give a function that makes small learners over the same data."
    dls = digits_dls(("digit", "ink"), bs=8, n=30, size=32, path=scenes)
    heads = {"digit": ClassificationHead(loss_weight=2.0)}
    return lambda: multihead_learner(dls, "test_resnet", heads, pretrained=False)


def fit(learn, epochs):
    learn.fit(epochs, 0.01)


@pytest.mark.parametrize(
    ("epochs", "trials", "rounds"),
    [(9, 9, [3, 9]), (9, 27, [1, 3, 9]), (1, 27, [1]), (2, 9, [2]), (10, 10, [1, 3, 10]), (5, 3, [5])],
)
def test_rounds(epochs, trials, rounds):
    assert _budgets(epochs, trials) == rounds


def test_weights_are_drawn_evenly_in_their_logarithm_and_have_one_mean():
    own = {"a": 1.0, "b": 3.0}
    drawn = _draw(own, 400, 10.0, 0)
    assert drawn[0] == own and all(math.isclose(fmean(found.values()), 2.0) for found in drawn)
    logs = [math.log10(found["a"] / found["b"] * 3) for found in drawn[1:]]
    assert -2 <= min(logs) < -1.5 and 1.5 < max(logs) <= 2 and abs(fmean(logs)) < 0.15
    assert _draw(own, 5, 10.0, 0) == drawn[:5] != _draw(own, 5, 10.0, 1)


def test_a_row_is_what_one_trains_by_hand(make):
    found = tune_weights(make, 3, 4, fit=fit, seed=5)
    assert sorted(found.table["epochs"]) == [1] * 4 + [3] * 2
    for _, row in found.table.iterrows():
        with no_random(5):
            learn = make()
        for loader in learn.dls.loaders:
            loader.rng = random.Random(5)
        for name in ("digit", "ink"):
            learn.heads[name].loss_weight = row[f"{name}_weight"]
        with no_random(5), learn.no_bar(), learn.no_logging():
            fit(learn, int(row["epochs"]))
            values = dict(zip(("loss", "digit_loss", "ink_loss", *(m.name for m in learn.metrics)), learn.validate()))
        assert row["ink_mae"] == pytest.approx(values["ink_mae"], rel=1e-6)
    own = found.table[found.table["trial"] == 0]
    assert (own["delta_m"] == 0).all() and (own["digit_weight"] == 2).all() and (own["ink_weight"] == 1).all()
    best = found.table.iloc[0]
    assert best["epochs"] == 3 and best["delta_m"] == found.table["delta_m"][found.table["epochs"] == 3].max()
    learn = found.apply(make())
    assert {name: head.loss_weight for name, head in learn.heads.items()} == found.weights
    assert "loss weights: digit" in repr(found) and "<table" in found._repr_html_()


def test_the_better_ones_go_on(make):
    table = tune_weights(make, 3, 4, fit=fit).table
    short, long = (table[table["epochs"] == epochs] for epochs in (1, 3))
    best = short[short["trial"] > 0].sort_values(["delta_m", "trial"], ascending=[False, True]).iloc[0]
    assert set(long["trial"]) == {0, best["trial"]}


def test_it_goes_on_after_an_interrupt(make, tmp_path):
    whole, calls = tune_weights(make, 3, 4, fit=fit, folder=tmp_path / "whole"), []

    def stop(learn, epochs):
        calls.append(epochs)
        if len(calls) == 4:
            raise KeyboardInterrupt
        fit(learn, epochs)

    with pytest.raises(KeyboardInterrupt):
        tune_weights(make, 3, 4, fit=stop, folder=tmp_path / "cut")
    again = tune_weights(make, 3, 4, fit=stop, folder=tmp_path / "cut")
    assert len(calls) == 4 + 3
    pd.testing.assert_frame_equal(again.table, whole.table)
    with pytest.raises(HeadsError, match="another comparison"):
        tune_weights(make, 3, 5, fit=fit, folder=tmp_path / "cut")


def test_a_frozen_body_runs_once(make, monkeypatch):
    def frozen():
        learn = make()
        learn.freeze()
        return learn

    passes, seen = [], frozen().model[0].__class__.forward
    monkeypatch.setattr(
        "fastai_heads.data.tap_cache.TapCache.find", lambda *args: passes.append(1)
    )  # asked for each set that is not there yet
    found = tune_weights(frozen, 3, 4)
    assert seen and len(passes) == 2 and isinstance(found, TunedWeights)  # training and validation


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"trials": 1}, "`trials`"),
        ({"reach": 1}, "`reach`"),
        ({"reach": float("nan")}, "`reach`"),
        ({"fit": print and 3}, "`fit`"),
        ({"seed": 0.5}, "`seed`"),
        ({"folder": 3}, "`folder`"),
        ({"metrics": {"digit": "digit_accuray"}}, "digit_accuracy"),
        ({"metrics": {"digti": "digit_accuracy"}}, "digit"),
        ({"learn_factory": lambda strategy: None}, "`learn_factory`"),
        ({"learn_factory": None}, "`learn_factory`"),
    ],
)
def test_what_cannot_be_run_is_refused(make, given, said):
    with pytest.raises(HeadsError, match=said):
        tune_weights(**{"learn_factory": make, "epochs": 1, "trials": 2, **given})
