"""`PartialBlock`: a block of a target or an input that some items do not have."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import pandas as pd
import torch
from fastai.data.block import TransformBlock
from fastai.data.core import TfmdLists
from fastai.data.transforms import (
    ColReader,
    EncodedMultiCategorize,
    MultiCategorize,
    MultiCategory,
    RegressionSetup,
)
from fastai.vision.core import PILMask
from fastcore.foundation import L
from fasttransform.transform import ItemTransform, Pipeline, Transform
from torch import Tensor

from fastai_heads.data.absent import FillImages, MarkImages, absent_like, makes_images, tokenize_known
from fastai_heads.data.loader import InputsDL
from fastai_heads.data.missing import IGNORE_CATEGORY, Missing, is_missing, labelled, missing_share
from fastai_heads.data.missing_masks import FillMasks, MarkMasks, SizeMasks, mask_like
from fastai_heads.data.parse import parse_numbers
from fastai_heads.data.text_part import text_class
from fastai_heads.errors import HeadsError

__all__ = ["Partial", "PartialBlock", "PartialReader"]


class KnownTags(MultiCategory):
    "The tags of an item, some of which are not known."

    unknown: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        tags: MultiCategory,  # that are there
        unknown: Iterable[Any],  # of which nothing is known
    ) -> "KnownTags":
        "Return the tags, and say which are not known."
        self = cls(list(tags))
        self.unknown = tuple(unknown)
        return self

    def said_right(
        self,
        said: Iterable[Any],  # tags that are predicted
    ) -> bool:
        "Tell whether a prediction is right in all that is known."
        return {str(tag) for tag in said if tag not in self.unknown} == set(map(str, self))


class PartialReader(ColReader):
    """A `ColReader` that gives `None` for an empty cell, where `pref`, `suff` and `label_delim` would choke on NaN.

    With `label_delim` a blank string stays what it is to `ColReader`, an empty list: no tag applies."""

    def _do_one(self, r, c):
        raw = copy(self)
        raw.pref, raw.suff, raw.label_delim = "", "", None
        cell = ColReader._do_one(raw, r, c)
        tags = self.label_delim is not None and isinstance(cell, str)
        return None if is_missing(cell) and not tags else super()._do_one(r, c)

    @classmethod
    def of(
        cls,
        reader: ColReader,  # left as it is
    ) -> "PartialReader":
        "Make the same reader, which lets empty cells through."
        return cls(list(reader.cols), pref=reader.pref, suff=reader.suff, label_delim=reader.label_delim)


def missing_like(
    example: Any,  # an encoded label, or an encoded input
) -> Any:  # same type and shape
    "Make the encoded label that says there is none. Raises `HeadsError` where the type has no value to spare for that."
    absent = absent_like(example)
    if absent is not None:
        return absent
    if isinstance(example, PILMask):
        return mask_like((1, 1))
    if isinstance(example, (tuple, list)):
        return type(example)(missing_like(o) for o in example)
    if isinstance(example, Tensor) and example.is_floating_point():
        return torch.full_like(example, torch.nan)
    if isinstance(example, Tensor) and example.dtype in (torch.int16, torch.int32, torch.int64):
        return torch.full_like(example, IGNORE_CATEGORY)
    kind = f"{type(example).__name__}{f' of {example.dtype}' if isinstance(example, Tensor) else ''}"
    raise HeadsError(f"`PartialBlock` takes blocks that make floats, integers or masks; this one makes {kind}.")


def _renew(missing: Any) -> Any:
    "Copy a label, because some of fastai's augmentations write into their input."
    if isinstance(missing, (tuple, list)):
        return type(missing)(_renew(o) for o in missing)
    return missing.clone() if isinstance(missing, Tensor) else type(missing)(missing.copy())


def _with_nan(tags: Any) -> Any:
    "Return tags as numbers, NaN for each tag that is missing."
    if isinstance(tags, Tensor):
        return tags
    try:
        return [float("nan") if is_missing(tag) else float(tag) for tag in tags]
    except (TypeError, ValueError):
        raise HeadsError(f"An encoded label has 0, 1 or nothing for every tag, found {list(tags)!r}.") from None


def _columns(tfms: Iterable) -> str:
    "Name the columns that a target's getter reads, for messages. Where it reads none by name, the text is ''."
    return ", ".join(f"`{c}`" for f in tfms if isinstance(f, ColReader) for c in f.cols)


class Partial(ItemTransform):
    """A target block's type transforms, letting items without a label through.

    The wrapped transforms are in `tfms`. They see labelled items only, in setup too. Their attributes (`vocab`, `c`,
    `loss_func`) are attributes of this one. A missing label is encoded as `missing`: type and shape of a labelled
    one."""

    def __init__(
        self,
        tfms: Iterable[Transform],  # of the block that is wrapped
    ):
        super().__init__()
        self.tfms, self.missing = Pipeline(list(tfms)), None
        self.order = min((f.order for f in self.tfms.fs), default=0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "tfms":
            raise AttributeError(name)
        return getattr(self.tfms.fs[0] if name == "input_types" else self.tfms, name)

    @property
    def name(self) -> str:
        return f"Partial({' -> '.join(f.name.strip() for f in self.tfms.fs)})"

    def setup(
        self,
        items: TfmdLists | None = None,  # the items, read by the getter
        train_setup: bool = False,  # from the training items alone
    ) -> None:
        "Learn from the items that have a label. Not `setups`, whose caller swallows every `AttributeError`."
        if items is None:
            return
        for f in self.tfms.fs:
            if isinstance(f, text_class("Tokenizer")) and f.mode == "df" and isinstance(items.items, pd.DataFrame):
                tokenize_known(items, f)
        items = getattr(items, "train", items) if train_setup else items
        getter = items.tfms.fs if isinstance(items, TfmdLists) else L()
        # in place: the list is shared with every subset, while the user's own reader is left as it is
        for i, f in enumerate(getter):
            if type(f) is ColReader:
                getter[i] = PartialReader.of(f)
        known = [self._given(o) for o in items if not self._is_missing(o)]
        if not known and len(items):
            which = _columns(getter) or "a target in `PartialBlock`"
            raise HeadsError(f"{which} holds no label at all in the {len(items)} training items.")
        known = TfmdLists(known, list(self.tfms.fs))
        self.tfms = known.tfms
        if len(known):
            self.missing = missing_like(known[0])

    def _is_missing(self, o: Any) -> bool:
        "Tell whether there is no label. Refuse a label that is there in part; single tags may be missing."
        share = missing_share(o)
        if 0 < share < 1 and not self._has(EncodedMultiCategorize):
            raise HeadsError(f"A label has some of its numbers and not others: {list(o)}. {self._whole_labels()}")
        return share == 1

    def _whole_labels(self) -> str:
        "Say what to do about a label that is there in part."
        if self._has(MultiCategorize):
            return (
                "A list of tags has no place for one that is not known: leave it out, or give every tag a column of "
                "0, 1 or nothing: `PartialBlock(MultiCategoryBlock(encoded=True, vocab=[…]))`."
            )
        return (
            "Leave all of them empty, or give each column a block of its own: `PartialBlock(RegressionBlock())`. "
            "Tags are columns of 0 and 1, of which `PartialBlock(MultiCategoryBlock(encoded=True, vocab=[…]))` lets "
            "some be empty."
        )

    def _has(self, kind: type) -> bool:
        return any(type(f) is kind for f in self.tfms.fs)

    def encodes(self, o):
        if self._is_missing(o):
            return _renew(self.missing)
        return self.tfms(self._given(o))

    def _given(self, o: Any) -> Any:
        "Give what the wrapped transforms take of a label that is there."
        return _with_nan(o) if self._has(EncodedMultiCategorize) else o

    def decodes(self, o):
        if isinstance(o, Missing) or (isinstance(o, Tensor) and not labelled(o[None]).item()):
            return Missing()
        decoded = self.tfms.decode(o)
        gaps = o.isnan().nonzero().flatten().tolist() if self._has(EncodedMultiCategorize) else []
        return KnownTags.of(decoded, [self.vocab[i] for i in gaps]) if gaps else decoded


def PartialBlock(
    block: TransformBlock | Callable[[], TransformBlock],  # of a target or an input, or what makes one
) -> TransformBlock:
    """Make the same block for a target or an input that some items do not have: `None`, NaN, `pd.NA`, blank text.

    Vocabulary and number of outputs come from the labels that are there. A missing label is encoded as the same type
    and shape as any other: -100 for integers, NaN for floats (categories as one-hot, numbers, points, boxes), 255 in
    every pixel of the image's size for masks; `labelled` finds them in a batch. Of a `MultiCategoryBlock(encoded=True,
    vocab=[…])` single tags may be missing: they are NaN in the batch, and count nowhere. Raises `HeadsError` where a
    column has no label at all, and where any other label has some of its numbers only.

    A missing image is NaN, a missing text has no token, a missing row (none of its columns is there) has codes of -1
    and numbers of NaN. A body gives a learned vector for it."""
    block = block() if callable(block) else block
    if not isinstance(block, TransformBlock):
        raise HeadsError(f"`PartialBlock` takes a target block such as `CategoryBlock()`, found {block!r}.")
    own = [f.allow_missing() for f in block.type_tfms if hasattr(f, "allow_missing")]
    images = any(makes_images(f) for f in block.type_tfms)
    return TransformBlock(
        type_tfms=own or Partial(_from_text(block.type_tfms)),
        item_tfms=[SizeMasks, MarkMasks, *([MarkImages] if images else []), *block.item_tfms],
        batch_tfms=[FillMasks, *([FillImages] if images else []), *block.batch_tfms],
        dl_type=InputsDL if block.dl_type is text_class("SortedDL") else block.dl_type,
        dls_kwargs=block.dls_kwargs,
    )


class TakeNumbers(ItemTransform):
    "Before `RegressionSetup`: numbers that a CSV with gaps has brought as text become numbers."

    def encodes(self, o):
        if isinstance(o, str):
            numbers = parse_numbers(o)
            return numbers[0] if len(numbers) == 1 else numbers
        return [float(v) if isinstance(v, str) else v for v in o] if isinstance(o, (list, tuple, L)) else o


def _from_text(tfms: Iterable[Transform]) -> list[Transform]:
    "Give the transforms of a block, which take text for numbers."
    found = list(tfms)
    numbers = any(isinstance(f, RegressionSetup) or f is RegressionSetup for f in found)
    return [TakeNumbers(), *found] if numbers else found
