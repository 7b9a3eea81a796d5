"""What every head says of itself, and a head of one's own in thirty lines."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.metrics import F1Score, accuracy
from fastcore.foundation import L
from torch import Tensor, nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.custom import CustomHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.tasks.task import Task
from fastai_heads.trunks import Trunk

TARGET = Target("it", 0, "unknown")
SPECS = {
    "category": ClassificationHead,
    "multilabel": MultiLabelHead,
    "regression": RegressionHead,
    "point": PointHead,
    "box": BoxHead,
}


def ordinal_loss(pred: Tensor, targ: Tensor, reduction: str = "mean") -> Tensor:
    levels = (targ[:, None] > torch.arange(pred.shape[1], device=pred.device)).float()
    return F.binary_cross_entropy_with_logits(pred, levels, reduction=reduction)


def steps_off(pred: Tensor, targ: Tensor) -> Tensor:
    return ((pred > 0).sum(1) - targ).abs().float().mean()


class OrdinalTask(Task):
    "A class of an ordered vocabulary: one logit for each step, that the class lies above it."

    def default_loss(self) -> Callable:
        return ordinal_loss

    def activation(self, pred: Tensor) -> Tensor:
        return pred.sigmoid()

    def decode(self, pred: Tensor) -> Tensor:
        return (pred > 0.5).sum(1)

    def default_metrics(self) -> Sequence[Callable]:
        return (steps_off,)


@dataclass(frozen=True, kw_only=True)
class OrdinalHead(PooledSpec):
    "fastai's head with a logit less than classes."

    kinds: ClassVar[frozenset[str]] = frozenset({"category"})
    predicts: ClassVar[type[Task]] = OrdinalTask

    def infer_n_out(self, target: Target) -> int:
        return len(target.vocab) - 1


def test_a_subclass_is_a_head_like_any_other(digits):
    heads = {"digit": OrdinalHead(lr_mult=2.0, loss_weight=0.5), "rough": OrdinalHead(target="digit", train_only=True)}
    learn = multihead_learner(digits, "test_resnet", heads=heads, pretrained=False)
    assert learn.model[1]["digit"].layers[-1].out_features == 9 and learn.heads.digit.spec.n_out == 9
    with learn.no_logging():
        learn.fit(1, 1e-3)
        probs, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
        predicted = learn.predict(digits.valid_ds.items.iloc[0])
    assert "digit_steps_off" in learn.recorder.metric_names and "valid_rough_loss" in learn.recorder.metric_names
    assert torch.equal(decoded.digit, (probs.digit > 0.5).sum(1)) and decoded.names == (
        "digit",
        "tags",
        "ink",
        "centre",
        "box",
    )
    assert predicted[0].digit in digits.train_ds.vocab[0]
    logits = torch.logit(probs.digit.double()).float()
    item = F.binary_cross_entropy_with_logits(logits, (targs.digit[:, None] > torch.arange(9)).float())
    assert losses.shape == (8,) and item > 0
    table = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    torch.testing.assert_close(float(item), table["valid_digit_loss"], rtol=1e-4, atol=1e-5)
    wanted = (decoded.digit - targs.digit).abs().float().mean()
    torch.testing.assert_close(float(wanted), table["digit_steps_off"])


def test_a_spec_is_frozen():
    with pytest.raises(FrozenInstanceError):
        ClassificationHead().n_out = 3
    assert replace(ClassificationHead(ps=0.1), n_out=3) == ClassificationHead(ps=0.1, n_out=3)
    with pytest.raises(HeadsError, match=r"by name.*`ClassificationHead\(n_out=3\)`"):
        ClassificationHead(3)


@pytest.mark.parametrize("make", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss_weight": -1}, r"`loss_weight` of \w+ is a finite number of at least 0, found -1"),
        ({"loss_weight": float("nan")}, r"`loss_weight`.*found nan"),
        ({"loss_weight": float("inf")}, r"`loss_weight`.*found inf"),
        ({"loss_weight": "1"}, r"`loss_weight`.*found '1'"),
        ({"loss_weight": True}, r"`loss_weight`.*found True"),
        ({"lr_mult": -0.5}, r"`lr_mult`.*found -0.5"),
        ({"lr_mult": None}, r"`lr_mult`.*found None"),
        ({"n_out": 0}, r"`n_out` of \w+ is a whole number of at least 1, found 0"),
        ({"n_out": 2.0}, r"`n_out`.*found 2.0"),
        ({"n_out": True}, r"`n_out`.*found True"),
        ({"tap": ()}, r"`tap`.*a tap's name, a stride, or a tuple of either, found \(\)"),
        ({"tap": True}, r"`tap`.*found True"),
        ({"tap": None}, r"`tap`.*found None"),
        ({"tap": ["features"]}, r"`tap`.*found \['features'\]"),
        ({"tap": ("features", 1.5)}, r"`tap`.*found \('features', 1.5\)"),
        ({"target": 1.5}, r"`target`.*found 1.5"),
        ({"target": False}, r"`target`.*found False"),
        ({"loss": "mse"}, r"`loss` of \w+ is a function of \(pred, target\), found 'mse'"),
        ({"metrics": "accuracy"}, r"`metrics`.*found 'accuracy'"),
        ({"metrics": [accuracy, 3]}, r"`metrics`.*found \[.*, 3\]"),
        ({"train_only": "no"}, r"`train_only` of \w+ is True or False, found 'no'"),
    ],
    ids=str,
)
def test_every_kind_refuses_a_field_by_name_and_value(make, options, says):
    with pytest.raises(HeadsError, match=says) as caught:
        make(**options)
    assert make.__name__ in str(caught.value)


def test_what_is_not_refused():
    for weight in (0, 1, 0.5, np.float32(0.5), np.int64(2)):
        assert ClassificationHead(loss_weight=weight, lr_mult=weight).loss_weight == weight
    for metrics in (None, [], accuracy, [accuracy], (F1Score(),), L(accuracy, F1Score()), F1Score(), [F1Score]):
        assert ClassificationHead(metrics=metrics).metrics is metrics
    for tap in ("layer1", 8, ("layer1",)):
        assert ClassificationHead(tap=tap).taps == ((tap,) if not isinstance(tap, tuple) else tap)
    assert ClassificationHead(n_out=np.int64(3)).n_out == 3


@pytest.mark.parametrize("kind", SPECS)
def test_a_head_of_another_kind_does_not_fit(target, no_labels, kind):
    for other, make in SPECS.items():
        if other == kind:
            continue
        with pytest.raises(HeadsError, match=rf"{make.__name__} needs a target of kind {other}.*is of kind {kind}"):
            make().fit(target(kind), no_labels)


def test_n_out_comes_from_the_target_and_may_not_contradict_it(target, no_labels):
    assert BoxHead().fit(target("box"), no_labels).n_out == 4
    assert BoxHead(n_out=4).fit(target("box"), no_labels).n_out == 4
    with pytest.raises(HeadsError, match=r"`n_out=5` of ClassificationHead contradicts.*'breed': its vocabulary has 3"):
        ClassificationHead(n_out=5).fit(target("category"), no_labels)
    with pytest.raises(HeadsError, match=r"`n_out=6` of PointHead contradicts target 'nose': it needs 2"):
        PointHead(n_out=6).fit(target("point"), no_labels)
    with pytest.raises(HeadsError, match=r"`n_out` of RegressionHead cannot be inferred from target 'age': pass"):
        RegressionHead().fit(target("regression", n_out=None), no_labels)


def test_a_bare_spec_says_what_it_lacks():
    with pytest.raises(HeadsError, match=r"HeadSpec does not say how its module is built: define `build"):
        HeadSpec().build((TapShape("features", 4, 32),))
    with pytest.raises(HeadsError, match=r"Task has no loss of its own: define `default_loss\(self\)`, or pass `loss="):
        HeadSpec().task(TARGET)


@pytest.mark.parametrize(
    ("spec", "field", "nearest"), [(ClassificationHead, "n_outs", "n_out"), (BoxHead, "taps", "tap")]
)
def test_a_field_that_is_not_there_gets_the_nearest(spec, field, nearest):
    with pytest.raises(
        HeadsError, match=rf"`{field}` is not a parameter of {spec.__name__}\. Did you mean '{nearest}'"
    ):
        spec(**{field: 3})


def test_specs_are_copied_and_pickled():
    spec = ClassificationHead(ps=0.1, tap=8)
    assert copy.deepcopy(spec) == pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("record", "name", "says"),
    [
        (
            ClassificationHead(),
            "los_weight",
            r"`los_weight` is no field of ClassificationHead\. Did you mean 'loss_weight'",
        ),
        (ClassificationHead(), "ps", r"`ps` of ClassificationHead is fixed.*`ClassificationHead\(ps=1, …\)`.*replace"),
        (BoxHead(), "loss_weight", r"`loss_weight` of BoxHead is fixed once it is made"),
        (CustomHead(nn.Identity()), "decode", r"`decode` of CustomHead is fixed"),
        (CustomHead(nn.Identity()), "decoder", r"`decoder` is no field of CustomHead\. Did you mean 'decode'"),
        (Trunk(nn.Identity()), "tap", r"`tap` of Trunk is fixed once it is made: make another, `Trunk\(tap=1, …\)`"),
        (Trunk(nn.Identity()), "modul", r"`modul` is no field of Trunk\. Did you mean 'module'"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:12],
)
def test_a_record_is_not_changed(record, name, says):
    before = repr(record)
    with pytest.raises(HeadsError, match=says):
        setattr(record, name, 1)
    assert repr(record) == before


def test_what_a_task_is_asked_for_is_refused_on_a_spec():
    with pytest.raises(HeadsError, match="`decode` of Old belongs to what the head predicts: define it in a `Task`"):

        class Old(HeadSpec):
            def decode(self, pred):
                return pred

    with pytest.raises(HeadsError, match="`blends` of Older"):

        class Older(HeadSpec):
            blends = False
