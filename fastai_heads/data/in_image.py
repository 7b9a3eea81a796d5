"""Boxes that lie outside their images, found before anything is trained: of image files the header alone is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastai.data.core import DataLoaders, Datasets, TfmdLists
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastai_heads.data.box_items import row_name
from fastai_heads.data.detection import MakeBoxes, check_in_image
from fastai_heads.data.missing import is_missing
from fastai_heads.data.partial import Partial

__all__ = ["check_boxes_in_images"]


def check_boxes_in_images(
    dls: DataLoaders,  # over fastai `Datasets`; targets that are no boxes with labels are not looked at
) -> None:
    """Refuses boxes outside their image: `HeadsError` naming row and file. Images that are no files are looked at when
    they are read."""
    for ds in (dl.dataset for dl in dls.loaders):
        found = [(tl, *maker) for tl in ds.tls[ds.n_inp :] for maker in _makers(tl)] if isinstance(ds, Datasets) else []
        for tl, maker, last in found:
            images = ds.tls[0]
            opens = images.tfms.fs[-1] if len(images.tfms.fs) else None
            for i, item in enumerate(getattr(tl.items, "iloc", tl.items)):
                size, boxes = _size(_before(images, opens, item)), _before(tl, last, item)
                if size is not None and not is_missing(boxes):
                    check_in_image(maker.encodes(boxes)[0].as_subclass(Tensor), size, f"{row_name(tl, i)}: ")


def _makers(tl: TfmdLists) -> Iterator[tuple[MakeBoxes, Any]]:
    "The transforms that make boxes of a target, each with the one in the target's pipeline that it stands in."
    for f in tl.tfms.fs:
        for inner in f.tfms.fs if isinstance(f, Partial) else [f]:
            if isinstance(inner, MakeBoxes):
                yield inner, f


def _before(tl: TfmdLists, stop: Any, item: Any) -> Any:
    "An item through the transforms before one of them."
    for f in tl.tfms.fs:
        if f is stop:
            break
        item = f(item)
    return item


def _size(source: Any) -> tuple[int, int] | None:
    "Width and height of an image file; None of anything else."
    if not isinstance(source, str | Path):
        return None
    try:
        with Image.open(source) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return None
