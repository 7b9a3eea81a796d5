"""Boxes: losses in the shape of the predictions."""

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import L1LossFlat
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from fastai_heads.heads.box import BoxHead
from fastai_heads.tasks.box import iou


def boxes(n):
    corners = torch.rand(n, 2, 2) * 2 - 1
    return torch.cat([corners.amin(1), corners.amax(1) + 0.01], dim=1)


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
