"""Inputs of a batch joined, and taken apart: images, rows and texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastai_heads.bodies.contract import Body
from fastai_heads.errors import HeadsError

__all__ = ["join", "take"]


def take(
    inputs: tuple[Any, ...],  # the elements of one input
    here: Tensor,  # (B,) bool
) -> tuple[Any, ...]:
    "Take some items of an input."
    return tuple(type(x)(take(tuple(x), here)) if isinstance(x, tuple) else x[here] for x in inputs)


def join(
    parts: Sequence[tuple[Any, ...]],  # of several inputs, the elements of each
    body: Body,  # that reads them all, for messages
) -> tuple[Any, ...]:  # as of one input, the items of the first before those of the second
    "Join the batches of several inputs that one body reads. Texts are filled up to the longest."
    if len(parts) == 1:
        return parts[0]
    return tuple(_join(list(elements), body) for elements in zip(*parts))


def _join(elements: list[Any], body: Body) -> Any:
    if isinstance(elements[0], tuple):
        return type(elements[0])(_join(list(inner), body) for inner in zip(*elements))
    source = getattr(body, "source", None)
    if hasattr(source, "pad_idx"):
        longest = max(x.shape[1] for x in elements)
        elements = [pad(x, (0, longest - x.shape[1]), value=source.pad_idx) for x in elements]
    if len({x.shape[1:] for x in elements}) > 1:
        sizes = " and ".join(str(tuple(x.shape[1:])) for x in elements)
        raise HeadsError(f"inputs that share the body of {body.arch} are of one size, found {sizes}.")
    return torch.cat(elements)
