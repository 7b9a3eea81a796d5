"""Batches of rows of a table, taken whole out of tensors in place of item by item."""

from collections.abc import Sequence
from typing import Any

import torch
from fastai.data.core import Datasets, TfmdDL, TfmdLists
from fastai.data.load import fa_collate
from fastai.data.transforms import ToTensor
from fasttransform.transform import compose_tfms
from torch import Tensor

from fastai_heads.data.labels import after_getter, is_picture, read_labels
from fastai_heads.data.loader import InputsDL
from fastai_heads.data.partial import MarkMissing, SizeMissing
from fastai_heads.data.rows import EncodedRows, ReadRow, Row
from fastai_heads.data.watched import SameSizes

__all__ = ["WholeRows", "batch_whole"]

_LARGEST = 64  # numbers of a target that is kept


class WholeRows:
    "The encoded rows and targets of a loader, each read once, when the first batch is asked for."

    def __init__(
        self,
        dl: TfmdDL,  # over rows of a table alone
    ):
        self.dataset, self.after_item = dl.dataset, dl.after_item
        self.targets: tuple[Tensor, ...] | None = None
        self.fits = True  # until a target turns out to be large, or of several shapes

    def prepare(self) -> bool:
        "Read the targets, if that was not done yet. Tells whether batches can be taken whole."
        if self.fits and self.targets is None:
            found = self._read()
            self.fits = all(one is not None for one in found)
            self.targets = tuple(found) if self.fits else None
        return self.fits

    def _read(self) -> list[Tensor | None]:
        "Read every target: through its own transforms alone, or where items are changed after them, item by item."
        ds, places = self.dataset, range(self.dataset.n_inp, len(self.dataset.tls))
        if all(isinstance(f, ToTensor) or f.name == "noop" for f in self.after_item.fs):
            return [_join(_read_target(ds, place)) for place in places]
        items = [self.after_item(ds[i]) for i in range(len(ds))]
        return [_join([item[place] for item in items]) for place in places]

    def batch(
        self,
        idxs: Sequence[int],  # of the items
    ) -> tuple[Any, ...]:  # as the loader makes it of the items one by one
        "Take a batch."
        at = torch.as_tensor(idxs, dtype=torch.int64)
        rows = [tl.items.iloc[at.numpy()] for tl in self.dataset.tls[: self.dataset.n_inp]]
        return (*(Row((part.cats, part.conts)) for part in rows), *(values[at] for values in self.targets))


def batch_whole(
    dl: TfmdDL,  # changed in place
) -> None:
    "Let a loader take its batches whole, where it is one over rows alone and nothing else is done to an item."
    if isinstance(dl, InputsDL) and _over_rows(dl.dataset) and _as_it_is(dl):
        dl.whole = WholeRows(dl)


def _over_rows(dataset: Any) -> bool:
    "Tell whether every input is rows that are encoded already."
    if not isinstance(dataset, Datasets) or not len(dataset):
        return False
    inputs = dataset.tls[: dataset.n_inp]
    return all(isinstance(tl.items, EncodedRows) and _reads_alone(tl) for tl in inputs)


def _reads_alone(tl: TfmdLists) -> bool:
    return all(isinstance(f, ReadRow) or f.name == "noop" for f in tl.tfms.fs)


def _as_it_is(dl: TfmdDL) -> bool:
    "Tell whether neither items nor their batch are changed on the way."
    items = all(isinstance(f, (ToTensor, SizeMissing, MarkMissing)) or f.name == "noop" for f in dl.after_item.fs)
    return items and all(isinstance(f, SameSizes) for f in dl.before_batch.fs)


def _read_target(dataset: Datasets, place: int) -> list[Any]:
    "Read a target of all items. What is the same label is made once."
    labels = read_labels(dataset, place, "", "")
    if len(labels.values) != len(dataset) or (len(labels.values) and is_picture(labels.values[0])):
        return []
    tfms, known, found = after_getter(labels.tl), {}, []
    for value in labels.values:
        if not isinstance(value, str | int):
            found.append(compose_tfms(value, tfms=tfms, split_idx=labels.tl.split_idx))
            continue
        if value not in known:
            known[value] = compose_tfms(value, tfms=tfms, split_idx=labels.tl.split_idx)
        found.append(known[value])
    return found


def _join(found: Sequence[Any]) -> Tensor | None:
    "Stack what is read of a target, (N, …). None where it is large, or not of one shape."
    if not found or not all(
        isinstance(one, Tensor) and one.numel() <= _LARGEST and one.shape == found[0].shape for one in found
    ):
        return None
    return fa_collate(found)
