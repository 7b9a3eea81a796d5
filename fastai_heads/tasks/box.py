"""One box per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from fastai.losses import L1LossFlat
from torch import Tensor

from fastai_heads.tasks.numbers import NumbersTask

__all__ = ["BoxTask", "iou"]


@dataclass(eq=False)
class BoxTask(NumbersTask):
    "One box, (B, 4) and activated (B, 1, 4) as the target is: x1, y1, x2, y2 from −1 to 1."

    n_out: int | None = 4

    blends: ClassVar[bool] = False
    moves_with_image: ClassVar[bool] = True
    shown_by_fastai: ClassVar[bool] = True
    near_loss: ClassVar[str] = "L1LossFlat()"

    def default_loss(self) -> Callable:
        return L1LossFlat()

    def activation(self, pred: Tensor) -> Tensor:
        "Give the boxes in the shape of the target, (B, 1, 4)."
        return super().activation(pred).reshape(-1, 1, 4)

    def default_metrics(self) -> Sequence[Callable]:
        return (iou,)

    def number_names(self, n: int) -> list[str]:
        return ["x1", "y1", "x2", "y2"]


def iou(
    pred: Tensor,  # (B, 4) x1, y1, x2, y2
    targ: Tensor,  # (B, 4) or (B, 1, 4), in the same unit
) -> Tensor:  # a scalar
    "Mean intersection over union of each predicted box with its true one; a predicted box turned inside out has none."
    pred, targ = pred.reshape(-1, 4), targ.reshape(-1, 4)
    overlap = (torch.min(pred[:, 2:], targ[:, 2:]) - torch.max(pred[:, :2], targ[:, :2])).clamp(min=0).prod(1)
    area = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (pred, targ)]
    return (overlap / (area[0] + area[1] - overlap).clamp(min=torch.finfo(pred.dtype).eps)).mean()
