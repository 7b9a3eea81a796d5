"""fastai's `TabularDataLoaders` with several `y_names`: what its targets are, and one element of a batch for each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import TransformBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import Categorize, CategoryMap, EncodedMultiCategorize
from fastai.tabular.core import Tabular, TabularProc
from fasttransform import ItemTransform, Pipeline
from torch import Tensor

from fastai_heads.data.missing import IGNORE_CATEGORY, labelled
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.names import usable_name

__all__ = ["SeparateTargets", "TabularTargets", "separate_targets", "tabular_labels", "tabular_targets"]


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
    """The `y_block` of `TabularDataLoaders` for targets of several kinds: each has its own classes.

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
        partial = bool(values.isna().any() or (vocab is not None and (values == IGNORE_CATEGORY).any()))
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


def tabular_labels(
    dls: DataLoaders,  # as for `tabular_targets`
    index: int,  # the target's place
) -> Tensor:  # (N,) or, of several labels, (N, n) encoded, missing ones left out
    "Give the labels of the training rows for one target."
    target = tabular_targets(dls)[index]
    ys = torch.as_tensor(_table(dls).targ.to_numpy(dtype=np.float64))
    labels = _column(ys, index, [target.kind] * (index + 1))
    return labels[labelled(labels)]


def _column(ys: Tensor, index: int, kinds: Sequence[str]) -> Tensor:
    "Take one target out of those of a table: int64 of a category, float32 of numbers."
    if kinds[index] == "multilabel":
        return ys.float()
    column = ys[:, index]
    return column.long() if kinds[index] == "category" else column.float()


class SeparateTargets(ItemTransform):
    "After fastai's `ReadTabBatch`: (codes, numbers, ys) to (codes, numbers, y, y, …), an element for each target."

    order = 1

    def __init__(
        self,
        kinds: Sequence[str],  # of the targets
    ):
        super().__init__()
        self.kinds = tuple(kinds)

    def encodes(self, batch):
        if len(batch) < 3:  # rows without labels
            return tuple(batch)
        cats, conts, ys = batch
        return (cats, conts, *(_column(ys, i, self.kinds) for i in range(len(self.kinds))))


def separate_targets(
    dls: DataLoaders,  # fastai's `TabularDataLoaders`; left as they are
) -> DataLoaders:
    "Make the same loaders whose batches have one element for each target."
    split = SeparateTargets([target.kind for target in tabular_targets(dls)])
    return type(dls)(*_again(dls.loaders, split), path=dls.path, device=dls.device)


def _again(loaders: Sequence[TfmdDL], split: SeparateTargets) -> Iterator[TfmdDL]:
    for dl in loaders:
        new = dl.new(after_batch=Pipeline([*dl.after_batch.fs, split]))
        new._n_inp, new._types = 2, getattr(new, "_types", None)
        yield new
