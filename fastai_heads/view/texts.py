"""Values in words, as they stand beside an image."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import isnan
from numbers import Integral, Real
from textwrap import wrap
from typing import Any

from fastcore.foundation import L
from torch import Tensor

from fastai_heads.data.missing import Missing
from fastai_heads.data.partial import KnownTags

__all__ = ["LETTER", "LINE", "break_lines", "number", "say_both", "text_of"]

RIGHT, WRONG, PLAIN = "green", "red", "black"
LINE, LETTER = 0.19, 0.078  # inches of a line of text and of a letter, at 9 points
_MOST, _LONGEST = 16, 8  # most labels of one head that are written out, most lines of one head


def number(value: Real) -> str:
    "Write a number as people do: four digits, thousands in full, a dash for NaN."
    value = float(value)
    if isnan(value):
        return str(Missing())
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def text_of(
    value: Any,  # decoded: a class, labels, numbers, a tensor
    most: int | None = _MOST,  # most labels of a list that are written out; None: all
) -> str:
    "Say one decoded value in words."
    if isinstance(value, Tensor):
        value = value.tolist() if value.numel() <= _MOST else f"{type(value).__name__} of {_sides(value)}"
    if isinstance(value, L | tuple | list):
        rest = 0 if most is None else len(value) - most
        said = ", ".join(text_of(v, most) for v in islice(value, most)) or "none"
        return f"{said} … and {rest} more" if rest > 0 else said
    if isinstance(value, Real) and not isinstance(value, bool | Integral):
        return number(value)
    return str(value)


def _sides(value: Tensor) -> str:
    return "×".join(map(str, value.shape))


def say_both(
    head: str,  # its name
    truth: Any,  # the decoded target; None: it is not known
    said: Any,  # the decoded prediction; None: there is none
) -> tuple[str, str]:  # the text and its colour
    """Say `head: prediction`. It is green where it is right. Where it is wrong it is red, and the target stands behind
    it. Where the target is a number or missing, both are said in black: a number is hardly ever met exactly. Where
    `truth` or `said` is None, the other one is said in black."""
    if said is None:
        return f"{head}: {text_of(truth)}", PLAIN
    if truth is None:
        return f"{head}: {text_of(said)}", PLAIN
    both = f"{head}: {text_of(said)} ({text_of(truth)})"
    if isinstance(truth, Missing) or _is_measured(truth):  # a number is neither right nor wrong
        return both, PLAIN
    if isinstance(truth, KnownTags):
        return (f"{head}: {text_of(said)}", RIGHT) if truth.said_right(said) else (both, WRONG)
    return (f"{head}: {text_of(said)}", RIGHT) if text_of(said, None) == text_of(truth, None) else (both, WRONG)


def _is_measured(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, float) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(v, float) for v in value)
    )


def break_lines(
    lines: Iterable[tuple[str, str]],  # (text, colour) per head
    inches: float,  # greatest width of a line
) -> list[tuple[str, str]]:  # (text, colour) per line
    "Break long texts into several lines, at most eight for each text."
    return [(part, color) for text, color in lines for part in _wrap(text, inches)]


def _wrap(text: str, inches: float) -> Iterator[str]:
    parts: Sequence[str] = wrap(text, max(8, int(inches / LETTER)), subsequent_indent="    ")
    yield from parts if len(parts) <= _LONGEST else [*parts[: _LONGEST - 1], f"{parts[_LONGEST - 1]} …"]
