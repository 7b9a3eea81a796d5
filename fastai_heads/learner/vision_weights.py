"""Files of weights: those of a fastai `vision_learner` into a body and one head, and whether a file fits a model."""

from pathlib import Path
from pickle import UnpicklingError

from fastai.learner import load_model
from torch import Tensor, nn

from fastai_heads.errors import HeadsError

__all__ = ["check_state_fits", "load_vision_weights"]

_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError)
"What `torch.load` raises for files that hold something else."


def load_vision_weights(
    model: nn.Sequential,  # (body, heads)
    file: Path,  # what `vision_learner(...).save` wrote
    head: str | None = None,  # the head that takes the head's weights; None: the only one
) -> None:
    """Copies by position: both networks hold the arch's layers in the arch's order, under other names. Nothing is
    copied unless every shape fits; raises `HeadsError` naming the first that does not."""
    state = _read_state(file)
    if not all(key.startswith(("0.", "1.")) for key in state):
        raise HeadsError(f"`file`: {file.name} is not what a `vision_learner` saves: its keys are {list(state)[:3]}…")
    heads = model[1]
    if head is None and len(heads) != 1:
        raise HeadsError(f"`head` says which head takes the head's weights: one of {', '.join(heads.names)}.")
    parts = {"0.": model[0], "1.": heads[heads.names[0] if head is None else head]}
    copies = [pair for prefix, module in parts.items() for pair in _pairs(module, state, prefix)]
    for ours, theirs in copies:
        ours.copy_(theirs)


def check_state_fits(
    model: nn.Module,  # a learner's
    file: Path,  # what `learn.save` wrote
) -> None:
    """Raises `HeadsError` naming what does not fit, before anything is copied: torch copies all that fits first and
    raises then, which leaves a network that is neither the old nor the new one."""
    ours, theirs = model.state_dict(), _read_state(file)
    for what, keys in (("lacks", ours.keys() - theirs.keys()), ("has also", theirs.keys() - ours.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise HeadsError(f"`file`: {file.name} is of another arch or other heads: it {what} {some}.")
    for name, tensor in ours.items():
        _check_shape(name, tensor, name, theirs[name])


class _Reader:
    "Stands in for a model where fastai loads one, and keeps the state."

    state: dict[str, Tensor]

    def load_state_dict(self, state: dict[str, Tensor], strict: bool) -> None:
        self.state = state


def _read_state(file: Path) -> dict[str, Tensor]:
    "The model's state in a file, read as fastai reads it: weights only, with an optimizer's state or without."
    if not file.exists():
        raise HeadsError(f"`file`: there is no {file}.")
    reader = _Reader()
    try:
        load_model(file, reader, None, with_opt=False)
    except _UNREADABLE as error:
        raise HeadsError(
            f"`file`: {file.name} holds no weights that `learn.save` wrote: {type(error).__name__}."
        ) from error
    state = reader.state
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise HeadsError(f"`file`: {file.name} holds no weights that `learn.save` wrote: {type(state).__name__}.")
    return state


def _pairs(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    ours = module.state_dict()
    theirs = {key: value for key, value in state.items() if key.startswith(prefix)}
    if len(ours) != len(theirs):
        raise HeadsError(
            f"`file`: the {'body' if prefix == '0.' else 'head'} has {len(ours)} tensors and the file {len(theirs)}: "
            "another arch, or another head."
        )
    for (name, a), (key, b) in zip(ours.items(), theirs.items()):
        _check_shape(name, a, key, b)
    return list(zip(ours.values(), theirs.values()))


def _check_shape(name: str, ours: Tensor, key: str, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise HeadsError(f"`file`: {name} has shape {tuple(ours.shape)}, and {key} of the file {tuple(theirs.shape)}.")
