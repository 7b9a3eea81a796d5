"""Masks that are missing: what stands for one until its image's size is known, and in a batch."""

import torch
from fastai.torch_core import TensorImageBase
from fastai.vision.core import PILBase, PILMask, TensorMask, TensorPoint
from fasttransform.transform import ItemTransform, Transform
from PIL import Image
from torch import Tensor

from fastai_heads.data.missing import IGNORE_PIXEL, Missing, labelled
from fastai_heads.errors import HeadsError

__all__ = ["FillMasks", "MarkMasks", "SizeMasks", "mask_like"]

UNLABELLED = -255  # a pixel of a missing mask between item and batch transforms: negative also after `div_mask=255`


class MissingMask(PILMask):
    "Stands in for a mask that is not there until the tensors are made; survives every PIL transform by its type."


class TensorMissingMask(TensorMask):
    "A `MissingMask` as tensor, within the item transforms."


MissingMask._tensor_cls = TensorMissingMask


def mask_like(
    size: tuple[int, int],  # width and height
) -> MissingMask:
    "Make what stands for a missing mask: ignored in every pixel."
    return MissingMask(Image.new("L", size, IGNORE_PIXEL))


class SizeMasks(ItemTransform):
    "First of the item transforms: gives missing masks the image's size. Last to decode: missing labels show a dash."

    order = -1

    def encodes(self, x: list):
        gaps = [isinstance(o, MissingMask) for o in x]
        if not any(gaps):
            return x
        sizes = [_size(o) for o, gap in zip(x, gaps) if not gap and isinstance(o, (PILBase, TensorImageBase))]
        if not sizes:
            raise HeadsError("A missing mask takes its size from an image in the same item, which has none.")
        return [mask_like(sizes[0]) if gap else o for o, gap in zip(x, gaps)]

    def decodes(self, x: list):
        return [Missing() if isinstance(o, (TensorMask, TensorPoint)) and _shows_nothing(o) else o for o in x]


def _size(image: PILBase | Tensor) -> tuple[int, int]:
    "Width and height."
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size


def _shows_nothing(o: Tensor) -> bool:
    return o.numel() > 0 and not labelled(o[None]).item()


class MarkMasks(Transform):
    """After `ToTensor`: every pixel of a missing mask is negative, so that padding cannot make a labelled one of it.

    Signed integers for the other masks too, since they share a batch."""

    order = 6

    def encodes(self, o: TensorMask) -> TensorMask:
        gap = isinstance(o, TensorMissingMask)
        return TensorMask(torch.full(o.shape, UNLABELLED, dtype=torch.int16) if gap else o.to(torch.int16))


class FillMasks(Transform):
    "After augmentation: makes the whole of a missing mask 255 again, which padding and `div_mask` have changed."

    order = 98

    def encodes(self, o: TensorMask) -> TensorMask:
        plain = o.as_subclass(Tensor)
        gap = (plain < 0).flatten(1).any(1).view(-1, *[1] * (plain.ndim - 1))
        return TensorMask(plain.masked_fill(gap, IGNORE_PIXEL))
