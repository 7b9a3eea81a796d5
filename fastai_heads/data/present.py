"""Items that have none of their inputs, where each of the inputs may be missing."""

import numpy as np
import pandas as pd
from fastai.data.core import Datasets, TfmdLists

from fastai_heads.data.box_items import row_name
from fastai_heads.data.labels import read_labels
from fastai_heads.data.missing import is_missing
from fastai_heads.data.partial import Partial
from fastai_heads.data.rows import EncodedRows
from fastai_heads.errors import HeadsError

__all__ = ["check_present"]


def check_present(
    ds: Datasets,  # one split, or new items
    split: str,  # what they are, for messages
) -> None:
    "Refuse, by row, an item that has none of its inputs. Where one input may not be missing, there is none such."
    inputs = ds.tls[: ds.n_inp]
    if not len(ds) or not all(map(_is_partial, inputs)):
        return
    bare = np.all([_absent(ds, place, split) for place in range(len(inputs))], axis=0)
    if bare.any():
        named = next((tl for tl in inputs if isinstance(tl.items, pd.DataFrame)), inputs[0])
        raise HeadsError(
            f"{row_name(named, int(bare.argmax()))} of the {split} has none of its inputs ({int(bare.sum())} in all): "
            "drop such rows."
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
