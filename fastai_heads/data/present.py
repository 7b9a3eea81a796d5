"""Items that lack what their blocks need: every input, or a label."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.transforms import Categorize, ColReader

from fastai_heads.data.box_items import row_name
from fastai_heads.data.inputs import columns_of
from fastai_heads.data.labels import opens_image, read_labels
from fastai_heads.data.missing import is_missing
from fastai_heads.data.partial import Partial
from fastai_heads.data.rows import EncodedRows
from fastai_heads.errors import HeadsError

__all__ = ["check_complete", "check_present"]


def check_present(
    ds: Datasets,  # one split, or new items
    split: str,  # what they are, for messages
) -> None:
    "Refuse, by row, an item without an image that its block needs, and an item that has none of its inputs."
    inputs = ds.tls[: ds.n_inp]
    for tl in inputs:
        if opens_image(tl) and not _is_partial(tl):
            _check_cells(tl, split)
    if not len(ds) or not all(map(_is_partial, inputs)):
        return
    bare = np.all([_absent(ds, place, split) for place in range(len(inputs))], axis=0)
    if bare.any():
        named = next((tl for tl in inputs if isinstance(tl.items, pd.DataFrame)), inputs[0])
        raise HeadsError(
            f"{row_name(named, int(bare.argmax()))} of the {split} has none of its inputs ({int(bare.sum())} in all): "
            "drop such rows."
        )


def _check_cells(tl: TfmdLists, split: str) -> None:
    "Refuse an empty cell where the file of an image is to stand."
    if not isinstance(tl.items, pd.DataFrame):
        return
    for column in (c for c in columns_of(tl) if c in tl.items.columns):
        gaps = tl.items[column].isna().to_numpy()
        if gaps.any():
            raise HeadsError(
                f"column {column!r} has no image in {row_name(tl, int(gaps.argmax()))} of the {split} "
                f"({int(gaps.sum())} in all): put its block into `PartialBlock(…)`, or drop such rows."
            )


def _is_partial(tl: TfmdLists) -> bool:
    return any(isinstance(f, Partial) or getattr(f, "partial", False) for f in tl.tfms.fs)


def _absent(ds: Datasets, place: int, split: str) -> np.ndarray:
    "Tell (N,) which items do not have an input."
    items = ds.tls[place].items
    if isinstance(items, EncodedRows):
        return items.absent.numpy()
    values = read_labels(ds, place, "input", split).values
    return np.array([is_missing(value) for value in values] if len(values) else [False] * len(ds))


def check_complete(
    dls: DataLoaders,  # whose targets come from the columns of a DataFrame; other targets are not looked at
) -> None:
    """Refuse missing labels of targets that are not in a `PartialBlock`: `HeadsError` naming columns and row counts.

    A `CategoryBlock(add_na=True)` passes: its user asked for a class of the missing ones."""
    holes: dict[str, list[int]] = {}
    for dl in dls.loaders:
        for column, missing, rows in _missing_cells(dl):
            old = holes.setdefault(column, [0, 0])
            holes[column] = [old[0] + missing, old[1] + rows]
    found = [
        f"`{column}` has no label in {missing} of {rows} rows" for column, (missing, rows) in holes.items() if missing
    ]
    if found:
        raise HeadsError(
            f"{'; '.join(found)}. Put its block into `PartialBlock(…)` to train on the labels that are there, "
            "or drop the rows."
        )


def _missing_cells(dl: TfmdDL) -> Iterator[tuple[str, int, int]]:
    "(column, missing cells, rows) of every target of `dl` that is read from a DataFrame and not in a `PartialBlock`."
    dataset = dl.dataset
    if not isinstance(dataset, Datasets):
        return
    for tl in dataset.tls[dataset.n_inp :]:
        rows = tl.items
        if not isinstance(rows, pd.DataFrame) or any(
            isinstance(f, Partial) or (isinstance(f, Categorize) and f.add_na) for f in tl.tfms.fs
        ):
            continue
        for column in (c for f in tl.tfms.fs if isinstance(f, ColReader) for c in f.cols):
            cells = rows.iloc[:, column] if isinstance(column, int) else rows[column]
            yield str(cells.name), int(cells.isna().sum()), len(cells)
