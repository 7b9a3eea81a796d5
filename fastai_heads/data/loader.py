"""The loader over several inputs: frames are encoded whole, texts are batched by their number of tokens."""

from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import Datasets, TfmdLists
from fastai.text.core import Tokenizer
from fastai.text.data import Numericalize, SortedDL

__all__ = ["InputsDL", "token_counts"]


class InputsDL(SortedDL):
    """fastai's `SortedDL` that sorts by the texts, whatever stands before them, and opens no image for it.

    Without a text it is a `TfmdDL`. `prepare` of an input's transform is called with its items before the first of
    them is read."""

    def __init__(
        self,
        dataset: Any = None,  # fastai's `Datasets`
        res: Any = None,  # numbers of tokens that are known already
        **kwargs: Any,  # of `TfmdDL`
    ):
        for tl in _inputs(dataset):
            for f in tl.tfms.fs:
                if hasattr(type(f), "prepare"):
                    f.prepare(tl)
        res = token_counts(dataset) if res is None else res
        self.by_length = res is not None
        super().__init__(dataset, res=res if self.by_length else np.zeros(len(dataset or ())), **kwargs)

    def get_idxs(self) -> list[int]:
        "List the items of an epoch: by length where there are texts."
        return super().get_idxs() if self.by_length else super(SortedDL, self).get_idxs()

    def shuffle_fn(self, idxs: list[int]) -> Any:
        "Shuffle: within batches of like length where there are texts."
        return super().shuffle_fn(idxs) if self.by_length else super(SortedDL, self).shuffle_fn(idxs)

    def new(self, dataset: Any = None, **kwargs: Any) -> "InputsDL":
        "Make the loader again, over other items where they are given."
        make = super().new if self.by_length else super(SortedDL, self).new
        return make(dataset=dataset, **kwargs)


def token_counts(
    dataset: Any,  # fastai's `Datasets`
) -> np.ndarray | None:  # (N,) of all texts together; None where there is no text
    "Count the tokens of every item. Only the texts are read, or what fastai's tokenizer noted of them."
    counts = [_counts(tl) for tl in _inputs(dataset) if any(_makes_tokens(f) for f in tl.tfms.fs)]
    return np.sum(counts, axis=0) if counts else None


def _inputs(dataset: Any) -> list[TfmdLists]:
    return list(dataset.tls[: dataset.n_inp]) if isinstance(dataset, Datasets) else []


def _makes_tokens(f: Any) -> bool:
    inner = f.tfms.fs if hasattr(f, "tfms") else [f]
    return any(isinstance(g, Numericalize) or getattr(g, "makes_tokens", False) for g in inner)


def _counts(tl: TfmdLists) -> np.ndarray:
    for f in tl.tfms.fs:
        column = f"{getattr(f, 'tok_text_col', '')}_length"
        if isinstance(f, Tokenizer) and isinstance(tl.items, pd.DataFrame) and column in tl.items:
            return tl.items[column].to_numpy()
    return np.array([len(tl[i]) for i in range(len(tl))])
