"""Boxes: their overlap, and losses in the shape of the predictions."""

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import L1LossFlat
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from fastai_heads.heads.box import BoxHead
from fastai_heads.tasks.box import iou


def boxes(n):
    corners = torch.rand(n, 2, 2) * 2 - 1
    return torch.cat([corners.amin(1), corners.amax(1) + 0.01], dim=1)


def test_iou_is_torchvisions():
    pred, targ = boxes(50), boxes(50)
    wanted = box_iou(pred, targ).diagonal()
    assert 0 < (wanted > 0).sum() < 50
    torch.testing.assert_close(iou(pred, targ), wanted.mean())
    torch.testing.assert_close(iou(pred, targ[:, None]), wanted.mean())
    one_by_one = torch.stack([iou(p[None], t[None, None]) for p, t in zip(pred, targ)])
    torch.testing.assert_close(one_by_one, wanted)
    torch.testing.assert_close(iou(targ.t().contiguous().t(), targ[:, None]), torch.tensor(1.0))


def test_a_box_turned_inside_out_has_no_overlap():
    targ = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    for inverted in ([0.5, -0.5, -0.5, 0.5], [-0.5, 0.5, 0.5, -0.5], [0.5, 0.5, -0.5, -0.5], [0.9, 0.9, -0.9, -0.9]):
        assert iou(torch.tensor([inverted]), targ) == 0
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)) == 0, "a point, and no division by zero"


@pytest.mark.parametrize("loss", [None, L1LossFlat, nn.L1Loss(), F.l1_loss], ids=str)
def test_any_loss_sees_one_shape(target, no_labels, loss):
    pred, targ = torch.randn(5, 4), torch.randn(5, 1, 4)
    spec = BoxHead(loss=loss).fit(target("box"), no_labels)
    task = spec.task(target("box"))
    by_hand = (pred - targ[:, 0]).abs()
    torch.testing.assert_close(task.train_loss(pred, targ), by_hand.mean())
    torch.testing.assert_close(task.item_loss(pred, targ), by_hand.mean(1))
    assert task.default_metrics() == (iou,)


def test_torchvisions_box_losses_fit(target, no_labels):
    def loss(pred, targ, reduction="mean"):
        return generalized_box_iou_loss(pred, targ, reduction=reduction)

    pred, targ = boxes(6), boxes(6)
    spec = BoxHead(loss=loss).fit(target("box"), no_labels)
    task = spec.task(target("box"))
    wanted = generalized_box_iou_loss(pred, targ, reduction="none")
    torch.testing.assert_close(task.train_loss(pred, targ[:, None]), wanted.mean())
    torch.testing.assert_close(task.item_loss(pred, targ[:, None]), wanted)
