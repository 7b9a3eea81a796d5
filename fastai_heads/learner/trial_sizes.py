"""Why inputs of a size cannot be taken, by which head, and which size can be."""

from collections.abc import Sequence
from typing import Any

from fastai_heads.errors import MISFITS, first_line
from fastai_heads.model import MultiHeadModel
from fastai_heads.modes import evaluate

__all__ = ["why_too_small"]


def why_too_small(
    dense: Sequence[str],  # heads that read several maps
    network: MultiHeadModel,
    inputs: tuple[Any, ...],  # (B, …) each, of the size that cannot be taken
    error: Exception,  # what the whole network raised
) -> str:
    "Say which head is the first that cannot take the inputs, and of the sizes tried which is the first that it can."
    body, heads = network

    def why(name: str, tried: tuple[Any, ...]) -> str:
        one = MultiHeadModel(body, heads.only(name))
        try:
            with evaluate(one):
                one(*tried)
        except MISFITS as found:
            return first_line(found)
        return ""

    size = body.size_of(inputs)
    name = next((name for name in dense if why(name, inputs)), None)
    if name is None:
        return f"`heads`: the network cannot take inputs of {size}: {error}"
    fits = next((body.size_of(tried) for tried in body.other_sizes(inputs) if not why(name, tried)), "")
    hint = f"; it takes {fits}" if fits else ""
    return (
        f"{', '.join(body.input_names)} size: `heads[{name!r}]` cannot take what the body gives for {size}{hint}. "
        f"({why(name, inputs)})"
    )
