"""Numbers as a user writes them: in one cell of a CSV, or as one box."""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from fastai_heads.errors import HeadsError

__all__ = ["parse_box", "parse_many", "parse_numbers"]


def parse_numbers(
    text: str,  # numbers with blanks, commas or semicolons between them, brackets allowed: '12.5 30', '[1, 2, 3, 4]'
) -> list[float]:  # the numbers, in order
    "Read numbers from one cell of a CSV. Raises `HeadsError` where a part is no number."
    try:
        return [float(part) for part in re.split(r"[\s,;]+", text.strip(" \t\n[]()")) if part]
    except ValueError as error:
        raise HeadsError(f"Expected numbers with blanks between them, found {text!r}: {error}.") from None


def parse_many(
    texts: Sequence[str],  # as for `parse_numbers`, each with as many numbers
) -> np.ndarray | None:  # (N, n); None where they are not alike: `parse_numbers` tells which
    "Read numbers from the cells of a column, all at once."
    if not all(isinstance(text, str) for text in texts):
        return None
    whole = "\n".join(texts).translate(_SEPARATORS)
    rows = [line.strip(" []()").split() for line in whole.split("\n")]
    if len(rows) != len(texts) or len(set(map(len, rows))) != 1:
        return None
    try:
        return np.array(rows, dtype=float)
    except ValueError:
        return None


_SEPARATORS = str.maketrans(",;\t", "   ")


def _flat(numbers: Iterable[float]) -> list[float]:
    "Give the numbers of a list, tuple, array or tensor, all axes in one."
    nested = numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)
    return np.array(nested, dtype=float).reshape(-1).tolist()


def parse_box(
    box: str | Iterable[float],  # x1, y1, x2, y2 in pixels: a list, tuple, array, tensor or 'x1 y1 x2 y2'
) -> list[float]:  # x1, y1, x2, y2 in pixels
    """Read one box: (x1, y1) is its upper left corner, (x2, y2) its lower right one, both on the edges of pixels.

    Raises `HeadsError` unless there are four finite numbers with x1 < x2 and y1 < y2."""
    want = "a box as four numbers x1, y1, x2, y2 in pixels"
    try:
        numbers = parse_numbers(box) if isinstance(box, str) else _flat(box)
    except (TypeError, ValueError):
        raise HeadsError(f"Expected {want}, found {box!r}.") from None
    if len(numbers) != 4:
        raise HeadsError(f"Expected {want}, found {len(numbers)} of them in {box!r}.")
    x1, y1, x2, y2 = numbers
    if not all(map(math.isfinite, numbers)):
        raise HeadsError(f"Expected {want}, all finite, found {box!r}. `PartialBlock(BoxBlock())` takes missing boxes.")
    if x2 <= x1 or y2 <= y1:
        hint = " Is it x, y, width, height?" if x2 > 0 and y2 > 0 else ""
        raise HeadsError(f"Expected {want} with x1 < x2 and y1 < y2, found {box!r}.{hint}")
    return numbers
