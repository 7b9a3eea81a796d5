"""What a missing label is: as the user holds it, and encoded in a batch."""

from typing import ClassVar

import numpy as np
import pandas as pd
from fastai.torch_core import ShowTitle, TensorBase
from fastai.vision.core import TensorMask
from fastcore.foundation import L
from torch import Tensor

__all__ = ["IGNORE_CATEGORY", "IGNORE_PIXEL", "Missing", "is_missing", "labelled", "missing_share"]

IGNORE_CATEGORY = -100  # a missing integer label: torch's own default for `ignore_index`
IGNORE_PIXEL = 255  # a mask's pixel without a label, segmentation's custom


def _gaps(
    value: object,  # a label as the user holds it
) -> np.ndarray:  # one bool per number or part of it, flat
    "Find where a label is `None`, NaN, NaT or `pd.NA`."
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return np.asarray(pd.isna(value)).reshape(-1)
    if isinstance(value, (list, tuple, L)):
        return np.concatenate([_gaps(v) for v in value]) if len(value) else np.zeros(0, dtype=bool)
    return np.array([value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))])


def missing_share(
    value: object,  # a label as the user holds it, before any transform
) -> float:  # 0 for a label, 1 for none, between them where some numbers are there and others not (`[3.0, nan]`)
    "Say how much of a label is missing."
    if isinstance(value, str):
        return float(not value.strip())
    gaps = _gaps(value)
    return float(gaps.mean()) if gaps.size else 0.0


def is_missing(
    value: object,  # a label as the user holds it, before any transform
) -> bool:
    """Tell whether there is no label: `None`, NaN, `pd.NA`, a blank string, or a list, tuple or array of nothing else.

    An empty list is a label: no tag applies."""
    return missing_share(value) == 1.0


def labelled(
    target: Tensor,  # (B, …) one encoded target of a batch, from any block
) -> Tensor:  # (B,) bool, False where the item has no label
    """Tell which items of a batch have a label.

    Missing is: every value NaN (float targets); every value -100 (integers); every pixel 255 (masks: `TensorMask`, or
    integers with three axes or more, since fastai's loop drops the type before the loss)."""
    plain = target.as_subclass(Tensor) if isinstance(target, TensorBase) else target
    if plain.is_floating_point():
        gap = plain.isnan()
    elif isinstance(target, TensorMask) or plain.ndim >= 3:
        gap = plain == IGNORE_PIXEL
    else:
        gap = plain == IGNORE_CATEGORY
    return ~(gap if gap.ndim == 1 else gap.flatten(1).all(1))


class Missing(str, ShowTitle):
    "What a missing label decodes to: a dash, and it shows as one."

    _show_args: ClassVar = {"label": "text"}

    def __new__(cls) -> "Missing":
        return super().__new__(cls, "–")

    def __reduce__(self):
        return Missing, ()
