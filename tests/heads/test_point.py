"""Points: their distance, and losses in the shape of the predictions."""

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import MSELossFlat
from torch import nn

from fastai_heads.heads.point import PointHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.tasks.point import distance


def test_distance_is_the_share_of_the_side():
    targ = torch.tensor([[[0.0, 0.0]], [[-1.0, 0.5]]])  # a side runs from −1 to 1
    pred = torch.tensor([[0.6, 0.8], [-1.0, 0.5]])
    torch.testing.assert_close(distance(pred, targ), torch.tensor((0.5 + 0) / 2))
    pixels = 64 * (pred.view(2, 1, 2) + 1) / 2, 64 * (targ + 1) / 2
    torch.testing.assert_close(distance(pred, targ) * 64, (pixels[0] - pixels[1]).norm(dim=-1).mean())


def test_distance_of_several_points_is_their_mean():
    pred, targ = torch.randn(5, 6), torch.randn(5, 3, 2)
    wanted = torch.cdist(pred.view(15, 1, 2), targ.view(15, 1, 2)).mean() / 2
    torch.testing.assert_close(distance(pred, targ), wanted)
    torch.testing.assert_close(
        distance(pred.t().contiguous().t(), targ.transpose(0, 1).contiguous().transpose(0, 1)), wanted
    )


def test_stays_in_the_image_unless_told_otherwise(target, no_labels):
    spec = PointHead().fit(target("point", n_out=4), no_labels)
    out = spec.build((TapShape("features", 8, 32),)).eval()(100 * torch.randn(20, 8, 2, 2))
    assert out.shape == (20, 4) and out.abs().max() <= 1
    wide = PointHead(y_range=None).fit(target("point", n_out=4), no_labels)
    assert wide.build((TapShape("features", 8, 32),)).eval()(100 * torch.randn(20, 8, 2, 2)).abs().max() > 1


@pytest.mark.parametrize("loss", [None, MSELossFlat, nn.MSELoss(), F.mse_loss], ids=str)
def test_any_loss_sees_one_shape(target, no_labels, loss):
    pred, targ = torch.randn(5, 4), torch.randn(5, 2, 2)
    spec = PointHead(loss=loss).fit(target("point", n_out=4), no_labels)
    task = spec.task(target("point", n_out=4))
    by_hand = (pred - targ.view(5, 4)) ** 2
    torch.testing.assert_close(task.train_loss(pred, targ), by_hand.mean())
    torch.testing.assert_close(task.item_loss(pred, targ), by_hand.mean(1))
    assert task.default_metrics() == (distance,)
