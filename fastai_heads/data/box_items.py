"""Boxes with labels as the user holds them: read from a table, checked, and named in messages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import TfmdLists
from fastai.data.transforms import ColReader
from fastcore.foundation import L
from PIL import Image

from fastai_heads.data.missing import is_missing
from fastai_heads.data.parse import parse_box
from fastai_heads.errors import HeadsError

__all__ = ["BoxesReader", "parse_boxes", "row_name"]

IMAGES = frozenset(Image.registered_extensions())


class BoxesReader(ColReader):
    "Reads (boxes, labels) from two cells of a row, lists or JSON of them; `None` where the boxes' cell is empty."

    def __init__(
        self,
        boxes: str | int,  # the column of the boxes: '[[x1, y1, x2, y2], …]' in pixels
        labels: str | int,  # the column of their labels: '["cat", …]'
    ):
        super().__init__([boxes, labels])

    def __call__(self, o: Any, **kwargs: Any) -> tuple[list, list] | None:
        boxes, labels = (self._do_one(o, column) for column in self.cols)
        return None if is_missing(boxes) else (_listed(boxes), _listed(labels))


def _listed(cell: Any) -> list:
    "Make a list of a cell."
    if not isinstance(cell, str):
        return [] if is_missing(cell) else list(cell)
    try:
        found = json.loads(cell)
    except ValueError as error:
        raise HeadsError(f"Expected a list written as JSON, found {cell!r}: {error}.") from None
    return found if isinstance(found, list) else [found]


def parse_boxes(
    item: Any,  # (boxes, labels)
) -> tuple[list[list[float]], list]:  # boxes as x1, y1, x2, y2 in pixels, and as many labels
    "Check an item: every box has an area and a label. Raises `HeadsError`."
    if not isinstance(item, tuple | list | L) or len(item) != 2:
        raise HeadsError(f"Expected (boxes, labels) of an image, such as ([[4, 2, 30, 28]], ['cat']), found {item!r}.")
    boxes, labels = (v.tolist() if hasattr(v, "tolist") else list(v) for v in item)
    if len(boxes) != len(labels):
        raise HeadsError(f"Expected a label for every box, found {len(boxes)} box(es) and {len(labels)} label(s).")
    return [parse_box(box) for box in boxes], labels


def row_name(
    items: TfmdLists,  # of a target or an input
    i: int,  # which item
) -> str:
    "Name an item for messages: its row and file, as far as they can be told."
    held = items.items
    if isinstance(held, pd.DataFrame):
        row = held.iloc[i]
        files = [str(c) for c in row if isinstance(c, str | Path) and Path(c).suffix.lower() in IMAGES]
        return f"row {row.name}" + (f" ({files[0]})" if files else "")
    item = held[i] if isinstance(held, list | tuple | np.ndarray) else None
    return str(item) if isinstance(item, str | Path) else f"item {i}"
