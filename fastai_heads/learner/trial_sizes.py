"""Why images of a size cannot be taken, by which head, and which size can be."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastai_heads.errors import MISFITS, first_line
from fastai_heads.model import MultiHeadModel
from fastai_heads.modes import evaluate

__all__ = ["why_too_small"]

_SIDES = (32, 64, 96, 128, 192, 256, 384, 512)  # of images that are tried where a size cannot be taken


def why_too_small(
    dense: Sequence[str],  # heads that read several maps
    network: nn.Sequential,  # (body, heads)
    image: Tensor,  # (B, C, H, W) of the size that cannot be taken
    error: Exception,  # what the whole network raised
) -> str:
    "Say which head is the first that cannot take the images, and of the sizes tried which is the first that it can."
    body, heads = network

    def why(name: str, *shape: int) -> str:
        one = MultiHeadModel(body, heads.only(name))
        try:
            with evaluate(one):
                one(torch.zeros(1, image.shape[1], *shape, device=image.device))
        except MISFITS as found:
            return first_line(found)
        return ""

    height, width = image.shape[-2:]
    names = [name for name in dense if why(name, height, width)]
    if not names:
        return f"`heads`: the network cannot take images of {height}×{width} pixels: {error}"
    fits = [] if body.input_size else [s for s in _SIDES if s > min(height, width) and not why(names[0], s, s)]
    hint = f"; it takes {fits[0]}×{fits[0]}" if fits else ""
    return (
        f"image size: `heads[{names[0]!r}]` cannot take what the body gives for {height}×{width} pixels{hint}. "
        f"({why(names[0], height, width)})"
    )
