"""Points in the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastai.losses import MSELossFlat
from torch import Tensor

from fastai_heads.tasks.numbers import NumbersTask

__all__ = ["PointTask", "distance"]


@dataclass(eq=False)
class PointTask(NumbersTask):
    "One or several points, (B, 2 * points) and activated (B, points, 2) as the target is: x, y from −1 to 1."

    blends: ClassVar[bool] = False
    moves_with_image: ClassVar[bool] = True
    shown_by_fastai: ClassVar[bool] = True
    near_loss: ClassVar[str] = "MSELossFlat()"

    def default_loss(self) -> Callable:
        return MSELossFlat()

    def activation(self, pred: Tensor) -> Tensor:
        "Give the points in the shape of the target, (B, points, 2)."
        return super().activation(pred).reshape(-1, self.n_out // 2, 2)

    def default_metrics(self) -> Sequence[Callable]:
        return (distance,)

    def number_names(self, n: int) -> list[str]:
        return ["x", "y"] if n == 2 else [f"{axis}{i}" for i in range(1, n // 2 + 1) for axis in "xy"]


def distance(
    pred: Tensor,  # (B, 2 * points), −1 to 1 over the image
    targ: Tensor,  # (B, points, 2), likewise
) -> Tensor:  # a scalar
    "Mean Euclidean distance between predicted and true points, as a fraction of the image's side."
    return (pred.reshape(-1, 2) - targ.reshape(-1, 2)).norm(dim=1).mean() / 2
