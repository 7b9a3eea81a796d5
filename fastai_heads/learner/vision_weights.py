"""The weights of a fastai `vision_learner`, into a body and one head."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fastai_heads.errors import HeadsError

__all__ = ["load_vision_weights"]


def load_vision_weights(
    model: nn.Sequential,  # (body, heads)
    file: Path,  # what `vision_learner(...).save` wrote
    head: str | None = None,  # the head that takes the head's weights; None: the only one
) -> None:
    """Copies by position: both networks hold the arch's layers in the arch's order, under other names. Nothing is
    copied unless every shape fits; raises `HeadsError` naming the first that does not."""
    if not file.exists():
        raise HeadsError(f"`file`: there is no {file}.")
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = state["model"] if set(state) == {"model", "opt"} else state
    if not state or not all(key.startswith(("0.", "1.")) for key in state):
        raise HeadsError(f"`file`: {file.name} is not what a `vision_learner` saves: its keys are {list(state)[:3]}…")
    heads = model[1]
    if head is None and len(heads) != 1:
        raise HeadsError(f"`head` says which head takes the head's weights: one of {', '.join(heads.names)}.")
    parts = {"0.": model[0], "1.": heads[heads.names[0] if head is None else head]}
    copies = [pair for prefix, module in parts.items() for pair in _pairs(module, state, prefix)]
    for ours, theirs in copies:
        ours.copy_(theirs)


def _pairs(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    ours = module.state_dict()
    theirs = {key: value for key, value in state.items() if key.startswith(prefix)}
    if len(ours) != len(theirs):
        raise HeadsError(
            f"`file`: the {'body' if prefix == '0.' else 'head'} has {len(ours)} tensors and the file {len(theirs)}: "
            "another arch, or another head."
        )
    for (name, a), (key, b) in zip(ours.items(), theirs.items()):
        if a.shape != b.shape:
            raise HeadsError(f"`file`: {name} has shape {tuple(a.shape)}, and {key} of the file {tuple(b.shape)}.")
    return list(zip(ours.values(), theirs.values()))
