"""What the targets of a `DataLoaders` are: their kinds, names, vocabularies and labels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.transforms import (
    Categorize,
    ColReader,
    EncodedMultiCategorize,
    MultiCategorize,
    OneHotEncode,
    RegressionSetup,
)
from fastai.vision.core import AddMaskCodes, PILMask, TensorBBox, TensorPoint
from fasttransform import Pipeline, Transform
from torch import Tensor

from fastai_heads.data.bbox_blocks import ReadPair
from fastai_heads.data.blocks import MakeBox
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.files import spread
from fastai_heads.data.kinds import TellsKind
from fastai_heads.data.labels import step_of
from fastai_heads.data.missing import labelled
from fastai_heads.data.moving import may_leave
from fastai_heads.data.partial import Partial
from fastai_heads.data.plain import PlainPart
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.names import usable_name

__all__ = ["Target", "dls_targets", "target_labels"]

_MASKS = 32
_SAMPLE = 256  # items of a plain `Dataset` whose labels are read


@dataclass(frozen=True)
class Target:
    "What one target of a `DataLoaders` is."

    name: str  # an identifier, from the getter's column or the kind
    index: int  # its place among the targets
    # 'category', 'multilabel', 'regression', 'point', 'box', 'detection', 'boxes', 'box_labels', 'mask' or 'unknown'
    kind: str
    n_out: int | None = None  # numbers per image that describe it; None where the data does not tell for sure
    vocab: tuple[Any, ...] | None = None  # the classes, in the order of their indices
    partial: bool = False  # some of its labels may be missing, such as boxes that augmentation moves out of their image


def dls_targets(
    dls: DataLoaders,  # fastai's, from a `DataBlock`, `Datasets` or an `ImageDataLoaders` factory
) -> tuple[Target, ...]:  # in the order of the blocks
    """Describe the targets of `dls`. Raises `HeadsError` for data without targets, or where `n_inp` counts a target
    among the inputs. A name that had to be changed is reported as a `HeadsWarning`."""
    ds = getattr(dls, "train_ds", None)
    if not isinstance(ds, Datasets):
        raise HeadsError(
            "`dls` holds fastai `Datasets`, as a DataBlock or ImageDataLoaders makes them, whose targets can be told; "
            f"found a training set of type {type(ds).__name__}."
        )
    _check_inputs(ds)
    found: list[Target] = []
    for index, tl in enumerate(ds.tls[ds.n_inp :]):
        found.append(_describe(tl, index, [t.name for t in found], dls))
    if sum(t.kind == "mask" for t in found) > 1:  # a DataBlock keeps the codes of one `MaskBlock`, the last
        found = [replace(t, n_out=None) if t.kind == "mask" else t for t in found]
    return tuple(found)


def target_labels(
    dls: DataLoaders,  # as for `dls_targets`
    index: int,  # the target's place
) -> Tensor:  # (N, …) encoded, missing ones left out
    """Read the labels of the training set for one target, without opening an image. Of a plain `Dataset`, which opens
    one for every item, 256 are read, spread over it; of masks 32, at 64 × 64. A table's loader has them all."""
    known = getattr(dls.train, "labels", None)
    if known is not None:
        return known[index][labelled(known[index])].as_subclass(Tensor)
    tl = dls.train_ds.tls[dls.train_ds.n_inp + index]
    if _kind(tl)[0] == "mask":
        return _sample_masks(tl)
    rows = range(len(tl)) if step_of(tl, PlainPart) is None else spread(range(len(tl)), _SAMPLE)
    labels = torch.stack([torch.as_tensor(tl[i]) for i in rows])
    return labels[labelled(labels)]


def _sample_masks(tl: TfmdLists) -> Tensor:
    found = [torch.as_tensor(np.array(tl[i]), dtype=torch.float32) for i in spread(range(len(tl)), _MASKS)]
    planes = [mask.reshape(1, -1, *mask.shape[-2:]) for mask in found]
    small = [F.interpolate(plane, (64, 64), mode="nearest")[0] for plane in planes]
    return torch.stack([plane.view(*mask.shape[:-2], 64, 64) for plane, mask in zip(small, found)])


