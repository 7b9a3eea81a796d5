"""Rows of a table as an input: `TabularBlock`, fitted on the training split alone, which encodes frames whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import TransformBlock
from fastai.data.core import TfmdLists
from fastai.data.transforms import Normalize
from fastai.tabular.core import Categorify, FillMissing, Tabular, TabularPandas
from fastai.torch_core import show_title
from fastcore.foundation import L
from fasttransform import Pipeline, Transform
from fasttransform.transform import ItemTransform
from torch import Tensor

from fastai_heads.data.frames import check_columns, kind_of, make_frame, plain_frame
from fastai_heads.data.loader import InputsDL
from fastai_heads.errors import HeadsError
from fastai_heads.values import check_value

__all__ = ["EncodedRows", "ReadRow", "Row", "RowValues", "TabularBlock", "cardinalities"]


class Row(tuple):
    "A row in a batch: (codes of its categories, its numbers), int64 and float32."


class RowValues(dict):
    "A row as people read it: column → value. It shows as a small table."

    def show(
        self,
        ctx: Any = None,  # matplotlib axes, a row of the table that fastai shows of a batch, or None to print
        **kwargs: Any,  # of fastai's other `show`s
    ) -> Any:  # `ctx` with the row in it
        "Draw the row: a table of two columns on axes, a column for each value in a table."
        cells = [[str(name), f"{v:.4g}" if isinstance(v, float) else str(v)] for name, v in self.items()]
        if isinstance(ctx, pd.Series):
            return pd.concat([ctx, pd.Series(dict(cells))])
        if not hasattr(ctx, "table"):
            return show_title(", ".join(f"{name}: {v}" for name, v in cells), ctx=ctx)
        ctx.table(cellText=cells, loc="bottom" if ctx.images else "upper center").scale(1, 1.4)
        if not ctx.images:
            ctx.axis("off")
        return ctx


class _Encoded:
    "One row of `EncodedRows` on its way through the pipeline; no tuple, as fastai maps transforms over those."

    __slots__ = ("cats", "conts")

    def __init__(self, cats: Tensor, conts: Tensor):
        self.cats, self.conts = cats, conts


class EncodedRows:
    "A frame that was encoded whole, in place of the items of an input. fastai indexes what has `iloc`."

    def __init__(
        self,
        cats: Tensor,  # (N, n_cat) int64
        conts: Tensor,  # (N, n_cont) float32
    ):
        self.cats, self.conts = cats, conts

    @property
    def iloc(self) -> "EncodedRows":
        "The rows by their places."
        return self

    @property
    def absent(self) -> Tensor:
        "Which rows (N,) are missing."
        return (self.cats < 0).any(1) | self.conts.isnan().any(1)

    def __len__(self) -> int:
        return len(self.cats)

    def __getitem__(self, at: Any) -> "_Encoded | EncodedRows":
        if isinstance(at, int | np.integer):
            return _Encoded(self.cats[at], self.conts[at])
        at = at if isinstance(at, slice) else torch.as_tensor(np.asarray(list(at), dtype=np.int64))
        return EncodedRows(self.cats[at], self.conts[at])


class ReadRow(ItemTransform):
    """A row of a frame, or a dict, to `Row`. The procs are fitted on the training split; frames are encoded whole.

    `to` is fastai's `TabularPandas` without rows, with the fitted procs."""

    _retain = False
    input_types = (pd.Series, Mapping, _Encoded)

    def __init__(
        self,
        cat_names: Sequence[str],  # columns of categories
        cont_names: Sequence[str],  # columns of numbers
        procs: Sequence[Any],  # fastai's `TabularProc`s
        fill_new_gaps: bool = False,  # by the training median, where a column had no gap in training
        partial: bool = False,  # some rows are missing: none of their columns is there
    ):
        super().__init__()
        self.columns, self.procs = (tuple(cat_names), tuple(cont_names)), tuple(procs)
        self.fill_new_gaps, self.partial, self.to = fill_new_gaps, partial, None

    @classmethod
    def fitted(
        cls,
        table: Tabular,  # a training split
        procs: Sequence[Any],  # of its inputs, fitted
    ) -> "ReadRow":
        "Make the transform of a table that fastai has fitted already."
        filled = {f"{c}_na" for f in procs if isinstance(f, FillMissing) for c in f.na_dict}
        self = cls([c for c in table.cat_names if c not in filled], table.cont_names, procs)
        self.to = table.new_empty()
        self.to.procs, self.to.y_names = Pipeline(procs), L()
        known = next((f.classes for f in procs if isinstance(f, Categorify)), {})
        self.kinds = {c: kind_of(pd.Series(list(known[c])[1:])) for c in self.columns[0] if c in known}
        return self

    def allow_missing(self) -> "ReadRow":
        "Make the same transform for rows of which some are missing."
        return ReadRow(*self.columns, self.procs, self.fill_new_gaps, partial=True)

    @property
    def cat_names(self) -> tuple[str, ...]:
        "The columns of categories, those among them that say where a gap was filled."
        return tuple(map(str, self.to.cat_names))

    @property
    def cont_names(self) -> tuple[str, ...]:
        "The columns of numbers."
        return tuple(map(str, self.to.cont_names))

    @property
    def sizes(self) -> tuple[int, ...]:
        "How many codes each column of categories has, `#na#` among them."
        return cardinalities(self.to)

    def setup(
        self,
        items: TfmdLists | None = None,  # the rows of all splits
        train_setup: bool = False,  # fastai's; the training split alone is learned from in any case
    ) -> None:
        "Fit the procs on the training split. Not `setups`, whose caller swallows every `AttributeError`."
        if items is None or not len(items) or isinstance(items.items, EncodedRows):
            return
        rows = items.items if self._is_first(items) else [items[i] for i in range(len(items))]
        frame = make_frame(rows)
        self._fit(frame.iloc[items.splits[0]].reset_index(drop=True))
        self.prepare(items)

    def prepare(
        self,
        items: TfmdLists,  # the rows of an input
    ) -> None:
        "Encode all items of an input at once, where nothing stands before this transform that reads them."
        if self._is_first(items) and len(items) and not isinstance(items.items, EncodedRows):
            items.items = self.encode_frame(make_frame(items.items))

    def _is_first(self, items: TfmdLists) -> bool:
        "Tell whether the transforms of an input before this one, of which its setup knows all, leave the items alone."
        before = list(items.tfms.fs)
        before = before[: before.index(self)] if self in before else before
        return all(f.name == "noop" for f in before)

    def _fit(self, train: pd.DataFrame) -> None:
        "Learn categories, fillings and statistics of the training rows."
        check_columns(train, (*self.columns[0], *self.columns[1]))
        cats, conts = map(list, self.columns)
        train = plain_frame(train[[*cats, *conts]], cats, conts)
        train = train[self._there(train)].reset_index(drop=True)
        void = next((c for c in cats if len(train) and train[c].isna().all()), None)
        if void is not None:
            raise HeadsError(f"column {void!r} holds no category in any training row: leave it out of `cat_names`.")
        self.kinds = {c: kind_of(train[c]) for c in cats}
        self.medians = {c: float(train[c].median()) for c in conts}
        to = TabularPandas(train, list(self.procs), cats, conts, reduce_memory=False)
        self.to = to.new_empty()
        _check_encoded(to)

    def encode_frame(
        self,
        frame: pd.DataFrame,  # rows with the block's columns, among any others
    ) -> EncodedRows:
        "Encode a frame whole. Raises `HeadsError` that names the column, and the row of a gap that is not filled."
        cats, conts = map(list, self.columns)
        check_columns(frame, (*cats, *conts))
        names = frame.index
        frame = plain_frame(frame[[*cats, *conts]].reset_index(drop=True), cats, conts)
        there = self._there(frame)
        codes = torch.full((len(frame), len(self.cat_names)), -1, dtype=torch.int64)
        numbers = torch.full((len(frame), len(self.cont_names)), torch.nan, dtype=torch.float32)
        if there.any():
            frame, names, at = frame[there].reset_index(drop=True), names[there], torch.from_numpy(there)
            self._check_kinds(frame)
            to = self.to.new(self._forget_unknown(self._close_gaps(frame, names)))
            to.process()
            _check_encoded(to)
            codes[at] = torch.from_numpy(np.array(to.cats, dtype=np.int64))
            numbers[at] = torch.from_numpy(np.array(to.conts, dtype=np.float32))
        return EncodedRows(codes, numbers)

    def _there(self, frame: pd.DataFrame) -> np.ndarray:
        "Tell which rows are there: all, or where some may be missing those with a value in any column."
        return frame.notna().any(axis=1).to_numpy() if self.partial else np.ones(len(frame), dtype=bool)

    def _check_kinds(self, frame: pd.DataFrame) -> None:
        "Refuse a column of categories whose values are of another type: each of them would be unknown."
        for column, kind in self.kinds.items():
            found = kind_of(frame[column])
            if found and kind and found != kind:
                raise HeadsError(
                    f"column {column!r} held {kind} in training and holds {found} here, such as "
                    f"{frame[column].dropna().iloc[0]!r}: make them the same type."
                )

    def _close_gaps(self, frame: pd.DataFrame, names: pd.Index) -> pd.DataFrame:
        "Fill, or refuse, gaps in columns of numbers that had none in training."
        known = {c for f in self.to.procs.fs if isinstance(f, FillMissing) for c in f.na_dict}
        for column in (c for c in self.columns[1] if c not in known):
            gaps = frame[column].isna().to_numpy()
            if not gaps.any():
                continue
            if not self.fill_new_gaps:
                raise HeadsError(
                    f"column {column!r} has no number in row {names[gaps.argmax()]} ({int(gaps.sum())} in all), and "
                    "had no gap in training: fill it, or say `fill_new_gaps=True` in the TabularBlock."
                )
            frame = frame.assign(**{column: frame[column].fillna(self.medians[column])})
        return frame

    def _forget_unknown(self, frame: pd.DataFrame) -> pd.DataFrame:
        "Make gaps of the categories that training did not have: pandas is about to refuse them."
        known = next((f.classes for f in self.to.procs.fs if isinstance(f, Categorify)), {})
        columns = [c for c in self.columns[0] if c in known]
        plain = {c: frame[c].astype(object).where(frame[c].isin(list(known[c])[1:]), np.nan) for c in columns}
        return frame.assign(**plain)

    def encodes(self, o):
        if not isinstance(o, _Encoded):
            o = self.encode_frame(make_frame([o]))[0]
        return Row((o.cats, o.conts))

    def decodes(self, o):
        cats, conts = (np.asarray(part.cpu()) for part in o)
        if (cats < 0).any() or np.isnan(conts).any():
            return RowValues(dict.fromkeys((*self.cat_names, *self.cont_names), "–"))
        values = pd.DataFrame([[*cats.tolist(), *conts.tolist()]], columns=[*self.cat_names, *self.cont_names])
        row = self.to.new(values).decode().items.iloc[0]
        return RowValues({str(c): v.item() if isinstance(v, np.generic) else v for c, v in row.items()})


