"""fastai's metrics, each on one head: as if that head were alone."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from fastai.learner import AvgLoss, AvgMetric, Metric
from fastai.metrics import (
    ActivationType,
    Dice,
    DiceMulti,
    F1Score,
    F1ScoreMulti,
    HammingLossMulti,
    JaccardCoeff,
    JaccardCoeffMulti,
    LossMetric,
    MatthewsCorrCoef,
    Perplexity,
    R2Score,
    RocAuc,
    RocAucMulti,
    accuracy,
    accuracy_multi,
    error_rate,
    exp_rmspe,
    foreground_acc,
    mae,
    mse,
    rmse,
    skm_to_fastai,
    top_k_accuracy,
)
from sklearn.metrics import f1_score, log_loss, r2_score, roc_auc_score
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.tasks.task import Task
from fastai_heads.training.metrics import HeadMetric, HeadValidLoss, distinct, fits_task, head_metrics, metric_name


def sharpness(pred, targ):
    "A function of one's own."
    return pred.softmax(1).amax(1).mean() + 0 * targ.float().mean()


class Counted(Metric):
    "A `Metric` of one's own: how many items it saw."

    def reset(self):
        self.seen = 0

    def accumulate(self, learn):
        self.seen += len(learn.y)

    @property
    def value(self):
        return self.seen

    name = "counted"


class AsksTheLearner(Counted):
    "Also reads what is the learner's own."

    def accumulate(self, learn):
        self.seen += learn.bonus


class Run:
    "Batches as a learner holds them after a step, and one prediction and target by themselves."

    def __init__(self, batches, bonus=0):
        self.batches, self.bonus, self.training, self.dl = batches, bonus, False, None

    def on(self, metric):
        metric.reset()
        for pred, yb in self.batches:
            self.pred, self.yb, self.y = pred, yb, yb[0]
            metric.accumulate(self)
        return metric.value

    def to_detach(self, x):
        return x.detach().cpu()


def run_of(batches, place, index, keep=None):
    "The same batches with one prediction and one target, of all items or of some."
    found = []
    for preds, targs in batches:
        pick = slice(None) if keep is None else keep(targs[index])
        if len(targs[index][pick]):
            found.append((preds[place][pick], (targs[index][pick],)))
    return Run(found)


@pytest.fixture
def batches():
    "Three batches of unlike size for `three`."
    made = []
    for n in (8, 8, 5):
        preds = torch.randn(n, 3), torch.randn(n, 3), 10 + torch.randn(n, 2)
        targs = 10 + torch.randn(n, 2), torch.arange(n) % 3, (torch.arange(3 * n) % 2).view(n, 3).float()
        made.append((preds, targs))
    return made


PLACES = {"breed": 0, "tags": 1, "age": 2}
METRICS = {
    "breed": [
        accuracy,
        error_rate,
        partial(top_k_accuracy, k=2),
        sharpness,
        F1Score(average="macro"),
        MatthewsCorrCoef(),
        RocAuc(),
        skm_to_fastai(log_loss, flatten=False, activation=ActivationType.Softmax),
        AvgMetric(accuracy),
        Counted,
        Counted(),
    ],
    "tags": [accuracy_multi, partial(accuracy_multi, thresh=0.2), F1ScoreMulti(average="macro"), RocAucMulti()],
    "age": [mae, mse, rmse, R2Score(), Counted],
}
CASES = [(name, metric) for name, metrics in METRICS.items() for metric in metrics]
ids = [f"{name}-{i}-{metric_name(metric)}" for i, (name, metric) in enumerate(CASES)]


@pytest.mark.parametrize(("name", "metric"), CASES, ids=ids)
def test_is_what_the_head_alone_would_get(three, batches, name, metric):
    head = three()[name]
    mine = HeadMetric(head, PLACES[name], metric)
    found = Run(batches).on(mine)
    alone = metric() if isinstance(metric, type) else metric if isinstance(metric, Metric) else AvgMetric(metric)
    assert float(found) == float(run_of(batches, PLACES[name], head.target.index).on(alone))
    assert mine.name == f"{name}_{metric_name(metric)}"
    assert float(Run(batches).on(mine)) == float(found), "counted anew after a reset"


@pytest.mark.parametrize(("name", "metric"), CASES, ids=ids)
def test_only_labelled_items_are_counted(three, batches, name, metric):
    head = three(partial=True)[name]
    gaps = []
    for i, (preds, targs) in enumerate(batches):
        targ = targs[head.target.index].clone()
        targ[slice(None) if i == 1 else [0, 3]] = -100 if name == "breed" else math.nan
        gaps.append((preds, tuple(targ if j == head.target.index else t for j, t in enumerate(targs))))
    mine = HeadMetric(head, PLACES[name], metric)
    alone = metric() if isinstance(metric, type) else metric if isinstance(metric, Metric) else AvgMetric(metric)
    wanted = run_of(gaps, PLACES[name], head.target.index, keep=head.labelled).on(alone)
    found = Run(gaps).on(mine)
    assert float(found) == float(wanted) and math.isfinite(found)


def test_without_any_label_there_is_no_value(three, batches):
    head = three(partial=True)["breed"]
    none = [(preds, (targs[0], torch.full_like(targs[1], -100), targs[2])) for preds, targs in batches]
    for metric in (accuracy, F1Score(average="macro")):
        assert Run(none).on(HeadMetric(head, 0, metric)) is None


def test_heads_do_not_share_the_state_of_one_metric(three, batches):
    heads, shared = three(), Counted()
    first, second = HeadMetric(heads.breed, 0, shared), HeadMetric(heads.age, 2, shared)
    for metric in (first, second):
        metric.reset()
    run = Run(batches)
    run.pred, run.yb = batches[0]
    first.accumulate(run)
    assert (first.value, second.value) == (8, 0) and not hasattr(shared, "seen")


def test_a_metric_reaches_the_rest_of_the_learner(three, batches):
    assert Run(batches, bonus=5).on(HeadMetric(three().breed, 0, AsksTheLearner)) == 15


def test_one_head_takes_a_bare_prediction(three, bind, batches):
    breed = three().breed
    head = bind({"breed": (breed.spec, breed.target)}).breed
    bare = Run([(preds[0], targs) for preds, targs in batches])
    assert bare.on(HeadMetric(head, 0, accuracy)) == Run(batches).on(HeadMetric(breed, 0, accuracy))


def test_the_validation_loss_is_over_labelled_items(three, batches):
    head, run = three(partial=True).breed, Run(batches)
    batches[0][1][1][:6] = -100
    batches[1][1][1][:] = -100
    metric = HeadValidLoss(head, 0)
    assert metric.name == "breed_loss"
    metric.reset()
    for preds, targs in batches:
        run.pred, run.yb, run.head_losses = preds, targs, (head.train_loss(preds[0], targs[1]),)
        run.loss = run.head_losses[0]
        metric.accumulate(run)
    pred, targ = (torch.cat(parts) for parts in zip(*((preds[0], targs[1]) for preds, targs in batches)))
    torch.testing.assert_close(metric.value.float(), torch.nn.functional.cross_entropy(pred, targ))
    metric.reset()
    assert metric.value is None


def test_which_metrics_a_head_has(three):
    def names(**fields):
        return [m.name for m in head_metrics(three(breed=fields).breed, 0)]

    assert names() == ["breed_accuracy"]
    assert names(metrics=[]) == []
    assert names(metrics=error_rate) == ["breed_error_rate"]
    assert names(metrics=F1Score()) == ["breed_f1_score"]
    assert names(metrics=[error_rate, Counted, Counted()]) == ["breed_error_rate", "breed_counted", "breed_counted_2"]
    assert names(train_only=True) == [] and names(train_only=True, metrics=accuracy) == ["breed_accuracy"]


class Everything(Metric):
    "Keeps what it finds on the learner."

    def reset(self):
        self.found = []

    def accumulate(self, learn):
        names = ("pred", "y", "yb", "xb", "x", "loss", "loss_func")
        self.found.append({name: getattr(learn, name) for name in names})
        self.found[-1].update(dl=learn.dl, vocab=getattr(learn.dls, "vocab", None))

    @property
    def value(self):
        return len(self.found)

    name = "everything"


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_a_metric_finds_what_a_learner_with_that_head_alone_has(learner, missing):
    heads = {"digit": ClassificationHead(metrics=Everything()), "ink": RegressionHead(metrics=Everything())}
    learn = learner(("ink", "digit"), heads, missing=missing)
    with learn.no_logging():
        learn.validate(dl=learn.dls.train.new(shuffle=False, drop_last=False))
    for name, metric in zip(heads, learn.metrics, strict=True):
        head = learn.heads[name]
        assert metric.value == 4
        for seen, batch in zip(metric.metric.found, learn.dls.train.new(shuffle=False, drop_last=False), strict=True):
            targ = batch[1 + head.target.index]
            known = head.labelled(targ)
            assert len(seen["pred"]) == len(seen["y"]) == len(seen["x"]) == known.sum()
            assert seen["yb"] == (seen["y"],) and seen["xb"][0].shape == seen["x"].shape
            assert torch.equal(seen["x"], batch[0][known]) and torch.equal(seen["y"], targ[known])
            torch.testing.assert_close(seen["loss"], head.task.train_loss(seen["pred"], seen["y"]))
            assert seen["loss_func"] is head.loss_func and len(seen["dl"].one_batch()) == 2
        if name == "digit":
            assert list(seen["vocab"]) == list(head.vocab)


class InParts(torch.nn.Module):
    "A loss that notes one of its parts."

    reduction = "mean"

    def forward(self, pred, targ):
        self.plain = torch.nn.functional.cross_entropy(pred, targ, reduction=self.reduction)
        return 2 * self.plain


@pytest.mark.parametrize(("bs", "missing"), [(12, 0.0), (5, 0.0), (5, 0.4)])
def test_metrics_that_read_the_loss_read_that_heads(learner, bs, missing):
    heads = {
        "digit": ClassificationHead(loss=InParts(), metrics=[AvgLoss(), Perplexity(), LossMetric("plain")]),
        "ink": RegressionHead(metrics=AvgLoss(), loss_weight=7.0),
    }
    learn = learner(("digit", "ink"), heads, missing=missing)
    with learn.no_logging():
        dl = learn.dls.train.new(shuffle=False, drop_last=False, bs=bs)
        total, digit, ink, *found = learn.validate(dl=dl)
        losses = learn.get_preds(dl=dl, with_loss=True)[-1]
    assert digit == pytest.approx(float(losses.digit.nanmean()), rel=1e-5)
    assert ink == pytest.approx(float(losses.ink.nanmean()), rel=1e-5)
    assert total == pytest.approx(digit + 7 * ink, rel=1e-6)
    assert found == pytest.approx([digit, math.exp(digit), digit / 2, ink], rel=1e-5)


def test_names_begin_with_the_heads_and_are_no_two_alike(three):
    def names(**fields):
        return [m.name for m in head_metrics(three(age=fields).age, 0)]

    assert names(metrics=rmse) == ["age_rmse"] and names(metrics=exp_rmspe) == ["age_exp_rmspe"]
    assert names(metrics=[mae, mae, rmse, mae]) == ["age_mae", "age_mae_2", "age_rmse", "age_mae_3"]
    assert names(metrics=[R2Score(), r2_by_hand(), MeanSquaredError()]) == [
        "age_r2_score",
        "age_r2_by_hand",
        "age_mean_squared_error",
    ]
    assert names(metrics=MetricCollection([MeanSquaredError(), MeanAbsoluteError()])) == [
        "age_mean_squared_error",
        "age_mean_absolute_error",
    ]
    assert distinct(["a", "a", "a_2", "a"]) == ["a", "a_2", "a_2_2", "a_3"]


class r2_by_hand:
    "An object that is called, without a name."

    def __call__(self, pred, targ):
        return 1 - (pred - targ).square().sum() / (targ - targ.mean()).square().sum()


TORCHMETRICS = {
    "breed": [MulticlassAccuracy(3), MulticlassAUROC(3), MulticlassF1Score],
    "tags": [MultilabelAccuracy(3), MultilabelF1Score(3, ignore_index=-1)],
    "age": [MeanSquaredError(), MeanAbsoluteError],
}


@pytest.mark.parametrize("part", [False, True], ids=["whole", "with gaps"])
@pytest.mark.parametrize("name", TORCHMETRICS)
def test_an_object_of_torchmetrics_counts_over_all_batches(three, batches, name, part):
    head = three(partial=part)[name]
    for made in TORCHMETRICS[name]:
        made = partial(made, 3) if made is MulticlassF1Score else made
        metric = made() if isinstance(made, type | partial) else made
        if part:
            batches[0][1][head.target.index][:3] = -100 if name == "breed" else math.nan
        mine = HeadMetric(head, PLACES[name], metric)
        found = Run(batches).on(mine)
        preds, targs = (torch.cat(p) for p in zip(*((p[PLACES[name]], t[head.target.index]) for p, t in batches)))
        known = head.labelled(targs)
        targs = targs[known].long() if name == "tags" else targs[known]
        torch.testing.assert_close(float(found), float(type(metric)(**options(metric))(preds[known], targs)))
        assert mine.name.startswith(f"{name}_m") and float(Run(batches).on(mine)) == float(found)


def options(metric):
    "What a metric of torchmetrics was made with."
    names = {"num_classes": 3, "num_labels": 3}
    found = {k: v for k, v in names.items() if getattr(metric, k, None) is not None}
    return found | ({"ignore_index": -1} if getattr(metric, "ignore_index", None) == -1 else {})


@pytest.fixture
def gappy():
    "Two batches of tags, some of them missing one by one; predictions and targets."
    made = []
    for n in (7, 4):
        preds, targs = torch.randn(n, 3), (torch.arange(3 * n) * 5 % 7 % 2).view(n, 3).float()
        targs[torch.rand(n, 3) < 0.3] = math.nan
        targs[0] = math.nan
        targs[1:3] = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
        made.append(((torch.empty(n), preds), (torch.empty(n), torch.empty(n), targs)))
    return made


def test_missing_tags_count_in_no_metric(three, gappy):
    head = three(partial=True).tags
    preds, targs = (torch.cat(parts) for parts in zip(*((p[1], t[2]) for p, t in gappy)))
    known, guess = ~targs.isnan(), preds.sigmoid() >= 0.5
    columns = [(targs[k, c], guess[k, c], preds[k, c]) for c, k in enumerate(known.T)]
    f1s = [f1_score(t, g) for t, g, _ in columns]
    support = [float(t.sum()) for t, *_ in columns]
    wanted = {
        accuracy_multi: (guess == targs)[known].float().mean().item(),
        F1ScoreMulti(average="macro"): np.mean(f1s),
        F1ScoreMulti(average="micro"): f1_score(targs[known], guess[known]),
        F1ScoreMulti(average="weighted"): np.average(f1s, weights=support),
        RocAucMulti(): np.mean([roc_auc_score(t, p) for t, _, p in columns]),
        HammingLossMulti(): (guess != targs)[known].float().mean().item(),
        MultilabelAccuracy(3, average="micro", ignore_index=-1): (guess == targs)[known].float().mean().item(),
    }
    for metric, value in wanted.items():
        assert float(Run(gappy).on(HeadMetric(head, 1, metric))) == pytest.approx(value, rel=1e-5), metric_name(metric)
    with pytest.raises(HeadsError, match=r"MultilabelAccuracy counts them all.*`ignore_index=-1`"):
        Run(gappy).on(HeadMetric(head, 1, MultilabelAccuracy(3)))


KINDS = ("category", "multilabel", "regression", "point", "box", "mask")


@pytest.mark.parametrize(
    ("metric", "kinds"),
    [
        (accuracy, {"category"}),
        (partial(top_k_accuracy, k=2), {"category"}),
        (AvgMetric(error_rate), {"category"}),
        (F1Score(), {"category"}),
        (RocAuc(), {"category"}),
        (accuracy_multi, {"multilabel"}),
        (partial(accuracy_multi, thresh=0.1), {"multilabel"}),
        (F1ScoreMulti(), {"multilabel"}),
        (RocAucMulti(), {"multilabel"}),
        (mae, {"regression", "point", "box"}),
        (rmse, {"regression", "point", "box"}),
        (R2Score(), {"regression", "point", "box"}),
        (foreground_acc, {"mask"}),
        (Dice(), {"mask"}),
        (JaccardCoeff, {"mask"}),
        (DiceMulti(), {"mask"}),
        (JaccardCoeffMulti(), {"mask"}),
        (sharpness, set(KINDS)),
        (Counted, set(KINDS)),
    ],
    ids=lambda v: metric_name(v) if callable(v) or isinstance(v, Metric) else "",
)
def test_which_kind_a_metric_says_something_of(metric, kinds):
    assert {kind for kind in KINDS if fits_task(metric, Task(Target("it", 0, kind), loss=mae))} == kinds


def test_in_a_learner_the_table_equals_scikit_learn_and_predictions(learner):
    heads = {
        "digit": ClassificationHead(metrics=[accuracy, F1Score(average="macro")]),
        "tags": MultiLabelHead(threshold=0.4),
        "ink": RegressionHead(metrics=[mae, R2Score()]),
        "box": BoxHead(metrics=[]),
    }
    learn = learner(("digit", "tags", "ink", "box"), heads)
    with learn.no_logging():
        learn.fit(1, 1e-3)
        preds, targs = learn.get_preds()
    table = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    guess, truth = preds.digit.argmax(1), targs.digit
    wanted = {
        "digit_accuracy": (guess == truth).float().mean().item(),
        "digit_f1_score": f1_score(truth, guess, average="macro"),
        "tags_accuracy_multi": ((preds.tags > 0.4) == targs.tags.bool()).float().mean().item(),
        "ink_mae": (preds.ink[:, 0] - targs.ink).abs().mean().item(),
        "ink_r2_score": r2_score(targs.ink.numpy(), preds.ink[:, 0].numpy()),
    }
    found = {name: value for name, value in table.items() if "loss" not in name}
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-4, atol=1e-6)


def test_one_metric_for_all_heads_that_can_take_it(learner):
    shared = F1Score(average="macro")
    heads = {"rough": ClassificationHead(target="digit", train_only=True), "ink": RegressionHead(metrics=[])}
    learn = learner(("digit", "tags", "ink", "box"), heads, metrics=[shared, mae])
    assert [m.name for m in learn.metrics] == ["digit_f1_score", "tags_accuracy_multi", "box_mae"]
    with pytest.raises(HeadsError, match=r"`metrics`: no head takes accuracy_multi. Heads: digit \(category\)"):
        learner(("digit",), metrics=accuracy_multi)
