"""Places in an image, in pixels: which lie outside it, and how they are brought back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastai.torch_core import TensorImageBase
from fastai.vision.core import PILBase
from torch import Tensor

from fastai_heads.errors import HeadsError

__all__ = [
    "POINT_FIX",
    "SLACK",
    "boxes_outside",
    "check_in_image",
    "check_points_in_image",
    "clip_boxes",
    "image_size",
    "lie_outside",
    "outside",
]

POINT_FIX = "Correct the row, or take its label away: `PartialBlock(PointBlock)`."
SLACK = 1.0  # pixels by which a place may stand out of its image: annotations are often rounded


def lie_outside(
    numbers: np.ndarray,  # (n, 2k) x, y, x, y, … in pixels
    sizes: np.ndarray,  # (n, 2) width and height of each one's image; NaN: not known, and none is outside
) -> np.ndarray:  # (n,) bool
    "Tell which places stand out of their images by more than `SLACK`. NaN lies nowhere."
    ends = np.tile(sizes, numbers.shape[1] // 2)
    below = (numbers < -SLACK) & ~np.isnan(ends)
    return (below | (numbers > ends + SLACK)).any(1)


def boxes_outside(
    boxes: np.ndarray,  # (n, 4) in pixels
    sizes: np.ndarray,  # (n, 2) as for `lie_outside`
) -> np.ndarray:  # (n,) bool
    "Tell which boxes stand out of their images by more than `SLACK`, or have no area within them."
    corner, end = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], sizes)
    return lie_outside(boxes, sizes) | (end <= corner).any(1)


def outside(
    what: str,  # 'box', 'point' or 'points'
    numbers: Sequence[float],  # in pixels
    size: tuple[int, int],  # width and height of the image
    fix: str,  # what to do, as the end of the message
) -> str:
    "Say that a place lies outside its image."
    kind = "x1, y1, x2, y2" if what == "box" else "x, y"
    verb = "lie" if what == "points" else "lies"
    return (
        f"{what} {numbers} {verb} outside its image of {size[0]}×{size[1]} pixels: {kind} are pixels of the image as "
        f"it is on disk. {fix}"
    )


def check_in_image(
    boxes: Tensor,  # (n, 4) in pixels
    size: tuple[int, int],  # width and height of the image
    block: str,  # what the boxes come from, such as 'BoxBlock'
    who: str = "",  # whose boxes they are, before the message
) -> None:
    "Refuse a box that stands out of its image by more than `SLACK`."
    numbers = boxes.as_subclass(Tensor).view(-1, 4).numpy(force=True)
    out = boxes_outside(numbers, np.broadcast_to(np.array(size, dtype=float), (len(numbers), 2)))
    if out.any():
        raise HeadsError(who + outside("box", numbers[out][0].tolist(), size, f"`{block}(clip=True)` clips it."))


def check_points_in_image(
    points: Tensor,  # (n, 2) in pixels
    size: tuple[int, int],  # width and height of the image
) -> None:
    "Refuse a point that stands out of its image by more than `SLACK`."
    numbers = points.as_subclass(Tensor).reshape(-1, 2).numpy(force=True)
    out = lie_outside(numbers, np.broadcast_to(np.array(size, dtype=float), numbers.shape))
    if out.any():
        raise HeadsError(outside("point", numbers[out][0].tolist(), size, POINT_FIX))


def clip_boxes(
    boxes: Tensor,  # (n, 4) in pixels
    size: tuple[int, int],  # width and height of the image
) -> Tensor:  # (n, 4)
    "Cut boxes at the edges of their image; of one that lies beside it no area is left."
    ends = boxes.new_tensor([*size, *size])
    return boxes.clamp(min=boxes.new_zeros(4), max=ends)


def image_size(
    item: Sequence[Any],  # an item's inputs and targets
    block: str,  # who asks, for the message
) -> tuple[int, int]:  # width and height
    "Give the size of an item's image. An item without one is refused."
    for o in item:
        if isinstance(o, PILBase):
            return o.size
        if isinstance(o, TensorImageBase):
            return o.shape[-1], o.shape[-2]
    raise HeadsError(f"`{block}` needs an image in the same item: boxes are places in it.")
