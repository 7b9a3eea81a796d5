"""Classification: weights, smoothing, and any loss of fastai's or torch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead


def batch():
    return torch.randn(9, 3), torch.randint(0, 3, (9,))


@pytest.mark.parametrize("weights", [[0.2, 1.0, 3.0], (0.2, 1.0, 3.0), torch.tensor([0.2, 1.0, 3.0]), None])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_and_smoothing_are_torchs(target, no_labels, weights, smoothing):
    pred, targ = batch()
    spec = ClassificationHead(class_weights=weights, label_smoothing=smoothing).fit(target("category"), no_labels)
    task = spec.task(target("category"))
    wanted = F.cross_entropy(
        pred, targ, weight=None if weights is None else torch.tensor([0.2, 1.0, 3.0]), label_smoothing=smoothing
    )
    assert torch.equal(task.train_loss(pred, targ), wanted)
    loss = CrossEntropyLossFlat(
        weight=None if weights is None else torch.tensor([0.2, 1.0, 3.0]), label_smoothing=smoothing, reduction="none"
    )
    assert torch.equal(task.item_loss(pred, targ), loss(pred, targ).as_subclass(torch.Tensor))


def test_balanced_weights_are_scikit_learns(target):
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 0, 2])
    spec = ClassificationHead(class_weights="balanced").fit(target("category"), lambda: labels)
    task = spec.task(target("category"))
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    np.testing.assert_allclose(spec.class_weights, wanted, rtol=1e-6)
    np.testing.assert_allclose(task.loss_func.func.weight.numpy(), wanted, rtol=1e-6)


def test_balanced_weights_need_an_item_of_every_class(target):
    with pytest.raises(HeadsError, match=r"'balanced'.*'breed'.*no item of class dog, fox"):
        ClassificationHead(class_weights="balanced").fit(target("category"), lambda: torch.zeros(5, dtype=torch.long))


class Margin(nn.Module):
    "A loss that is nobody's, without a `reduction`."

    def forward(self, pred, targ):
        return F.multi_margin_loss(pred, targ)


LOSSES = {
    "class": (FocalLossFlat, FocalLossFlat()),
    "instance": (LabelSmoothingCrossEntropyFlat(eps=0.2), LabelSmoothingCrossEntropyFlat(eps=0.2)),
    "torch class": (nn.CrossEntropyLoss, nn.CrossEntropyLoss()),
    "torch instance": (nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(label_smoothing=0.2)),
    "function": (F.cross_entropy, F.cross_entropy),
    "without reduction": (lambda p, t: F.cross_entropy(p, t), F.cross_entropy),
    "module without reduction": (Margin, F.multi_margin_loss),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_trains_reports_activates_and_decodes(target, no_labels, name):
    given, wanted = LOSSES[name]
    spec = ClassificationHead(loss=given).fit(target("category"), no_labels)
    task = spec.task(target("category"))
    pred, targ = batch()
    assert torch.equal(task.train_loss(pred, targ), wanted(pred, targ))
    per_item = task.item_loss(pred, targ)
    each = torch.stack([wanted(p[None], t[None]) for p, t in zip(pred, targ)])
    torch.testing.assert_close(per_item, each)
    probs = task.activation(pred)
    torch.testing.assert_close(probs, pred.softmax(1))
    assert torch.equal(task.decode(probs), pred.argmax(1))


def test_the_losss_own_reduction_is_back_after_a_report(target, no_labels):
    for loss in (CrossEntropyLossFlat(), nn.CrossEntropyLoss(reduction="sum")):
        own, (pred, targ) = loss.reduction, batch()
        spec = ClassificationHead(loss=loss).fit(target("category"), no_labels)
        task = spec.task(target("category"))
        each = F.cross_entropy(pred, targ, reduction="none")
        torch.testing.assert_close(torch.as_tensor(task.item_loss(pred, targ)), each, check_dtype=False)
        assert loss.reduction == own
        with pytest.raises(IndexError):
            task.item_loss(pred, targ + 5)
        assert loss.reduction == own


def test_metric_and_n_out_come_with_the_target(target, no_labels):
    spec = ClassificationHead().fit(target("category"), no_labels)
    task = spec.task(target("category"))
    assert spec.n_out == 3 and task.default_metrics() == (accuracy,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_smoothing": 1.0}, r"`label_smoothing`.*\[0, 1\), found 1.0"),
        ({"label_smoothing": -0.1}, r"`label_smoothing`.*found -0.1"),
        ({"label_smoothing": "much"}, r"`label_smoothing`.*found 'much'"),
        ({"class_weights": "balance"}, r"`class_weights`.*found 'balance'. Did you mean 'balanced'"),
        ({"class_weights": [1, 1, 1], "loss": F.cross_entropy}, r"with `loss=`, give them to that loss"),
        ({"label_smoothing": 0.1, "loss": F.cross_entropy}, r"with `loss=`, give them to that loss"),
    ],
    ids=str,
)
def test_refusals(options, says):
    with pytest.raises(HeadsError, match=says):
        ClassificationHead(**options)


@pytest.mark.parametrize(
    "weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [0, 0, 0], torch.ones(3, 1), {"cat": 1.0}, 2.0]
)
def test_weights_that_do_not_fit_the_vocabulary_are_refused(target, no_labels, weights):
    with pytest.raises(HeadsError, match=r"`class_weights` for target 'breed' are 3 finite weights of at least 0"):
        ClassificationHead(class_weights=weights).fit(target("category"), no_labels)
