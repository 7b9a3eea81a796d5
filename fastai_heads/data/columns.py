"""The cells of a DataFrame as a `ColReader` reads them, of all rows at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.transforms import ColReader

from fastai_heads.data.blocks import NumbersReader
from fastai_heads.data.missing import is_missing
from fastai_heads.data.parse import parse_many
from fastai_heads.data.partial import PartialReader

__all__ = ["read_columns"]


def read_columns(
    reader: Any,  # the getter of a target or an input
    frame: pd.DataFrame,  # the rows
) -> Sequence[Any] | np.ndarray | None:  # one value per row; (N, n) numbers; None: row by row it has to be
    "Read a column without a call for every row, for the readers whose reading is known."
    read = _READERS.get(type(reader))
    if read is None or not frame.columns.is_unique:
        return None
    columns = [read(reader, cells(frame, column)) for column in reader.cols]
    if any(column is None for column in columns):
        return None
    return columns[0] if len(columns) == 1 else list(map(list, zip(*columns)))


def cells(
    frame: pd.DataFrame,  # the rows
    column: str | int,  # by name or by place
) -> list[Any]:
    "Give the cells of a column."
    return (frame.iloc[:, column] if isinstance(column, int) else frame[column]).tolist()


def _plain_cells(reader: ColReader, values: list[Any]) -> list[Any] | None:
    "Read as `ColReader` does; None where a cell is no text to be cut, which the reader itself is to say."
    if reader.label_delim is not None:
        texts = all(isinstance(v, str) for v in values)
        return [v.split(reader.label_delim) if v else [] for v in values] if texts else None
    if len(reader.pref) == 0 and len(reader.suff) == 0:
        return values
    return [f"{reader.pref}{v}{reader.suff}" for v in values]


def _partial_cells(reader: ColReader, values: list[Any]) -> list[Any]:
    "Read as `PartialReader` does: `None` for an empty cell."
    tags = reader.label_delim is not None
    known = [v for v in values if (tags and isinstance(v, str)) or not is_missing(v)]
    read = iter(_plain_cells(reader, known) or ())
    return [next(read) if (tags and isinstance(v, str)) or not is_missing(v) else None for v in values]


def _numbers(reader: NumbersReader, values: list[Any]) -> np.ndarray | None:
    "Read cells of text as `NumbersReader` does, as many numbers in each."
    plain = len(reader.pref) == 0 and len(reader.suff) == 0 and reader.label_delim is None
    return parse_many(values) if plain else None


_READERS: dict[type, Callable[[Any, list[Any]], Sequence[Any] | np.ndarray | None]] = {
    ColReader: _plain_cells,
    PartialReader: _partial_cells,
    NumbersReader: _numbers,
}
