"""A batch that nobody photographed: what a network is tried on. No module that this one imports imports torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastai_heads.export.inputs import make_reader

__all__ = ["draw_batch"]

_LENGTH = 12  # tokens of a text


def draw_batch(
    inputs: Sequence[Mapping[str, Any]],  # as a manifest describes them
    n: int,  # items
    takes: str = "uint8",  # images as (n, H, W, C) of uint8; 'body': floats (n, C, H, W)
) -> dict[str, np.ndarray]:  # name → array
    "Draw a batch, the same each time."
    rng = np.random.default_rng(n)
    found: dict[str, np.ndarray] = {}
    for said in inputs:
        reader = make_reader(said)
        if said["kind"] == "image":
            image = rng.integers(0, 256, (n, *said["shape"]), dtype=np.uint8)
            floats = rng.standard_normal((n, said["shape"][2], *said["shape"][:2]), dtype=np.float32)
            found |= dict(zip(reader.arrays, (image if takes == "uint8" else floats, np.zeros(n, bool))))
        elif said["kind"] == "row":
            cats = [rng.integers(0, len(said["classes"][c]) + 1, n) for c in said["codes"]]
            numbers = rng.standard_normal((n, len(said["conts"])), dtype=np.float32)
            codes = np.stack(cats, 1) if cats else np.zeros((n, 0), np.int64)
            found |= dict(zip(reader.arrays, (codes, numbers)))
        else:
            known = np.setdiff1d(np.arange(reader.tokenizer[1]), [said["pad_idx"]])
            ids = rng.choice(known, (n, _LENGTH))
            ends = rng.integers(_LENGTH // 2, _LENGTH, n)
            ids[np.arange(_LENGTH) >= ends[:, None]] = said["pad_idx"]
            found[reader.name] = ids
    return found
