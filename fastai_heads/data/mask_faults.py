"""Masks that would train the wrong thing: colours for codes, 255 for 1, another size than the image."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.data.transforms import IntToFloatTensor
from fastai.torch_core import no_random, to_device
from fastai.vision.core import PILMask
from PIL import Image
from torch import Tensor

from fastai_heads.data.files import Headers, spread
from fastai_heads.data.labels import Labels, split_name
from fastai_heads.data.missing import IGNORE_PIXEL, is_missing
from fastai_heads.data.targets import Target

__all__ = ["Masks", "check_masks"]

_SAMPLE = 24  # masks of a split whose pixels are read
_DOUBTED = 96  # masks whose pixels are read before one code is said to be in none
_GREY = ("L", "LA", "La")  # modes whose codes fastai reads as they are
_FEW = 4


@dataclass(frozen=True)
class Masks:
    "The masks of one split, and what stands around them."

    labels: Labels
    target: Target
    place: int  # of the target in a batch
    dl: TfmdDL  # the split's loader
    images: Sequence[Any]  # what the getter of the image gives, row by row: a file's path, or anything else
    void: Collection[int]  # values that stand for no label

    @property
    def rows(self) -> list[int]:
        "List the rows that have a mask."
        values = self.labels.values
        return [i for i, v in enumerate(values) if not is_missing(v)] if len(values) else [*range(len(self.labels.tl))]

    def read(
        self,
        i: int,  # which row
    ) -> PILMask:
        "Read the pixels of one mask, as fastai does."
        return self.labels.tl[i]

    def shrunk(
        self,
        pixels: np.ndarray,  # (H, W) as in the file
    ) -> np.ndarray:  # (H, W) divided as the loader does (`IntToFloatTensor(div_mask=255)`)
        "Give the codes of pixels."
        steps = [f.div_mask for f in self.dl.after_batch.fs if isinstance(f, IntToFloatTensor)]
        return (pixels / steps[0]).astype(np.int64) if steps and steps[0] != 1 else pixels


def check_masks(
    masks: Masks,  # of one split
    headers: Headers,  # of the files
) -> None:
    "Refuse masks that are not one channel of codes of the image's size. Of most masks the header alone is read."
    rows = masks.rows
    if not rows:
        return
    _check_modes(masks, headers, rows)
    _check_sizes(masks, headers)
    _check_codes(masks, rows)


def _check_modes(masks: Masks, headers: Headers, rows: Sequence[int]) -> None:
    "Refuse colours, and files whose values fastai changes as it reads them."
    values = masks.labels.values
    odd = [(i, h.mode) for i in rows if len(values) and (h := headers.of(values[i])) and h.mode not in _GREY]
    for i, mode in odd:
        if len(Image.new(mode, (1, 1)).getbands()) > 1:
            raise masks.labels.error(i, _colours(str(values[i]), mode))
    for i, mode in odd[:_FEW]:
        with Image.open(values[i]) as image:
            own, read = np.array(image).astype(np.int64), masks.shrunk(np.array(image.convert("L")))
        if not np.array_equal(own, read):
            raise masks.labels.error(i, _convert(str(values[i]), mode, own, read))


def _colours(file: str, mode: str) -> str:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return (
        f"mask {file} is a picture of {bands} channels (mode {mode}), of which fastai makes grey values and no codes. "
        "Map its colours to codes from 0 on in the getter, which may give an array (H, W); where the codes stand "
        "in the first channel: `lambda row: np.array(Image.open(row['mask']))[..., 0]`."
    )


def _convert(file: str, mode: str, own: np.ndarray, read: np.ndarray) -> str:
    what = {"P": "a palette image, whose codes are places in the palette", "1": "a picture of one bit"}
    return (
        f"mask {file} is {what.get(mode, 'a picture')} (mode {mode}): it holds {_listed(np.unique(own))}, and fastai "
        f"reads {_listed(np.unique(read))}. Let the getter read it: "
        "`lambda row: np.array(Image.open(row['mask'])).astype(np.uint8)`."
    )


def _listed(codes: Sequence[int]) -> str:
    shown = ", ".join(str(int(c)) for c in codes[:6])
    return f"{shown}, …" if len(codes) > 6 else shown


def _check_sizes(masks: Masks, headers: Headers) -> None:
    "Refuse the first mask that has not the size of its image after the item transforms."
    files = masks.labels.values
    if not len(files) or len(masks.images) != len(files):
        return
    own, image = headers.sizes(files), headers.sizes(masks.images)
    with np.errstate(invalid="ignore"):
        other = np.flatnonzero((own != image).any(1) & ~np.isnan(own + image).any(1))
    for i in map(int, other[:_FEW]):
        with no_random():
            item = masks.dl.do_item(i)
        picture, mask = item[0], item[masks.place]
        if tuple(picture.shape[-2:]) != tuple(mask.shape[-2:]):
            (w, h), (width, height) = own[i].astype(int), image[i].astype(int)
            said = f"mask {files[i]} has {w}×{h} pixels, and its image {masks.images[i]} has {width}×{height}."
            raise masks.labels.error(i, f"{said} Make them of one size, or drop the row.")


def _check_codes(masks: Masks, rows: Sequence[int]) -> None:
    "Refuse codes that have no name, and 255 where it seems to mean 1, told from a sample of the masks."
    found: set[int] = set()
    for i in spread(rows, _SAMPLE):
        found |= _codes(masks, i)
        _check_named(masks, i)
    judged = masks.labels.split == split_name(0) and not masks.target.partial  # a few masks may well be void and paper
    if not judged or not _all_or_nothing(found):
        return
    for i in spread(rows, _DOUBTED):
        found |= _codes(masks, i)
        if not _all_or_nothing(found):
            return
    held = [i for i in spread(rows, _SAMPLE) if IGNORE_PIXEL in _codes(masks, i)]
    trained = set().union(*(_trained_codes(masks, i) for i in held[:_FEW]))
    if _all_or_nothing(trained):
        raise masks.labels.error(held[0], _two_readings(masks, found))


def _all_or_nothing(codes: set[int]) -> bool:
    "Tell whether there is 255 and no code but 0."
    return IGNORE_PIXEL in codes and codes <= {0, IGNORE_PIXEL}


def _codes(masks: Masks, i: int) -> set[int]:
    "Find the codes that one mask holds."
    mask = masks.read(i)
    if len(mask.getbands()) > 1:
        raise masks.labels.error(i, _colours("of its getter", mask.mode))
    return set(np.unique(masks.shrunk(np.asarray(mask).astype(np.int64))).tolist())


def _trained_codes(masks: Masks, i: int) -> set[int]:
    "Find the codes that a head would see of one mask, after all transforms."
    dl = masks.dl
    with no_random(), torch.no_grad():
        batch = dl.do_batch([dl.do_item(i)])
        batch = dl.after_batch(batch if dl.device is None else to_device(batch, dl.device))
    return set(batch[masks.place].as_subclass(Tensor).unique().tolist())


def _check_named(masks: Masks, i: int) -> None:
    "Refuse a code beyond those that `MaskBlock(codes=…)` names."
    n = masks.target.n_out
    if n is None:
        return
    codes = _codes(masks, i)
    if not _beyond(codes, n, masks.void):
        return
    codes = _beyond(_trained_codes(masks, i), n, masks.void)
    if codes:
        raise masks.labels.error(
            i,
            f"its mask holds {_listed(sorted(codes))}, and `codes=` of `MaskBlock` names {n}, from 0 to {n - 1} "
            f"({IGNORE_PIXEL}: no label). Name all codes, `MaskBlock(codes=[…])`, or map the values in the getter, "
            "which may give an array (H, W) of codes.",
        )


def _beyond(codes: set[int], n: int, void: Collection[int]) -> set[int]:
    return {c for c in codes if not 0 <= c < n and c not in void}


def _two_readings(masks: Masks, found: set[int]) -> str:
    names = list(masks.target.vocab or ())
    which = f"code 1 ({names[1]!r})" if len(names) == 2 else "any code above 0"
    codes = f"codes={names}" if names else "codes=[…]"
    return (
        f"the masks hold {_listed(sorted(found))} and no pixel of {which}, as 255 stands for a pixel without a label. "
        f"If 255 is the foreground: `IntToFloatTensor(div_mask=255)` in `batch_tfms` makes 1 of it, or let the getter "
        "give codes, `lambda row: (np.array(Image.open(row['mask'])) > 0).astype(np.uint8)`, to "
        f"`MaskBlock({codes})`. If 255 is void, say so: `PartialBlock(MaskBlock({codes}))`."
    )
