"""What every task says: the loss of an item, what a loss is a mean of; what a head hands its task."""

import functools
import pickle
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from torch import nn

from fastai_heads.data.kinds import Answer
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.defaults import default_head, task_type
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.tasks.task import Task

TARGET = Target("it", 0, "unknown")
HEADS = (  # each with an option that its task takes over
    (ClassificationHead, "category", {"label_smoothing": 0.1}),
    (MultiLabelHead, "multilabel", {"threshold": 0.3}),
    (RegressionHead, "regression", {"standardize": ((1.0,) * 4, (2.0,) * 4)}),
    (PointHead, "point", {}),
    (BoxHead, "box", {}),
    (SegmentationHead, "mask", {"losses": ("dice", "focal"), "ignore_index": 7}),
    (DetectionHead, "detection", {"kind": "fcos", "decode_score": 0.3}),
)


@pytest.mark.parametrize(("make", "kind", "options"), HEADS, ids=[kind for _, kind, _ in HEADS])
def test_a_head_hands_its_task_the_fields_of_the_same_names(make, kind, options):
    target = Target("it", 0, kind, 4)
    spec = make(**options).fit(target, lambda: torch.zeros(0, 4, 4))
    task = spec.task(target)
    assert type(task) is task_type(target) is type(default_head(target)).predicts
    assert task.target is target and task.n_out == 4
    own = [f.name for f in fields(task) if f.init and f.name not in ("target", "n_out", "loss")]
    assert set(options) - {"losses"} <= set(own)
    assert all(getattr(task, name) == getattr(spec, name) for name in own), "every option is one of the head's"
    assert type(pickle.loads(pickle.dumps(task)).loss_func) is type(task.loss_func)


def test_what_is_said_of_an_item_follows_from_the_target():
    pred, targ = torch.randn(3, 2), torch.tensor([[1, torch.nan], [0, 1], [1, 0]])
    gappy = Task(Target("it", 0, "multilabel", 2, partial=True), 2, nn.BCEWithLogitsLoss())
    known = ~targ.isnan()
    wanted = F.binary_cross_entropy_with_logits(pred[known], targ[known])
    torch.testing.assert_close(gappy.train_loss(pred, targ), wanted)
    mask = Task(Target("it", 0, "mask", 2), 2, nn.CrossEntropyLoss(ignore_index=7))
    assert mask.train_loss(torch.randn(1, 2, 4, 4), torch.full((1, 4, 4), 7)) == 0, "and not 0 / 0"
    assert (gappy.answers, mask.answers, Task(TARGET, 1, F.l1_loss).answers) == (Answer.TAGS, Answer.CODES, None)


def test_another_loss_leaves_the_task_as_it_was():
    task = Task(TARGET, 2, F.mse_loss)
    other = task.with_loss(F.l1_loss)
    assert task.loss_func is F.mse_loss and other.loss_func is F.l1_loss and other.n_out == 2


def test_a_loss_that_cannot_be_told_by_items_says_so():
    task = Task(TARGET, loss=lambda pred, targ, reduction="mean": pred.sum())
    with pytest.raises(HeadsError, match="loss of target 'it' cannot be told apart by items"):
        task.item_loss(torch.randn(3, 2), torch.randn(3, 2))


WEIGHTS = torch.tensor([0.1, 1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHTS), "weights"),
        (CrossEntropyLossFlat(weight=WEIGHTS, label_smoothing=0.1), "weights"),
        (functools.partial(F.cross_entropy, weight=WEIGHTS), "weights"),
        (lambda pred, targ, reduction="mean": F.cross_entropy(pred, targ, WEIGHTS, reduction=reduction), "weights"),
        (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), "weights without 2"),
        (nn.CrossEntropyLoss(ignore_index=2), "items without 2"),
        (FocalLossFlat(weight=WEIGHTS), "items"),
        (F.cross_entropy, "items"),
        (lambda pred, targ: F.cross_entropy(pred, targ), "items"),
        (lambda pred, targ, reduction="mean": 0 * F.cross_entropy(pred, targ, reduction=reduction), "items"),
    ],
    ids=[
        *("torch", "fastai", "partial", "function", "weighted, ignored", "ignored", "focal", "plain", "no reduction"),
        "zero",
    ],
)
def test_a_loss_says_what_it_is_a_mean_of(loss, count):
    pred, targ = torch.randn(9, 4), torch.arange(9) % 4
    kept = targ[targ != 2] if "without" in count else targ
    wanted = WEIGHTS[kept].sum() if "weights" in count else len(kept)
    found = Task(TARGET, loss=loss).loss_count(pred, targ, loss(pred, targ))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_a_loss_that_has_several_values_an_item_is_a_mean_of_them_all():
    pred, targ = torch.randn(9, 4), torch.randn(9, 4)
    for loss in (nn.MSELoss(), F.l1_loss, lambda pred, targ: (pred - targ).abs().mean()):
        assert Task(TARGET, loss=loss).loss_count(pred, targ, loss(pred, targ)) == 36
    signed = Task(TARGET, loss=lambda pred, targ, reduction="mean": pred if reduction == "none" else pred.mean())
    even = torch.cat([pred, -pred])  # its mean is 0, and says nothing
    assert signed.loss_count(even, even, even.mean()) == 72


class Noting(nn.Module):
    "A loss that notes a part of it, as `LossMetric` reads it."

    reduction = "mean"

    def forward(self, pred, targ):
        each = F.cross_entropy(pred, targ, reduction="none")
        self.part = each if self.reduction == "none" else each.mean()
        return self.part


def test_a_further_look_at_a_loss_leaves_no_trace():
    pred, targ, loss = torch.randn(9, 4), torch.arange(9) % 4, Noting()
    value = loss(pred, targ)
    task = Task(TARGET, loss=loss)
    task.item_loss(pred[:3], targ[:3])
    task.loss_count(pred, targ, value)
    assert loss.part is value and "reduction" not in vars(loss)
