"""Several labels: threshold and weights of present labels."""

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.multilabel import MultiLabelHead


def batch():
    return torch.randn(9, 3), torch.randint(0, 2, (9, 3)).float()


@pytest.mark.parametrize("weight", [None, 4.0, [0.5, 1.0, 4.0], torch.tensor([0.5, 1.0, 4.0])])
def test_the_loss_is_torchs(target, no_labels, weight):
    pred, targ = batch()
    spec = MultiLabelHead(pos_weight=weight).fit(target("multilabel"), no_labels)
    task = spec.task(target("multilabel"))
    expanded = None if weight is None else torch.as_tensor(weight).expand(3)
    wanted = F.binary_cross_entropy_with_logits(pred, targ, pos_weight=expanded)
    torch.testing.assert_close(task.train_loss(pred, targ), wanted)
    each = F.binary_cross_entropy_with_logits(pred, targ, pos_weight=expanded, reduction="none").mean(1)
    torch.testing.assert_close(task.item_loss(pred, targ), each)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_labels_above_the_threshold_are_predicted_and_measured(target, no_labels, threshold):
    pred, targ = batch()
    spec = MultiLabelHead(threshold=threshold).fit(target("multilabel"), no_labels)
    task = spec.task(target("multilabel"))
    decoded = task.decode(task.activation(pred))
    assert torch.equal(decoded, pred.sigmoid() > threshold)
    (metric,) = task.default_metrics()
    torch.testing.assert_close(metric(pred, targ), (decoded == targ.bool()).float().mean())


@pytest.mark.parametrize(
    "loss", [BCEWithLogitsLossFlat, nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits], ids=str
)
def test_any_loss_activates_by_a_sigmoid(target, no_labels, loss):
    pred, targ = batch()
    spec = MultiLabelHead(loss=loss).fit(target("multilabel"), no_labels)
    task = spec.task(target("multilabel"))
    torch.testing.assert_close(task.train_loss(pred, targ), F.binary_cross_entropy_with_logits(pred, targ))
    torch.testing.assert_close(task.activation(pred), pred.sigmoid())
    assert task.item_loss(pred, targ).shape == (9,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 0}, r"`threshold`.*between 0 and 1, found 0"),
        ({"threshold": 1.0}, r"`threshold`.*found 1.0"),
        ({"threshold": "half"}, r"`threshold`.*found 'half'"),
        ({"pos_weight": 2.0, "loss": nn.BCEWithLogitsLoss()}, r"`pos_weight`.*with `loss=`, give it to that loss"),
    ],
    ids=str,
)
def test_refusals(options, says):
    with pytest.raises(HeadsError, match=says):
        MultiLabelHead(**options)


@pytest.mark.parametrize("weight", [[1.0, 2.0], 0.0, [1.0, -1.0, 1.0], float("nan"), "many"])
def test_weights_that_do_not_fit_the_vocabulary_are_refused(target, no_labels, weight):
    with pytest.raises(HeadsError, match=r"`pos_weight` for target 'tags' is one positive number or 3 of them"):
        MultiLabelHead(pos_weight=weight).fit(target("multilabel"), no_labels)
