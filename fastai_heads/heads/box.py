"""One box per image."""

from dataclasses import dataclass
from typing import ClassVar

from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.tasks.box import BoxTask

__all__ = ["BoxHead"]


@dataclass(frozen=True, kw_only=True)
class BoxHead(PooledSpec):
    """One box. Output (B, 4), activated (B, 1, 4) as the target is: x1, y1, x2, y2 in fastai's units, −1 to 1 over the
    image (`PointScaler`), decoded to pixels. Source: `fastai.vision.core.TensorBBox`."""

    y_range: tuple[float, float] | None = (-1.0, 1.0)  # the whole image

    kinds: ClassVar[frozenset[str]] = frozenset({"box"})
    predicts: ClassVar[type[BoxTask]] = BoxTask
