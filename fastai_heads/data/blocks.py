"""Target blocks that stand beside others: one box per image, and numbers written in one cell of a CSV."""

from typing import Any

import torch
from fastai.data.block import TransformBlock
from fastai.data.core import TfmdLists
from fastai.data.transforms import ColReader
from fastai.losses import MSELossFlat
from fastai.vision.core import PointScaler, TensorBBox
from fasttransform.transform import ItemTransform
from torch import Tensor

from fastai_heads.data.box_items import row_name
from fastai_heads.data.kinds import TellsKind
from fastai_heads.data.missing import is_missing
from fastai_heads.data.parse import parse_box, parse_numbers
from fastai_heads.data.partial import Missing
from fastai_heads.data.places import check_in_image, clip_boxes, image_size
from fastai_heads.errors import HeadsError

__all__ = ["BoxBlock", "MakeBox", "NumbersReader"]


class MakeBox(TellsKind, ItemTransform):
    "Four numbers to fastai's `TensorBBox` of shape (1, 4), in pixels; `PointScaler` scales it to -1 … 1 afterwards."

    # an ItemTransform, because a plain Transform maps over the four numbers of a tuple
    c, loss_func = 4, MSELossFlat()

    def __init__(
        self,
        clip: bool = False,  # what stands out of the image is cut off; False: refused
    ):
        super().__init__()
        self.clip = clip

    def target_kind(self) -> tuple[str, int | None, tuple | None]:
        return "box", self.c, None

    def setup(
        self,
        items: TfmdLists | None = None,  # the items, read by the getter
        train_setup: bool = False,  # from the training items alone
    ) -> None:
        "Refuse a bad first box by its row. fastai encodes that one next, and `multihead_learner` looks at all of them."
        if not isinstance(items, TfmdLists) or not len(items):
            return
        places = items.splits[0] if getattr(items, "splits", None) else range(len(items))
        first = next(iter(range(len(items))[places] if isinstance(places, slice) else places), 0)
        try:
            parse_box(items[first])
        except HeadsError as error:
            raise error.within(row_name(items, first)) from None

    def encodes(self, o):
        box = TensorBBox.create(parse_box(o))
        box.clips = self.clip
        return box


class BoxInImage(ItemTransform):
    "First of the item transforms: boxes outside their image are refused, or clipped. Last to decode: a dash for none."

    order = -1

    def encodes(self, x: list):
        return [self._within(o, image_size(x, "BoxBlock")) if _is_one_box(o, 2) else o for o in x]

    @staticmethod
    def _within(box: TensorBBox, size: tuple[int, int]) -> TensorBBox:
        if getattr(box, "clips", False):
            return TensorBBox(clip_boxes(box.as_subclass(Tensor), size))
        check_in_image(box, size, "BoxBlock")
        return box

    def decodes(self, x: list):
        return [Missing() if _is_one_box(o, 2) and bool(o.isnan().all()) else o for o in x]


class ClipBox(ItemTransform):
    """Last of the batch transforms: boxes, moved with their images, are clipped to them. One that has left its image is
    a missing label: NaN."""

    order = 201

    def encodes(self, x: list):
        return [_kept(o) if _is_one_box(o, 3) else o for o in x]


def _is_one_box(o: Any, ndim: int) -> bool:
    "Tell whether it is what `BoxBlock` makes, of an item (1, 4) or of a batch (B, 1, 4)."
    return isinstance(o, TensorBBox) and o.ndim == ndim and o.shape[-2] == 1


def _kept(batch: TensorBBox) -> TensorBBox:
    "Clip boxes to -1 … 1, corners in order (fastai's flip of an item swaps them); NaN where no area is left."
    boxes = batch.as_subclass(Tensor)
    boxes = torch.cat(
        [torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1
    )
    boxes = boxes.clamp(-1, 1)
    left = ((boxes[..., 2:] - boxes[..., :2]) <= 0).any(-1, keepdim=True)
    return TensorBBox(boxes.masked_fill(left, torch.nan), img_size=getattr(batch, "img_size", None))


def BoxBlock(
    clip: bool = False,  # cut off what stands out of the image; False: such a box is refused
) -> TransformBlock:
    """Make a `TransformBlock` for one box per image, an ordinary target beside any others.

    An item is what `parse_box` takes: x1, y1, x2, y2 in pixels of the image as it is on disk. Encoded it is a
    `TensorBBox` (1, 4), collated (B, 1, 4): fastai's batch augmentation of boxes wants the number of boxes as second
    axis. Coordinates run from -1 to 1 over the width and the height (`PointScaler`), decoding gives pixels. The box
    moves with the image and is clipped to it; one that augmentation has moved out of the picture, or that `clip`
    leaves nothing of, is a missing label. Boxes outside the image, reversed or not finite are refused (`HeadsError`),
    naming the row."""
    if not isinstance(clip, bool):
        raise HeadsError(f"`clip` of BoxBlock is True or False, found {clip!r}.")
    return TransformBlock(type_tfms=MakeBox(clip), item_tfms=[BoxInImage(), PointScaler()], batch_tfms=[ClipBox()])


class NumbersReader(ColReader):
    """A `ColReader` for cells that hold several numbers ('12.5 30'): gives a list of float, or `None` for no label.

    fastai's `PointBlock` takes a list of numbers and `ColReader(label_delim=' ')` gives it strings."""

    def _do_one(self, r, c):
        cell = super()._do_one(r, c)
        if is_missing(cell):
            return None
        return parse_numbers(cell) if isinstance(cell, str) else cell
