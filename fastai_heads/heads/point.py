"""Points in the image."""

from dataclasses import dataclass
from typing import ClassVar

from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.tasks.point import PointTask

__all__ = ["PointHead"]


@dataclass(frozen=True, kw_only=True)
class PointHead(PooledSpec):
    """One or several points. Output (B, 2 * points), activated (B, points, 2) as the target is, in fastai's units:
    x, y from −1 to 1 over the image (`PointScaler`), decoded to pixels. Source: `fastai.vision.core.PointScaler`."""

    y_range: tuple[float, float] | None = (-1.0, 1.0)  # the whole image

    kinds: ClassVar[frozenset[str]] = frozenset({"point"})
    predicts: ClassVar[type[PointTask]] = PointTask
