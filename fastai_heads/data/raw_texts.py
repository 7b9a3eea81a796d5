"""Texts of new rows, put where fastai's tokenizer has put those of the training rows."""

import sys
from typing import Any

import pandas as pd
from fastai.data.core import TfmdLists
from fastcore.foundation import L

from fastai_heads.data.missing import is_missing
from fastai_heads.data.text_part import text_class
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["place_texts"]


def place_texts(
    items: TfmdLists,  # an input; its frame is replaced where it holds texts that are not tokenized
) -> None:
    "Let rows be read by the names of their text columns. Refuses what is no text, by column and row."
    frame = items.items
    steps = [(f, g) for f in items.tfms.fs for g in (f.tfms.fs if hasattr(f, "tfms") else [f])]
    found = [(whole, step) for whole, step in steps if isinstance(step, text_class("Tokenizer")) and step.mode == "df"]
    if not found or not isinstance(frame, pd.DataFrame) or f"{found[0][1].tok_text_col}_length" in frame:
        return
    whole, tokenizer = found[0]
    columns = [frame.columns[c] if isinstance(c, int) else c for c in L(tokenizer.text_cols)]
    missing = next((c for c in columns if c not in frame), None)
    if missing is not None:
        raise HeadsError(f"there is no column {missing!r} in the rows.{did_you_mean(missing, map(str, frame.columns))}")
    known = ~frame[columns].map(is_missing).all(axis=1)
    _check_texts(frame[known] if whole is not tokenizer else frame, columns, partial=whole is not tokenizer)
    texts = frame[columns[0]]
    if len(columns) > 1:
        join = sys.modules["fastai.text.core"]._join_texts
        texts = join(frame[columns].fillna(""), tokenizer.kwargs.get("mark_fields", True))
    items.items = frame.assign(**{tokenizer.tok_text_col: texts.where(known) if whole is not tokenizer else texts})


def _check_texts(frame: pd.DataFrame, columns: list[Any], partial: bool) -> None:
    for column in columns:
        for row, value in frame[column].items():
            if isinstance(value, str) or (partial and is_missing(value)):
                continue
            hint = " A missing one wants `PartialBlock(…)`." if is_missing(value) else ""
            raise HeadsError(
                f"column {column!r} is to hold texts, found {value!r} ({type(value).__name__}) in row {row}.{hint}"
            )
