"""fastai's `TabularDataLoaders` with several `y_names`: what its targets are, and its loaders as a `DataBlock`'s."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock, TransformBlock
from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.load import DataLoader
from fastai.data.transforms import Categorize, CategoryMap, ColReader, EncodedMultiCategorize, RegressionSetup
from fastai.tabular.core import ReadTabBatch, Tabular, TabularProc
from fastai.torch_core import TensorCategory, TensorMultiCategory
from fasttransform import Pipeline
from torch import Tensor

from fastai_heads.data.loader import InputsDL
from fastai_heads.data.missing import IGNORE_CATEGORY
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import EncodedRows, ReadRow, Row
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.names import usable_name

__all__ = ["TableDL", "TabularTargets", "from_tabular", "tabular_targets"]


class EncodeTargets(TabularProc):
    "Encode every target of categories by its own classes, as learned in training, and leave numbers as they are."

    order = 2  # after `Categorify`, whose columns are inputs

    def __init__(
        self,
        categories: Sequence[str] | None = None,  # the columns of categories; None: those that hold no numbers
    ):
        super().__init__()
        self.categories, self.vocabs = categories, {}

    def setups(self, to: Tabular):
        frame = getattr(to, "train", to).items
        for column in self.categories or ():
            if column not in to.y_names:
                raise HeadsError(
                    f"`categories` of TabularTargets: {column!r} is not among `y_names`."
                    f"{did_you_mean(column, to.y_names)} They are {', '.join(to.y_names)}."
                )
        for column in to.y_names:
            if column in self.categories if self.categories is not None else not _holds_numbers(frame[column]):
                self.vocabs[column] = CategoryMap(pd.Series(frame[column].dropna().astype(object).tolist()))

    def encodes(self, to: Tabular):
        for column in (c for c in to.y_names if c in to.items.columns):
            known = self.vocabs.get(column)
            if known is None:
                to.items[column] = pd.to_numeric(to.items[column]).astype(np.float64)
                continue
            values = to.items[column].astype(object)
            new = next((v for v in values.dropna() if v not in known.o2i), None)
            if new is not None:
                raise HeadsError(
                    f"target {column!r} has the class {new!r}, which training did not have: {list(known)}."
                )
            codes = [IGNORE_CATEGORY if pd.isna(v) else known.o2i[v] for v in values]
            to.items[column] = np.array(codes, dtype=np.int64)

    def decodes(self, to: Tabular):
        for column, known in self.vocabs.items():
            if column in to.items.columns:
                to.items[column] = [known[int(i)] if i >= 0 else None for i in to.items[column]]


def TabularTargets(
    categories: Sequence[str] | None = None,  # the columns of categories; None: those that hold no numbers
) -> TransformBlock:
    """Make the `y_block` of `TabularDataLoaders` for targets of several kinds: each has its own classes.

    fastai's own `CategoryBlock` gives all of them the classes of the first."""
    return TransformBlock(type_tfms=EncodeTargets(categories))


