"""Batches of rows of a table, taken whole out of tensors in place of item by item."""

from collections.abc import Sequence
from typing import Any

import torch
from fastai.data.core import Datasets, TfmdDL, TfmdLists
from fastai.data.load import fa_collate
from fastai.data.transforms import ToTensor
from fasttransform.transform import compose_tfms
from torch import Tensor

from fastai_heads.data.labels import MISREAD, after_getter, is_picture, read_labels
from fastai_heads.data.loader import InputsDL
from fastai_heads.data.missing_masks import MarkMasks, SizeMasks
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
        self.dataset = dl.dataset
        self.targets: tuple[Tensor, ...] | None = None
        self.fits = True  # until a target turns out to be large, or of several shapes

    def prepare(self) -> bool:
        "Read the targets, if that was not done yet. Tells whether batches can be taken whole."
        if self.fits and self.targets is None:
            ds = self.dataset
            found = [_read_target(ds, place) for place in range(ds.n_inp, len(ds.tls))]
            self.fits = all(one is not None for one in found)
            self.targets = tuple(found) if self.fits else None
        return self.fits

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
    "Tell whether neither items nor their batch are changed on the way, but for masks, which are not kept."
    items = all(isinstance(f, (ToTensor, SizeMasks, MarkMasks)) or f.name == "noop" for f in dl.after_item.fs)
    return items and all(isinstance(f, SameSizes) for f in dl.before_batch.fs)


def _read_target(dataset: Datasets, place: int) -> Tensor | None:
    "Read a target of all items, (N, …); the same label is made once. None where it is large, or not of one shape."
    labels = read_labels(dataset, place, "", "")
    if len(labels.values) != len(dataset) or is_picture(labels.values[0]):
        return None
    tfms, known, found = after_getter(labels.tl), {}, []
    for value in labels.values:
        made = known.get(value) if isinstance(value, str | int) else None
        if made is None:
            try:
                made = compose_tfms(value, tfms=tfms, split_idx=labels.tl.split_idx)
            except MISREAD:
                return None  # read item by item, it is refused by its row
        if isinstance(value, str | int):
            known[value] = made
        if not isinstance(made, Tensor) or made.numel() > _LARGEST or (found and made.shape != found[0].shape):
            return None
        found.append(made)
    return fa_collate(found)
