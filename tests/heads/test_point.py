"""Points: in the image, and losses in the shape of the predictions."""

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import MSELossFlat
from torch import nn

from fastai_heads.heads.point import PointHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.tasks.point import distance


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
