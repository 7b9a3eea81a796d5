"""The labels of a target as the user holds them, for all rows at once, and how a row is called."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import Datasets, TfmdLists
from fastai.data.transforms import (
    Categorize,
    ColReader,
    EncodedMultiCategorize,
    MultiCategorize,
    OneHotEncode,
    RegressionSetup,
)
from fastai.vision.core import PILBase, TensorBBox, TensorPoint
from fasttransform import Transform
from PIL import Image
from torch import Tensor

from fastai_heads.data.box_items import row_name
from fastai_heads.data.columns import cells, read_columns
from fastai_heads.data.kinds import TellsKind
from fastai_heads.data.partial import Partial
from fastai_heads.errors import HeadsError

__all__ = [
    "MISREAD",
    "Labels",
    "after_getter",
    "is_picture",
    "makers",
    "opens_image",
    "read_labels",
    "source_of",
    "split_name",
    "step_of",
]

MISREAD = (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)
"What a getter or a transform raises for an item that it cannot take."

_MAKERS = (
    Categorize,
    MultiCategorize,
    OneHotEncode,
    EncodedMultiCategorize,
    RegressionSetup,
    Partial,
    TellsKind,
)
"The transforms that blocks begin with."
_OPENS = Transform(PILBase.create).name
_CREATORS = {_OPENS, TensorPoint.create.name, Transform(TensorBBox.create).name}
_MOST = 4096  # numbers of a label that is no picture
_SPLITS = ("training", "validation")


@dataclass(frozen=True)
class Labels:
    "What the getter of a target gives for every item of one split."

    target: str  # the target's name
    split: str  # 'training', 'validation' or 'set 2', …
    tl: TfmdLists  # the target's items and transforms
    values: Sequence[Any] | np.ndarray  # one per item, before the block's transforms; (N, n) where all are numbers

    @property
    def columns(self) -> list[str | int]:
        "List the columns that the getter reads; none where it reads none by name."
        return [c for f in _getter(self.tl) if isinstance(f, ColReader) for c in f.cols]

    def error(
        self,
        i: int,  # which item
        said: str,  # what is wrong with it, and what to do
    ) -> HeadsError:  # to be raised
        "Make the refusal of a label, which names target, row, file and split."
        return HeadsError(f"target {self.target!r}, {row_name(self.tl, i)} of the {self.split} set: {said}")


def split_name(
    n: int,  # which loader
) -> str:
    "Name the items of a loader, for messages."
    return _SPLITS[n] if n < len(_SPLITS) else f"{n}th"


def read_labels(
    ds: Datasets,  # one split
    place: int,  # of the target among all blocks
    name: str,  # the target's
    split: str,  # the split's
) -> Labels:
    "Read the labels of all rows through the target's getter. What the getter cannot read is refused by row."
    tl = ds.tls[place]
    return Labels(name, split, tl, _read(tl, name, split))


def _read(tl: TfmdLists, name: str, split: str) -> Sequence[Any] | np.ndarray:
    getter = _getter(tl)
    if len(getter) == 1 and isinstance(tl.items, pd.DataFrame):
        quick = read_columns(getter[0], tl.items)
        if quick is not None:
            return quick
    values: list[Any] = []
    for i, item in enumerate(_rows(tl, getter)):
        try:
            for f in getter:
                item = f(item)
        except HeadsError as error:
            raise Labels(name, split, tl, ()).error(i, str(error)) from None
        except MISREAD as error:
            said = f"its getter cannot read it: {type(error).__name__}: {error}"
            raise Labels(name, split, tl, ()).error(i, said) from error
        if is_picture(item):
            return []  # opened by the getter itself: looked at when it is read
        values.append(item)
    return values


def source_of(
    tl: TfmdLists,  # an input or a target
    i: int,  # which item
) -> Any:  # a file's path, an array, a label
    "Give what the getter gives for one item, before the block's transforms."
    item = tl.items.iloc[i] if isinstance(tl.items, pd.DataFrame) else tl.items[i]
    for f in _getter(tl):
        item = f(item)
    return item


def is_picture(
    value: Any,  # what a getter gives
) -> bool:
    "Tell whether a label is pixels that are read already, and no name of a file."
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | Tensor) and np.prod(value.shape) > _MOST)


def _rows(tl: TfmdLists, getter: Sequence[Transform]) -> Iterable[Any]:
    "Give the items; of a DataFrame that a `ColReader` reads the cells of its columns alone, which is quick."
    if not isinstance(tl.items, pd.DataFrame):
        return tl.items
    if getter and isinstance(getter[0], ColReader) and tl.items.columns.is_unique:
        columns = list(getter[0].cols)
        return (dict(zip(columns, row)) for row in zip(*(cells(tl.items, c) for c in columns)))
    return (row for _, row in tl.items.iterrows())


def _getter(tl: TfmdLists) -> list[Transform]:
    "Find the transforms before those of the block."
    found: list[Transform] = []
    for f in tl.tfms.fs:
        if isinstance(f, _MAKERS) or f.name in _CREATORS:
            break
        found.append(f)
    return found


def after_getter(
    tl: TfmdLists,  # a target
) -> list[Transform]:
    "List the transforms of its block."
    return list(tl.tfms.fs[len(_getter(tl)) :])


def makers(
    tl: TfmdLists,  # a target
) -> list[Transform]:
    "Find the transforms of its block, those inside a `Partial` in its place."
    return [g for f in after_getter(tl) for g in (f.tfms.fs if isinstance(f, Partial) else [f])]


def step_of(
    tl: TfmdLists,  # a target
    kind: type,  # of a transform
) -> Any:  # None: there is none
    "Find the first transform of a kind in a target's block."
    return next((f for f in makers(tl) if isinstance(f, kind)), None)


def opens_image(
    tl: TfmdLists,  # an input or a target
) -> bool:
    "Tell whether its block opens what the getter gives as an image."
    return any(f.name == _OPENS for f in makers(tl))
