"""The loader over several inputs: frames are encoded whole, texts are batched by their number of tokens."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.load import DataLoader
from fastai.data.transforms import ColReader
from fastcore.basics import chunked

from fastai_heads.data.raw_texts import place_texts
from fastai_heads.data.text_part import text_class
from fastai_heads.errors import HeadsError

__all__ = ["InputsDL", "token_counts", "with_inputs"]

SORTED_TOGETHER = 50  # batches among which texts of like length find each other


class InputsDL(TfmdDL):
    """A `TfmdDL` that batches by the texts' lengths, as fastai's `SortedDL` does, whatever stands before them.

    It counts tokens, and opens no image for it. `prepare` of an input's transform is called with its items before the
    first of them is read. `whole`, where it is set, makes batches in place of item by item."""

    whole: Any = None  # a `WholeRows`

    def __init__(
        self,
        dataset: Any = None,  # fastai's `Datasets`
        res: np.ndarray | None = None,  # numbers of tokens that are known already
        **kwargs: Any,  # of `TfmdDL`
    ):
        for tl in _inputs(dataset):
            place_texts(tl)
            for f in tl.tfms.fs:
                if hasattr(type(f), "prepare"):
                    f.prepare(tl)
        super().__init__(dataset, **kwargs)
        self.res = token_counts(dataset) if res is None else res

    def get_idxs(self) -> list[int]:
        "List the items of an epoch; where there are texts and they are not shuffled, the longest first."
        idxs = super().get_idxs()
        if self.res is None or self.shuffle or self.n is None:
            return idxs
        return sorted(idxs, key=lambda i: self.res[i], reverse=True)

    def shuffle_fn(
        self,
        idxs: list[int],  # of all items
    ) -> list[int]:
        "Shuffle. Where there are texts, batches are of like length, and the first one has the longest."
        idxs = super().shuffle_fn(idxs)
        if self.res is None or not idxs:
            return idxs
        longest = idxs.index(max(idxs, key=lambda i: self.res[i]))
        idxs[0], idxs[longest] = idxs[longest], idxs[0]
        size = self.bs * SORTED_TOGETHER
        chunks = [idxs[i : i + size] for i in range(0, len(idxs), size)]
        idxs = [i for chunk in chunks for i in sorted(chunk, key=lambda i: self.res[i], reverse=True)]
        batches = [idxs[i : i + self.bs] for i in range(0, len(idxs), self.bs)]
        middle = batches[1:-1]
        self.rng.shuffle(middle)
        return [i for batch in (batches[0], *middle, *batches[1:][-1:]) for i in batch]

    def new(
        self,
        dataset: Any = None,  # other items
        **kwargs: Any,  # of `TfmdDL`
    ) -> "InputsDL":
        "Make the loader again; over the same items, nothing is counted again."
        made = super().new(dataset=dataset, **{"res": self.res if dataset is None else None, **kwargs})
        if dataset is None and not kwargs.keys() & {"after_item", "before_batch", "create_batch"}:
            made.whole = self.whole
        return made

    def before_iter(self) -> None:
        "Read what batches are made of in this process, and once for all workers."
        super().before_iter()
        if self.whole is not None and not self.whole.prepare():
            self.whole = None

    def create_batches(self, samps: Iterable[int]) -> Iterator[Any]:
        "Make the batches of some items."
        if self.whole is None:
            yield from super().create_batches(samps)
        else:
            yield from map(self.whole.batch, chunked(samps, self.bs, self.drop_last))


def with_inputs(
    dls: DataLoaders,  # over fastai `Datasets`, left as they are
) -> DataLoaders:  # `dls` itself where its loaders do already what `InputsDL` does, or have no need of it
    "Batch texts by their own length where fastai's loader would by the length of whatever stands first."
    if not any(isinstance(dl, text_class("SortedDL")) for dl in dls.loaders):
        return dls
    return DataLoaders(*(_again(dl) for dl in dls.loaders), path=dls.path, device=dls.device)


def _again(dl: TfmdDL) -> "InputsDL":
    return DataLoader.new(dl, dl.dataset, cls=InputsDL, do_setup=False)  # setup would empty the pipelines of `dl`


def token_counts(
    dataset: Any,  # fastai's `Datasets`
) -> np.ndarray | None:  # (N,) of all texts together; None where there is no text
    "Count the tokens of every item. Only the texts are read, or what fastai's tokenizer noted of them."
    counts = [_counts(tl) for tl in _inputs(dataset) if any(map(_makes_tokens, _flat(tl)))]
    return np.sum(counts, axis=0) if counts else None


def _inputs(dataset: Any) -> list[TfmdLists]:
    return list(dataset.tls[: dataset.n_inp]) if isinstance(dataset, Datasets) else []


def _flat(tl: TfmdLists) -> Iterator[Any]:
    "Walk the transforms, with those that another one wraps in its place."
    for f in tl.tfms.fs:
        yield from f.tfms.fs if hasattr(f, "tfms") else [f]


def _makes_tokens(f: Any) -> bool:
    return isinstance(f, text_class("Numericalize")) or getattr(f, "makes_tokens", False)


def _counts(tl: TfmdLists) -> np.ndarray:
    for f in _flat(tl):
        column = f"{getattr(f, 'tok_text_col', '')}_length"
        if isinstance(f, text_class("Tokenizer")) and isinstance(tl.items, pd.DataFrame) and column in tl.items:
            return tl.items[column].to_numpy()
    return np.array([_count(tl, i) for i in range(len(tl))])


def _count(tl: TfmdLists, i: int) -> int:
    "Count the tokens of one item. An error names its column and row."
    try:
        return len(tl[i])
    except HeadsError as error:
        row = tl.items.index[i] if isinstance(tl.items, pd.DataFrame) else i
        columns = [str(c) for f in _flat(tl) if isinstance(f, ColReader) for c in f.cols]
        raise error.within(f"{f'column {columns[0]!r}, ' if columns else ''}row {row}") from error.__cause__
