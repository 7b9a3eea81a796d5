"""Which transforms may move a box out of its image."""

from typing import Any

from fastai.data.core import TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.vision.augment import (
    Dihedral,
    DihedralItem,
    Flip,
    FlipItem,
    LightingTfm,
    RandomErasing,
    Resize,
    ResizeMethod,
)
from fastai.vision.core import AddMaskCodes, BBoxLabeler, PointScaler

from fastai_heads.data.blocks import BoxInImage, ClipBox, MakeBox
from fastai_heads.data.detection_block import BoxesInImage, JoinBoxes
from fastai_heads.data.labels import step_of
from fastai_heads.data.partial import FillMissing, MarkMissing, SizeMissing

__all__ = ["may_leave"]

_STILL = (
    *(AddMaskCodes, BBoxLabeler, PointScaler, ToTensor, IntToFloatTensor, Normalize),
    *(Dihedral, DihedralItem, Flip, FlipItem, LightingTfm, RandomErasing),
    *(BoxInImage, ClipBox, BoxesInImage, JoinBoxes, FillMissing, MarkMissing, SizeMissing),
)
"Transforms that leave every box within its image."


def may_leave(
    tl: Any,  # a target of `BoxBlock`
    dl: TfmdDL,  # its loader
) -> bool:
    "Tell whether a box may be missing in a batch: where its block clips, or where a transform cuts or moves images."
    moving = (f for f in (*dl.after_item.fs, *dl.after_batch.fs) if not isinstance(f, _STILL))
    return step_of(tl, MakeBox).clip or any(not _squishes(f) for f in moving)


def _squishes(f: Any) -> bool:
    return isinstance(f, Resize) and f.method == ResizeMethod.Squish