def _holds_numbers(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def tabular_targets(
    dls: DataLoaders,  # fastai's `TabularDataLoaders`
) -> tuple[Target, ...]:  # in the order of `y_names`
    "Tell what the targets of a table are. Refuses columns that fastai encoded with the classes of another one."
    to = _table(dls)
    if not len(to.y_names):
        raise HeadsError("`dls` has no target: pass `y_names` to the TabularDataLoaders.")
    by_type = {type(f): f for f in to.procs.fs}
    if EncodedMultiCategorize in by_type:
        vocab = tuple(by_type[EncodedMultiCategorize].vocab)
        return (Target("tags", 0, "multilabel", len(vocab), vocab),)
    vocabs = dict(by_type[EncodeTargets].vocabs) if EncodeTargets in by_type else {}
    if Categorize in by_type:
        if len(to.y_names) > 1:  # codes of each column's own, and the classes of the first
            raise HeadsError(
                f"`y_names` {', '.join(to.y_names)}: fastai keeps the classes of {to.y_names[0]!r} alone, and takes "
                "them for the others'. Pass `y_block=TabularTargets()` to the TabularDataLoaders: each has its own."
            )
        vocabs = {to.y_names[0]: by_type[Categorize].vocab}
    found: list[Target] = []
    for index, column in enumerate(to.y_names):
        name, vocab = usable_name(column, [t.name for t in found]), vocabs.get(column)
        values = to.items[column]
        partial = bool(values.isna().any() or (vocab is not None and (values < 0).any()))
        kind, n_out = ("regression", 1) if vocab is None else ("category", len(vocab))
        found.append(Target(name, index, kind, n_out, None if vocab is None else tuple(map(_plain, vocab)), partial))
    return tuple(found)


def _plain(value: Any) -> Any:
    "Make Python's own number or text of numpy's."
    return value.item() if isinstance(value, np.generic) else value


def _table(dls: DataLoaders) -> Tabular:
    "Find the training rows."
    to = getattr(dls, "train_ds", None)
    if not isinstance(to, Tabular):
        raise HeadsError(f"`dls` is a TabularDataLoaders; found a training set of type {type(to).__name__}.")
    return to


def from_tabular(
    dls: DataLoaders,  # fastai's `TabularDataLoaders`, left as they are; any other
) -> DataLoaders:  # over `Datasets`, whose batches are a `Row` and an element for each target; `dls` itself if no table
    "Give a table's loaders as those of a `DataBlock` with a `TabularBlock` are. Whole batches are read at a time."
    if not isinstance(getattr(dls, "train_ds", None), Tabular):
        return dls
    targets = tabular_targets(dls)
    tables = [dl.dataset for dl in dls.loaders]
    procs = [f for f in tables[0].procs.fs if not isinstance(f, _OF_TARGETS)]
    rows = TfmdLists(_rows(tables[0]), [ReadRow.fitted(tables[0], procs)])
    blocks = _blocks(targets, list(map(str, tables[0].y_names)))
    labels = [TfmdLists(_raw_labels(tables[0], targets), block) for block in blocks]
    loaders = []
    for place, (dl, to) in enumerate(zip(dls.loaders, tables)):
        raw = _raw_labels(to, targets)
        tls = [rows._new(_rows(to), split_idx=place), *(tl._new(raw, split_idx=place) for tl in labels)]
        after = [f for f in dl.after_batch.fs if not isinstance(f, ReadTabBatch)]
        encoded = [_encoded_labels(to, target) for target in targets]
        more = {"after_batch": Pipeline(after), "wgts": getattr(dl, "wgts", None), "labels": encoded}
        loaders.append(DataLoader.new(dl, Datasets(tls=tls, n_inp=1), cls=TableDL, do_setup=False, **more))
    return DataLoaders(*loaders, path=dls.path, device=dls.device)


_OF_TARGETS = (Categorize, EncodedMultiCategorize, RegressionSetup, EncodeTargets)
"The procs that a `y_block` adds."


def _rows(to: Tabular) -> EncodedRows:
    "Give the rows of a table as they are encoded."
    cats, conts = np.array(to.cats, dtype=np.int64), np.array(to.conts, dtype=np.float32)
    return EncodedRows(torch.from_numpy(cats), torch.from_numpy(conts))


def _blocks(targets: Sequence[Target], columns: list[str]) -> Iterator[list[Any]]:
    "List the getter and the transforms of every target, as a `DataBlock` has them."
    for target in targets:
        if target.kind == "multilabel":
            reader, block = ColReader(columns), MultiCategoryBlock(encoded=True, vocab=list(target.vocab))
        elif target.kind == "category":
            reader, block = ColReader(columns[target.index]), CategoryBlock(vocab=list(target.vocab), sort=False)
        else:
            reader, block = ColReader(columns[target.index]), RegressionBlock(n_out=1)
        yield [reader, *(PartialBlock(block) if target.partial else block).type_tfms]


def _raw_labels(to: Tabular, targets: Sequence[Target]) -> pd.DataFrame:
    "Give the labels of a table as they were before they were encoded; None for a missing class."
    columns = {str(column): to.items[column].tolist() for column in to.y_names}
    for target in targets:
        if target.kind == "category":
            column = str(to.y_names[target.index])
            columns[column] = [target.vocab[int(code)] if code >= 0 else None for code in columns[column]]
    return pd.DataFrame(columns, index=to.items.index)


def _encoded_labels(to: Tabular, target: Target) -> Tensor:  # (N,), or of several labels (N, n)
    "Give the labels of a table for one target, of the type that an item's has."
    ys = torch.as_tensor(to.targ.to_numpy(dtype=np.float64))
    if target.kind == "multilabel":
        return TensorMultiCategory(ys.float())
    if target.kind == "category":
        codes = ys[:, target.index].long()
        return TensorCategory(codes.masked_fill(codes < 0, IGNORE_CATEGORY))
    return ys[:, target.index].float()


class TableDL(InputsDL):
    "The loader of a table whose labels are encoded: it indexes whole batches, and draws rows as fastai's table does."

    def __init__(
        self,
        dataset: Any = None,  # fastai's `Datasets`
        wgts: np.ndarray | None = None,  # (N,) how often a row is drawn, as of fastai's `TabWeightedDL`
        labels: Sequence[Tensor] | None = None,  # (N, …) for each target, encoded; None: each item is read by itself
        **kwargs: Any,  # of `InputsDL`
    ):
        self.wgts, self.labels = wgts, labels
        super().__init__(dataset, **kwargs)

    def get_idxs(self) -> list[int]:
        "List the rows of an epoch; where fastai draws them by weight, as it does."
        if self.wgts is None or not self.shuffle or not self.n:
            return super().get_idxs()
        return list(np.random.choice(self.n, self.n, p=self.wgts))

    def create_batches(
        self,
        samps: Iterator[int],  # the rows' places
    ) -> Iterator[tuple[Any, ...]]:
        "Make the batches: of encoded labels by indexing, else from the items."
        if self.labels is None:
            yield from super().create_batches(samps)
            return
        rows = self.dataset.tls[0].items
        for chosen in self.chunkify(samps):
            at = torch.as_tensor(np.asarray(chosen, dtype=np.int64))
            yield (Row((rows.cats[at], rows.conts[at])), *(y[at] for y in self.labels))

    def new(
        self,
        dataset: Any = None,  # other rows
        **kwargs: Any,  # of `TfmdDL`
    ) -> "TableDL":
        "Make the loader again; other rows are read one by one, each as likely as any."
        own = {"wgts": self.wgts, "labels": self.labels} if dataset is None else {}
        return super().new(dataset=dataset, **{**own, **kwargs})
