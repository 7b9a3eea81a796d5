"""The inputs of an item as they are drawn: images and rows as pictures, texts as lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastai_heads.data.rows import RowValues
from fastai_heads.view.texts import PLAIN

__all__ = ["Drawn", "sort_inputs"]


@dataclass(frozen=True)
class Drawn:
    "The inputs of one item."

    pictures: tuple[Any, ...]  # images, then rows
    titles: tuple[str, ...]  # over the pictures; '' where there is one input
    lines: tuple[tuple[str, str], ...]  # of the texts: (text, colour)


def sort_inputs(
    item: Any,  # an image, or a tuple of all inputs; decoded
    names: Sequence[str] = (),  # of the inputs
) -> Drawn:
    "Sort the inputs of an item by how they are drawn."
    inputs = item if isinstance(item, tuple) else (item,)
    named = list(zip(names if len(inputs) > 1 else [""] * len(inputs), inputs, strict=True))
    pictures = sorted(
        (pair for pair in named if not isinstance(pair[1], str)), key=lambda p: isinstance(p[1], RowValues)
    )
    lines = [(f"{name}: {text}" if name else str(text), PLAIN) for name, text in named if isinstance(text, str)]
    return Drawn(tuple(x for _, x in pictures), tuple(name for name, _ in pictures), tuple(lines))