def cardinalities(
    to: Tabular,  # with fitted procs
) -> tuple[int, ...]:  # in the order of its columns of categories
    "Count the codes of every column of categories, `#na#` among them."
    return tuple(len(to.classes[c]) for c in to.cat_names) if len(to.cat_names) else ()


def _check_encoded(to: TabularPandas) -> None:
    "Refuse procs that leave text among the categories or gaps among the numbers."
    for column in to.cat_names:
        if not pd.api.types.is_integer_dtype(to.items[column]) and not pd.api.types.is_bool_dtype(to.items[column]):
            raise HeadsError(f"`procs`: column {column!r} holds no codes after them; put `Categorify` among them.")
    for column in to.cont_names:
        gaps = to.items[column].isna().to_numpy()
        if gaps.any():
            raise HeadsError(
                f"column {column!r} has no number in row {to.items.index[gaps.argmax()]} ({int(gaps.sum())} in all) "
                "after `procs`; put `FillMissing` among them."
            )


def _is_proc(value: Any) -> bool:
    return issubclass(
        value if isinstance(value, type) else type(value), Transform
    )  # fastai's `Normalize` is no `TabularProc`


def TabularBlock(
    cat_names: Sequence[str] | str = (),  # columns of categories
    cont_names: Sequence[str] | str = (),  # columns of numbers
    procs: Sequence[Any] = (Categorify, FillMissing, Normalize),  # fastai's, fitted on the training split alone
    fill_new_gaps: bool = False,  # fill a gap where training had none, by the median; False: refuse it by row
) -> TransformBlock:
    """Make an input block for a row of a table. Its item is a row of a DataFrame or a dict, its batch a `Row` of codes
    (B, n_cat) and numbers (B, n_cont). A category that training did not have is `#na#`, code 0."""
    cats, conts = ([names] if isinstance(names, str) else list(names) for names in (cat_names, cont_names))
    fits = isinstance(procs, Sequence) and not isinstance(procs, str) and all(map(_is_proc, procs))
    check_value("procs", "TabularBlock", procs, fits, "a list of fastai's procs, such as [Categorify, FillMissing]")
    check_value("fill_new_gaps", "TabularBlock", fill_new_gaps, isinstance(fill_new_gaps, bool), "True or False")
    twice = [c for i, c in enumerate([*cats, *conts]) if c in [*cats, *conts][:i]]
    if twice or not (cats or conts):
        found = f"{twice[0]!r} twice" if twice else "none"
        raise HeadsError(f"`cat_names`, `cont_names`: expected one column or more, each once, found {found}.")
    return TransformBlock(type_tfms=ReadRow(cats, conts, list(procs), fill_new_gaps), dl_type=InputsDL)
