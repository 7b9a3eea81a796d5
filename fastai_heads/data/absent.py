"""Inputs that are missing: what stands for an image and for a text, and texts of a frame that has some."""

from typing import Any

import pandas as pd
import torch
from fastai.data.core import TfmdLists
from fastai.vision.core import PILImage, PILImageBW, TensorImage, TensorImageBW
from fastcore.foundation import L
from fasttransform.transform import Transform
from PIL import Image
from torch import Tensor

from fastai_heads.data.missing import is_missing
from fastai_heads.data.text_part import text_class
from fastai_heads.errors import HeadsError

__all__ = ["FillImages", "MarkImages", "absent_like", "makes_images", "tokenize_known"]


class MissingImage(PILImage):
    "Stands in for an image that is not there until the tensors are made; survives every PIL transform by its type."


class MissingImageBW(PILImageBW):
    "The same for images of one channel."


class TensorMissingImage(TensorImage):
    "A `MissingImage` as tensor, within the item transforms."


class TensorMissingImageBW(TensorImageBW):
    "A `MissingImageBW` as tensor, within the item transforms."


MissingImage._tensor_cls, MissingImageBW._tensor_cls = TensorMissingImage, TensorMissingImageBW


def absent_like(
    example: Any,  # an encoded input
) -> Any:  # None for what is no image and no text
    "Make what stands for a missing input: of an image a black one that is marked by its type, of a text no token."
    if isinstance(example, PILImage):
        kind = MissingImageBW if isinstance(example, PILImageBW) else MissingImage
        return kind(Image.new(example.mode, example.size))
    return example[:0] if isinstance(example, text_class("TensorText")) else None


def makes_images(
    tfm: Any,  # the first type transform of a block
) -> bool:
    "Tell whether a block makes images: its transform is the `create` of a kind of image."
    owner = getattr(tfm, "__self__", None)
    return isinstance(owner, type) and issubclass(owner, PILImage)


class MarkImages(Transform):
    """After `ToTensor`: a missing image is NaN, which no augmentation makes a number of.

    Floats for the other images too, since they share a batch."""

    order = 6

    def encodes(self, o: TensorImage) -> TensorImage:
        kind = TensorImageBW if isinstance(o, TensorImageBW) else TensorImage
        gap = isinstance(o, TensorMissingImage | TensorMissingImageBW)
        return kind(torch.full(o.shape, torch.nan) if gap else o.float())


class FillImages(Transform):
    "After augmentation and `Normalize`: the whole of a missing image is NaN, whatever padding made of it."

    order = 101

    def encodes(self, o: TensorImage) -> TensorImage:
        return self._fill(o, torch.nan)

    def decodes(self, o: TensorImage) -> TensorImage:
        return self._fill(o, torch.inf)  # white, the mask of an image that decodes to a dash

    def _fill(self, o: Tensor, value: float) -> Tensor:
        gap = o.as_subclass(Tensor).flatten(1).isnan().any(1).view(-1, *[1] * (o.ndim - 1))
        return o.masked_fill(gap, value)


def tokenize_known(
    items: TfmdLists,  # a text input, whose items are rows of a frame
    tokenizer: Transform,  # fastai's, `Tokenizer.from_df`
) -> None:
    "Tokenize the texts that are there, in place. The others are `None`. Refuses what is no text, by row."
    frame = items.items
    names = [frame.columns[c] if isinstance(c, int) else c for c in L(tokenizer.text_cols)]
    known = ~frame[names].map(is_missing).all(axis=1).to_numpy()
    for column in names:
        wrong = [(i, v) for i, v in frame.loc[known, column].items() if not isinstance(v, str) and not is_missing(v)]
        if wrong:
            raise HeadsError(f"column {column!r} is to hold texts, found {wrong[0][1]!r} in row {wrong[0][0]}.")
    if not known.any():
        raise HeadsError(f"column {names[0]!r} holds no text in any of its {len(frame)} rows.")
    text = items._new(frame[known].fillna(dict.fromkeys(names, "")))
    text.splits = L([slice(None), []])
    tokenizer.setup(text)
    column = tokenizer.tok_text_col
    tokens, lengths = pd.Series([None] * len(frame), index=frame.index, dtype=object), known.astype(int)
    tokens[known], lengths[known] = text.items[column].to_numpy(), text.items[f"{column}_length"]
    tokenizer.lengths = lengths
    items.items = frame.drop(columns=names).assign(**{column: tokens, f"{column}_length": lengths})
