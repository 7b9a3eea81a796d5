"""Points in the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastai.losses import MSELossFlat
from torch import Tensor

from fastai_heads.heads.pooled import NumbersSpec

__all__ = ["PointHead", "distance"]


@dataclass(frozen=True, kw_only=True)
class PointHead(NumbersSpec):
    """One or several points. Output (B, 2 * points), activated (B, points, 2) as the target is, in fastai's units:
    x, y from −1 to 1 over the image (`PointScaler`), decoded to pixels. Source: `fastai.vision.core.PointScaler`."""

    y_range: tuple[float, float] | None = (-1.0, 1.0)  # the whole image

    kinds: ClassVar[frozenset[str]] = frozenset({"point"})
    blends: ClassVar[bool] = False
    moves_with_image: ClassVar[bool] = True

    def default_loss(self) -> Callable:
        return MSELossFlat()

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "Give the points in the shape of the target, (B, points, 2)."
        return super().activation(loss_func, pred).reshape(-1, self.n_out // 2, 2)

    def default_metrics(self) -> Sequence[Callable]:
        return (distance,)


def distance(
    pred: Tensor,  # (B, 2 * points), −1 to 1 over the image
    targ: Tensor,  # (B, points, 2), likewise
) -> Tensor:  # a scalar
    "Mean Euclidean distance between predicted and true points, as a fraction of the image's side."
    return (pred.reshape(-1, 2) - targ.reshape(-1, 2)).norm(dim=1).mean() / 2
