"""Frames of a table's rows, and what is refused of them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["check_columns", "kind_of", "make_frame", "plain_frame"]


def make_frame(rows: Any) -> pd.DataFrame:
    "Make a frame of rows: a frame itself, or a list of dicts or of Series."
    if isinstance(rows, pd.DataFrame):
        return rows
    rows = list(rows)
    wrong = next((r for r in rows if not isinstance(r, Mapping | pd.Series)), None)
    if wrong is not None:
        raise HeadsError(
            f"a row of a table is a dict, a pandas Series or a row of a DataFrame, found {wrong!r} "
            f"({type(wrong).__name__})."
        )
    names = [getattr(r, "name", i) for i, r in enumerate(rows)]
    return pd.DataFrame([dict(r) for r in rows], index=names).infer_objects()


def check_columns(frame: pd.DataFrame, wanted: Iterable[str]) -> None:
    "Refuse a frame without one of the columns."
    for column in wanted:
        if column not in frame.columns:
            there = [str(c) for c in frame.columns]
            raise HeadsError(
                f"there is no column {column!r} in the rows.{did_you_mean(column, there)} There is {', '.join(there)}."
            )


def plain_frame(frame: pd.DataFrame, cats: Sequence[str], conts: Sequence[str]) -> pd.DataFrame:
    """Make numbers float64, and categories objects: a `Categorical` of other categories would keep its own codes.

    Refuses a column of numbers that holds anything else."""
    columns: dict[str, pd.Series] = {}
    for column in cats:
        ordered = isinstance(frame[column].dtype, pd.CategoricalDtype)
        columns[column] = frame[column].astype(object) if ordered else frame[column]
        wrong = [v for v in frame[column] if not isinstance(v, Hashable)] if frame[column].dtype == object else []
        if wrong:
            raise HeadsError(f"column {column!r} is to hold one category in a row, found {wrong[0]!r}.")
    for column in conts:
        values = frame[column]
        wrong = [] if pd.api.types.is_numeric_dtype(values) else [v for v in values.dropna() if not _is_number(v)]
        if wrong:
            raise HeadsError(
                f"column {column!r} is to hold numbers, found {wrong[0]!r} ({type(wrong[0]).__name__}): "
                "make it numbers, or name it in `cat_names`."
            )
        columns[column] = pd.to_numeric(values).astype(np.float64)
        endless = np.isinf(columns[column].to_numpy())
        if endless.any():
            raise HeadsError(f"column {column!r} holds an infinite number in row {frame.index[endless.argmax()]}.")
    return pd.DataFrame(columns, index=frame.index)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def kind_of(values: pd.Series) -> str:
    "Name the type of a column's categories; '' where it holds none, or several types."
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        return "numbers" if values.notna().any() else ""
    kinds = {"text" if isinstance(v, str) else "numbers" if _is_number(v) else "others" for v in values.dropna()}
    return kinds.pop() if len(kinds) == 1 else ""
