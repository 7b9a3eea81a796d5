"""The overlap of boxes, against torchvision's."""

import torch
from torchvision.ops import box_iou

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
