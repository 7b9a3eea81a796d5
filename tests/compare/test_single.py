"""Heads alone against heads together: what one gets by hand, resumed after an interrupt, refused where it is no use."""

import random

import pandas as pd
import pytest
from fastai.torch_core import no_random
from torch import nn
from torchjd.scalarization import UW

from fastai_heads.compare.single import compare_to_single
from fastai_heads.compare.table import ALL, SINGLE
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.trunks import Trunk


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("compare") / "scenes"


@pytest.fixture
def dls(scenes):
    return digits_dls(("digit", "ink"), bs=8, n=30, size=32, path=scenes)


@pytest.fixture
def factory(dls):
    "Small learners over the same data."
    return lambda strategy: multihead_learner(dls, "test_resnet", pretrained=False, strategy=strategy)


def fit(learn, epochs):
    learn.fit(epochs, 0.01)


def test_table_and_file(factory, capsys, tmp_path):
    table = compare_to_single(factory, 1, 2, {"sum": None}, fit=fit, folder=tmp_path)
    assert list(table.index) == [(s, h) for s in (SINGLE, "sum") for h in ("digit", "ink", ALL)]
    assert (table["runs"].dropna() == 2).all() and (table["cost"].dropna() > 0).all()
    single, both = table.loc[(SINGLE, ALL)], table.loc[("sum", ALL)]
    assert both["parameters"] == sum(p.numel() for p in factory(None).model.parameters()) < single["parameters"]
    assert "ink_mae" in capsys.readouterr().out
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert len(runs) == 6 and (runs["seconds"] > 0).all()
    digit = runs[(runs["strategy"] == SINGLE) & (runs["head"] == "digit")]
    assert digit["digit_loss"].mean() > 0 and digit["ink_mae"].isna().all()


@pytest.mark.parametrize("alone", ["digit", "ink", None])
def test_a_run_is_what_one_trains_by_hand(dls, factory, tmp_path, alone):
    compare_to_single(factory, 2, [5], {"sum": None}, fit=fit, folder=tmp_path)
    runs = pd.read_csv(tmp_path / "runs.csv").set_index(["strategy", "head"])
    with no_random(5):
        learn = multihead_learner(dls, "test_resnet", pretrained=False)
    for loader in dls.loaders:
        loader.rng = random.Random(5)
    if alone:
        learn.drop_head({"digit": "ink", "ink": "digit"}[alone])
    with no_random(5), learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
    row = runs.loc[(SINGLE, alone) if alone else ("sum", ALL)]
    last = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    for metric in learn.metrics:
        assert row[metric.name] == float(last[metric.name])
    assert row["loss"] == pytest.approx(float(last["valid_loss"]), rel=1e-12)


def test_an_interrupted_comparison_goes_on_and_comes_to_the_same(factory, tmp_path):
    whole = compare_to_single(factory, 1, 2, {"sum": None}, fit=fit, folder=tmp_path / "whole")
    done = []

    def interrupted(learn, epochs):
        if len(done) == 3:
            raise KeyboardInterrupt
        fit(learn, epochs)
        done.append(list(learn.heads))

    with pytest.raises(KeyboardInterrupt):
        compare_to_single(factory, 1, 2, {"sum": None}, fit=interrupted, folder=tmp_path / "parts")
    assert len(pd.read_csv(tmp_path / "parts" / "runs.csv")) == 3
    again = []
    parts = compare_to_single(
        factory, 1, 2, {"sum": None}, fit=lambda *a: (again.append(1), fit(*a)), folder=tmp_path / "parts"
    )
    assert len(again) == 3 and done == [["digit"], ["ink"], ["digit", "ink"]]
    same = ["metric", "mean", "spread", "runs", "delta_m", "parameters"]
    pd.testing.assert_frame_equal(parts[same], whole[same], check_exact=True)
    read = compare_to_single(factory, 1, [1], {"sum": None}, fit=None, folder=tmp_path / "parts")  # nothing to run
    assert (read["runs"].dropna() == 1).all()


def test_strategies_by_default(factory, tmp_path):
    table = compare_to_single(factory, 1, 1, fit=fit, folder=tmp_path)
    labels = ["sum", "UW", "GeometricMean", "UPGrad over taps", "Disjoint"]
    assert list(dict.fromkeys(label for label, _ in table.index)) == [SINGLE, *labels]
    assert table.loc[("UW", ALL), "parameters"] == table.loc[("sum", ALL), "parameters"] + 2
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert runs["loss"].nunique() == len(runs) == 7  # each trains in a way of its own


