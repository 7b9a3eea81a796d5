"""Answers as JSON: for people and pages, where a mask is a picture."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fastai_heads.export.answers import Mask, as_plain

__all__ = ["say_answers"]


def say_answers(
    answers: Sequence[Any],  # a `HeadTuple` an item
) -> list[dict[str, Any]]:
    "Say each item's answers by head. A mask is a PNG file in base64, a pixel for each code."
    return [{name: _say(value) for name, value in answer.asdict().items()} for answer in answers]


def _say(value: Any) -> Any:
    if not isinstance(value, Mask):
        return as_plain(value)
    layers = value.codes if value.codes.ndim == 3 else value.codes[None]
    files = [_as_png(layer) for layer in layers]
    return {"png": files if value.codes.ndim == 3 else files[0], "vocab": as_plain(value.vocab)}


def _as_png(codes: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(codes.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
