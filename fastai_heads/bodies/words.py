"""What the bodies of texts share: texts at the start of their rows, and what is refused."""

import torch
from torch import Tensor

from fastai_heads.bodies.contract import Body
from fastai_heads.data.inputs import TextInput
from fastai_heads.errors import HeadsError

__all__ = ["TOKENS", "WordsBody", "left_aligned"]

TOKENS = "tokens"
"The tap that is a sequence: (B, L, C), zero after a text's end."


def left_aligned(
    ids: Tensor,  # (B, L), padded at either side
    pad_idx: int,  # the padding
) -> tuple[Tensor, Tensor]:  # (B, L') with padding at the end only and L' the longest text; (B,) lengths
    "Move every text to the start of its row."
    pads = ids == pad_idx
    lengths = (~pads).sum(1)
    if torch.compiler.is_exporting():  # the texts of a graph stand at the start already
        return ids, lengths
    order = pads.to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order)[:, : int(lengths.max()) if len(ids) else 0], lengths


class WordsBody(Body):
    "What every body of a text answers alike. A subclass sets `source` and `n_tokens`."

    source: TextInput  # the text
    n_tokens: int  # how many ids the network knows

    def absent(self, ids: Tensor) -> Tensor:
        "Tell (B,) which texts are missing: those without a token."
        return (ids == self.source.pad_idx).all(1)

    def blank(self, ids: Tensor) -> tuple[Tensor, ...]:
        "Make a text of one token, for a batch in which every text is missing."
        return (ids.new_full((1, 1), int(self.source.pad_idx == 0)),)

    def check_inputs(
        self,
        inputs: tuple[Tensor, ...],  # of a batch, as they reach `forward`
    ) -> None:
        "Refuse what are no ids (B, L) that the network knows, and texts without a token where none may be missing."
        name = f"input {self.source.name!r}"
        ids = inputs[0] if inputs else None
        wrong = len(inputs) != 1 or not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point()
        if wrong:
            found = ", ".join(
                f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else type(t).__name__ for t in inputs
            )
            raise HeadsError(f"{name}: TextBody takes a text as ids (B, L) of integers, found {found}.")
        if ids.numel() and int(ids.max()) >= self.n_tokens:
            raise HeadsError(f"{name}: {self.arch} knows {self.n_tokens} tokens, found the id {int(ids.max())}.")
        empty = self.absent(ids)
        if empty.any() and not self.source.partial:
            raise HeadsError(
                f"{name}: {int(empty.sum())} of {len(ids)} texts in the batch have no token; "
                "put its block into `PartialBlock(…)`, or drop the rows."
            )
