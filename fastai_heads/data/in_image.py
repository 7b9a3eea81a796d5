"""Points and boxes that lie outside their images, found before anything is trained."""

import numpy as np
from fastai.vision.core import PointScaler

from fastai_heads.data.blocks import MakeBox
from fastai_heads.data.detection_block import MakeBoxes
from fastai_heads.data.faults import detections_of
from fastai_heads.data.labels import Labels, step_of
from fastai_heads.data.places import POINT_FIX, boxes_outside, lie_outside, outside
from fastai_heads.data.targets import Target

__all__ = ["PLACES", "check_places"]

PLACES = frozenset({"point", "box", "detection"})
"The kinds of target that are places in the image, in pixels."


def check_places(
    labels: Labels,  # of a target of `PLACES`
    target: Target,  # whose they are
    numbers: np.ndarray | None,  # (N, n) as `check_labels` gives them; None for boxes with labels
    sizes: np.ndarray,  # (N, 2) width and height of each row's image; NaN: not known
    scaler: PointScaler | None = None,  # of the loader: in which unit and order its points are
) -> None:
    "Refuse the first row with a place outside its image, unless its block clips."
    step = step_of(labels.tl, MakeBox) or step_of(labels.tl, MakeBoxes)
    if getattr(step, "clip", False) or not len(labels.values):
        return
    if numbers is None:
        numbers, rows = detections_of(labels)
    else:
        rows = np.arange(len(numbers))
    if target.kind == "point" and scaler is not None:
        if not scaler.do_scale:
            return  # from -1 to 1 already, or in a unit of the user's own
        numbers = _x_first(numbers) if scaler.y_first else numbers
    told = lie_outside if target.kind == "point" else boxes_outside
    bad = np.flatnonzero(told(numbers, sizes[rows]))
    if len(bad):
        n, i = bad[0], int(rows[bad[0]])
        more = f" (In {len(bad) - 1} more of {len(numbers)}, too.)" if len(bad) > 1 else ""
        raise labels.error(i, _said(target.kind, numbers[n].tolist(), sizes[i]) + more)


def _x_first(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(len(numbers), -1, 2)[:, :, ::-1].reshape(len(numbers), -1)


def _said(kind: str, numbers: list[float], size: np.ndarray) -> str:
    whole = int(size[0]), int(size[1])
    if kind == "point":
        what = "point" if len(numbers) == 2 else "points"
        return outside(what, numbers, whole, POINT_FIX)
    block = "BoxBlock" if kind == "box" else "DetectionBlock"
    return outside("box", numbers, whole, f"`{block}(clip=True)` clips it.")
