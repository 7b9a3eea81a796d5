"""The distance of points."""

import torch

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