def _check_inputs(ds: Datasets) -> None:
    swallowed = [i for i, tl in enumerate(ds.tls[: ds.n_inp]) if i > 0 and _kind(tl)[0] != "unknown"]
    if swallowed:
        kinds = ", ".join(f"block {i} ({_kind(ds.tls[i])[0]})" for i in swallowed)
        raise HeadsError(
            f"`dls` takes {ds.n_inp} of its {len(ds.tls)} blocks as inputs (`n_inp={ds.n_inp}`), among them {kinds}. "
            f"Pass `n_inp=1` to the DataBlock: `DataBlock(blocks=…, getters=…, n_inp=1)`."
        )
    if len(ds.tls) <= ds.n_inp:
        raise HeadsError(
            f"`dls` has no target: {len(ds.tls)} block(s), {ds.n_inp} of them input (`n_inp={ds.n_inp}`). "
            "Add a target block such as `CategoryBlock` to the DataBlock."
        )


def _describe(tl: TfmdLists, index: int, taken: Sequence[str], dls: DataLoaders) -> Target:
    kind, n_out, vocab = _kind(tl)
    if kind == "mask":
        vocab = _mask_codes(dls)
        n_out = None if vocab is None else len(vocab)
    column = _column(tl)
    name = usable_name(kind if column is None else column, taken)
    if column is not None and name != column:
        warnings.warn(f"the target of column {column!r} is named {name!r}", HeadsWarning, stacklevel=2)
    left = kind == "box" and step_of(tl, MakeBox) is not None and may_leave(tl, dls.train)
    partial = left or any(isinstance(f, (Partial, PlainPart)) for f in tl.tfms.fs)
    return Target(name, index, kind, n_out, vocab, partial)


def _transforms(tl: TfmdLists) -> list[Transform]:
    "List the transforms of a target, with those inside a `Partial` in its place."
    found: list[Transform] = []
    for f in tl.tfms.fs:
        found += list(f.tfms.fs) if isinstance(f, Partial) else [f]
    return found


def _kind(tl: TfmdLists) -> tuple[str, int | None, tuple | None]:
    "(kind, n_out, vocab) of a target, told by its transforms, else by what they make of the first label."
    by_type = {type(f): f for f in _transforms(tl)}
    if OneHotEncode in by_type or EncodedMultiCategorize in by_type:
        vocab = tuple((by_type.get(MultiCategorize) or by_type.get(EncodedMultiCategorize)).vocab)
        return "multilabel", len(vocab), vocab
    if MultiCategorize in by_type:
        return "box_labels", None, tuple(by_type[MultiCategorize].vocab)
    if Categorize in by_type:
        vocab = tuple(by_type[Categorize].vocab)
        return "category", len(vocab), vocab
    if RegressionSetup in by_type:
        return "regression", by_type[RegressionSetup].c or None, None
    own = next((f for f in by_type.values() if isinstance(f, TellsKind)), None)
    return _kind_of_label(tl) if own is None else own.target_kind()


def _kind_of_label(tl: TfmdLists) -> tuple[str, int | None, None]:
    label = _first_label(tl)
    if isinstance(label, TensorBBox):
        return "boxes", None, None
    if isinstance(label, TensorPoint):
        return "point", label.numel(), None
    return ("mask" if isinstance(label, PILMask) else "unknown"), None, None


def _first_label(tl: TfmdLists) -> Any:
    return tl[0] if len(tl) else None


def _mask_codes(dls: DataLoaders) -> tuple | None:
    codes = [f.codes for f in dls.train.after_item.fs if isinstance(f, AddMaskCodes) and f.codes is not None]
    return tuple(codes[0]) if codes else None


def _column(tl: TfmdLists) -> str | None:
    "Find the one column that a target is read from. It is None for several, or for a getter without a column."
    part = step_of(tl, PlainPart)
    if part is not None:
        return part.part
    readers = [f for f in _flat(tl.tfms) if isinstance(f, ColReader)]
    if len(readers) != 1 or (len(readers[0].cols) != 1 and not isinstance(readers[0], BoxesReader)):
        return None
    column = readers[0].cols[0]
    if isinstance(column, str):
        return column
    columns = getattr(tl.items, "columns", None)
    return None if columns is None else str(columns[column])


def _flat(pipeline: Pipeline) -> list[Transform]:
    "List all transforms. Of two blocks that became one target these are those of the boxes."
    inner = ((f.boxes if isinstance(f, ReadPair) else f) for f in pipeline.fs)
    return [g for f in inner for g in (_flat(f) if isinstance(f, Pipeline) else [f])]