def test_a_strategy_with_a_state_is_copied_for_every_run(factory, tmp_path):
    kept = UW(2)
    strategies = {"first": kept, "second": kept}
    compare_to_single(factory, 2, [4, 5], strategies, fit=fit, folder=tmp_path)
    assert not kept.log_var.any()
    runs = pd.read_csv(tmp_path / "runs.csv").set_index(["strategy", "seed"]).drop(columns=["head", "seconds"])
    for seed in (4, 5):
        assert runs.loc[("first", seed)].equals(runs.loc[("second", seed)])
    with pytest.raises(HeadsError, match="first"):
        compare_to_single(factory, 2, [4], {"first": UW}, fit=None, folder=tmp_path)


def test_a_strategy_that_is_not_passed_on_is_refused(dls):
    with pytest.raises(HeadsError, match="does not pass its strategy on"):
        compare_to_single(
            lambda strategy: multihead_learner(dls, "test_resnet", pretrained=False), 1, 1, {"UW": UW}, fit=fit
        )


def test_the_random_state_of_others_is_left_alone(factory):
    random.seed(3)
    before = random.getstate()
    compare_to_single(factory, 1, 1, {"sum": None}, fit=fit)
    assert random.getstate() == before


def test_metric_of_choice_and_heads_without_one(dls):
    def factory(strategy):
        heads = {"ink": RegressionHead(metrics=()), "digit": ClassificationHead()}
        return multihead_learner(dls, "test_resnet", heads=heads, pretrained=False)

    table = compare_to_single(factory, 1, 1, {"sum": None}, {"digit": "digit_loss"}, fit=fit)
    assert table["metric"].dropna().tolist() == ["ink_loss", "digit_loss"] * 2
    with pytest.raises(HeadsError, match=r"`metrics\['digit'\]`.*digit_accuracy"):
        compare_to_single(factory, 1, 1, {"sum": None}, {"digit": "accuracy"})
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        compare_to_single(factory, 1, 1, {"sum": None}, {"digits": "digit_accuracy"})


def test_a_head_alone_has_neither_others_trunks_nor_auxiliary_heads(dls):
    def factory(strategy):
        heads = {
            "digit": ClassificationHead(),
            "ink": RegressionHead(tap="neck"),
            "early": ClassificationHead(target="digit", tap="layer2", train_only=True),
        }
        return multihead_learner(
            dls, "test_resnet", heads, trunk={"neck": Trunk(nn.Conv2d(96, 96, 1))}, pretrained=False
        )

    seen = []
    table = compare_to_single(
        factory, 1, 1, {"sum": None}, fit=lambda learn, _: seen.append((list(learn.heads), len(learn.model[1].trunks)))
    )
    assert seen == [(["digit"], 0), (["ink"], 1), (["digit", "ink", "early"], 1)]
    assert "early" not in {head for _, head in table.index}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"seeds": 0}, "`seeds`"),
        ({"seeds": [1, 1]}, "each once"),
        ({"strategies": {"single": None}}, "'single'"),
        ({"strategies": {}}, "empty"),
        ({"learn_factory": lambda strategy: None}, "NoneType"),
    ],
)
def test_bad_input_is_refused_before_any_training(factory, change, found):
    kwargs = {"learn_factory": factory, "epochs": 1, "seeds": 1, "strategies": {"sum": None}, "fit": None}
    with pytest.raises(HeadsError, match=found):
        compare_to_single(**kwargs | change)


def test_learners_that_cannot_be_compared_are_refused(dls, factory, scenes, tmp_path):
    with pytest.raises(HeadsError, match="digit alone"):
        one = digits_dls("digit", bs=8, n=30, size=32, path=scenes)
        compare_to_single(lambda _: multihead_learner(one, "test_resnet", pretrained=False), 1)
    learn = factory(None)
    with pytest.raises(HeadsError, match="anew"):
        compare_to_single(lambda _: learn, 1, 1, {"sum": None})
    compare_to_single(factory, 1, 1, {"sum": None}, fit=fit, folder=tmp_path)
    with pytest.raises(HeadsError, match="epochs: 1 there, 2 now"):
        compare_to_single(factory, 2, 1, {"sum": None}, fit=fit, folder=tmp_path)
