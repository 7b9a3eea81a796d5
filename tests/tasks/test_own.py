"""A task with a loss or a decoding of the user's own: what it says itself, and what it leaves to the target's kind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastai_heads.data.targets import Target
from fastai_heads.tasks.box import BoxTask
from fastai_heads.tasks.classification import ClassificationTask
from fastai_heads.tasks.detection import DetectionTask
from fastai_heads.tasks.mask import MaskTask
from fastai_heads.tasks.multilabel import MultiLabelTask
from fastai_heads.tasks.own import OwnTask
from fastai_heads.tasks.point import PointTask
from fastai_heads.tasks.regression import RegressionTask
from fastai_heads.tasks.task import Task

KINDS = {
    "category": ClassificationTask,
    "multilabel": MultiLabelTask,
    "regression": RegressionTask,
    "point": PointTask,
    "box": BoxTask,
    "mask": MaskTask,
    "detection": DetectionTask,
    "unknown": Task,
}
TARGET = Target("it", 0, "unknown", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_users_loss_does_not_change_is_the_kinds(kind):
    target = Target("it", 0, kind, 4, partial=True)
    task = OwnTask(target, 3, F.mse_loss, KINDS[kind](target, 4, F.l1_loss))
    facts = ("answers", "blends", "moves_with_image", "by_batch", "near_loss", "has_gaps")
    assert [getattr(task, name) for name in facts] == [getattr(task.kind, name) for name in facts]
    targ = torch.tensor([[0.0] * 5, [torch.nan] * 5])[:, None]
    assert task.labelled(targ).tolist() == [True, False]
    assert task.number_names(4) == task.kind.number_names(4)
    rows = [len(part[0]) for part in task.align([targ, targ.repeat(1, 3, 1)])]
    assert rows == ([3, 3] if kind == "detection" else [1, 3])
    assert not task.shown_by_fastai and task.output_shape is None and task.default_metrics() == ()


def test_torchs_losses_by_element_see_one_shape_also_where_they_are_counted():
    task = OwnTask(TARGET, 1, nn.MSELoss(), Task(TARGET, 1, F.l1_loss))
    pred, targ = torch.randn(5, 1), torch.randn(5)
    wanted = (pred[:, 0] - targ) ** 2
    loss = task.train_loss(pred, targ)
    torch.testing.assert_close(loss, wanted.mean())
    torch.testing.assert_close(task.item_loss(pred, targ), wanted)
    assert task.loss_count(pred, targ, loss) == 5


def test_a_decoding_alone_leaves_the_loss_to_the_kind():
    task = OwnTask(TARGET, 4, None, ClassificationTask(TARGET, 4), lambda probs: probs.amax(1))
    pred, targ = torch.randn(5, 4), torch.arange(5) % 4
    assert torch.equal(task.train_loss(pred, targ), F.cross_entropy(pred, targ))
    torch.testing.assert_close(
        torch.as_tensor(task.item_loss(pred, targ)), F.cross_entropy(pred, targ, reduction="none")
    )
    assert torch.equal(task.decode(task.activation(pred)), pred.softmax(1).amax(1))
    assert task.output_shape == (4,) and task.empty().shape == (0, 4)
    assert not task.in_form(task.decode(pred)) and task.in_form(targ)
