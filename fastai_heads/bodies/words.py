"""What the bodies of texts share: texts at the start of their rows, and what is refused."""

import torch
from torch import Tensor

from fastai_heads.data.inputs import TextInput
from fastai_heads.errors import HeadsError

__all__ = ["TOKENS", "absent_texts", "blank_text", "check_texts", "left_aligned"]

TOKENS = "tokens"
"The tap that is a sequence: (B, L, C), zero after a text's end."


def left_aligned(
    ids: Tensor,  # (B, L), padded at either side
    pad_idx: int,  # the padding
) -> tuple[Tensor, Tensor]:  # (B, L') with padding at the end only and L' the longest text; (B,) lengths
    "Move every text to the start of its row."
    pads = ids == pad_idx
    lengths = (~pads).sum(1)
    order = pads.to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order)[:, : int(lengths.max()) if len(ids) else 0], lengths


def absent_texts(
    ids: Tensor,  # (B, L)
    source: TextInput,  # the text
) -> Tensor:  # (B,)
    "Tell which texts have no token."
    return (ids == source.pad_idx).all(1)


def blank_text(
    ids: Tensor,  # (B, L)
    source: TextInput,  # the text
) -> Tensor:  # (1, 1)
    "Make a text of one token, for a batch in which every text is missing."
    return ids.new_full((1, 1), int(source.pad_idx == 0))


def check_texts(
    inputs: tuple[Tensor, ...],  # of a batch
    source: TextInput,  # the text
    n_tokens: int,  # that the network knows
    arch: str,  # the network's name, for messages
) -> None:
    "Refuse what are no ids (B, L) that the network knows, and texts without a token where none may be missing."
    name = f"input {source.name!r}"
    ids = inputs[0] if inputs else None
    wrong = len(inputs) != 1 or not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point()
    if wrong:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__ for t in inputs)
        raise HeadsError(f"{name}: TextBody takes a text as ids (B, L) of integers, found {found}.")
    if ids.numel() and int(ids.max()) >= n_tokens:
        raise HeadsError(f"{name}: {arch} knows {n_tokens} tokens, found the id {int(ids.max())}.")
    empty = absent_texts(ids, source)
    if empty.any() and not source.partial:
        raise HeadsError(
            f"{name}: {int(empty.sum())} of {len(ids)} texts in the batch have no token; "
            "put its block into `PartialBlock(…)`, or drop the rows."
        )
