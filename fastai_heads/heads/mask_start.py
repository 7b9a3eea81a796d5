"""The start of a mask's head: its last bias says how often each code occurs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["code_shares", "start_from_shares"]

LEAST = 1e-3  # the share of a code that the sample does not show: it stays possible


def code_shares(
    masks: Tensor,  # (N, H, W) codes, or (N, n_out, H, W) 0 and 1 where a pixel may have several labels
    n_out: int,  # channels of the head
    mode: str,  # 'multiclass', 'binary' or 'multilabel'
    ignore_index: int,  # the code of a pixel without a label
) -> tuple[float, ...] | None:  # (n_out,) from 0 to 1; None where no pixel has a label
    "Measure the share of each code among the labelled pixels, at least one in a thousand."
    masks = masks.long()
    if mode == "multiclass":
        known = masks[(masks >= 0) & (masks < n_out) & (masks != ignore_index)]
        counts, total = torch.bincount(known, minlength=n_out).double(), known.numel()
    else:
        channels = masks.transpose(0, 1).flatten(1) if masks.ndim == 4 else masks.view(1, -1)
        known = channels != ignore_index
        counts, total = ((channels > 0) & known).sum(1).double(), known.sum(1).double().clamp(min=1)
        if not known.any() or len(counts) != n_out:
            return None
    if not masks.numel() or not known.numel():
        return None
    shares = (counts / total).clamp(LEAST, 1 - LEAST)
    return tuple((shares / shares.sum() if mode == "multiclass" else shares).tolist())


@torch.no_grad()
def start_from_shares(
    last: nn.Module,  # the last layers of a decoder; the last convolution among them gives the logits
    shares: Sequence[float],  # (n_out,) as of `code_shares`
    mode: str,  # as there
) -> None:
    """Set the last bias so that the head begins with each code as probable as it is frequent. The first steps then need
    not learn that most of an image is background.

    Source: Lin et al. 2017, "Focal loss for dense object detection", sec. 3.3 (the prior of a rare class)."""
    found = torch.tensor(shares, dtype=torch.float64)
    logits = found.log() if mode == "multiclass" else found.logit()
    bias = [m for m in last.modules() if isinstance(m, nn.Conv2d)][-1].bias
    bias.copy_(logits.to(bias))
