"""Answers as JSON: for people and pages, where a mask is a picture."""

import base64
import io
import json
import math
from typing import Any

import numpy as np
from PIL import Image
from starlette.responses import JSONResponse

from fastai_heads.export.answers import Mask, as_plain
from fastai_heads.head_tuple import HeadTuple

__all__ = ["Json", "say_answer"]


class Json(JSONResponse):
    "JSON in ASCII, with null where a number is not finite: JSON has no other."

    def render(self, content: Any) -> bytes:
        "Write the content."
        try:
            text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        except ValueError:
            text = json.dumps(_finite(content), separators=(",", ":"))
        return text.encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_answer(
    answer: HeadTuple,  # of an item
) -> dict[str, Any]:  # by head
    "Say an item's answers. A mask is a PNG file in base64, a grey value for each code; several masks are a list."
    return {name: _say(value) for name, value in answer.pairs()}


def _say(value: Any) -> Any:
    if not isinstance(value, Mask):
        return as_plain(value)
    codes = value.codes
    return {"png": _as_png(codes) if codes.ndim == 2 else list(map(_as_png, codes)), "vocab": as_plain(value.vocab)}


def _as_png(codes: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(codes, dtype=np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
