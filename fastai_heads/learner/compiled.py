"""A learner whose network runs under `torch.compile`."""

import warnings
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model

from fastai_heads.errors import HeadsError, HeadsWarning, first_line
from fastai_heads.training.strategies.rows import RowsStrategy

__all__ = ["compile_learner"]


def compile_learner(
    learn: Learner,  # a `MultiHeadLearner`
    **options: Any,  # of `torch.compile`: `backend`, `mode`, `dynamic`, …
) -> Learner:  # the same
    """Let body and heads run under `torch.compile`, in training and in prediction.

    The first batch of each shape takes long, as it is compiled then. Names in files stay what they are, and what is
    exported is the plain network. Where there is no compiler, nothing changes and a `HeadsWarning` says why. Raises
    `HeadsError` under a strategy that goes back once for each head."""
    if isinstance(learn.strategy, RowsStrategy):
        raise HeadsError(
            f"`compile`: {learn.strategy!r} goes back through the network once for each head, and a compiled network "
            "allows that only once. Set the sum or a scalarizer first, as in `learn.strategy = None`."
        )
    try:
        _try(next(learn.model.parameters()).device, options)
    except (TypeError, ValueError) as error:
        raise HeadsError(f"`compile` takes the options of `torch.compile`: {first_line(error)}.") from error
    except Exception as error:
        text = f"`compile` has no compiler here, and the network runs as before: {first_line(error)}."
        warnings.warn(text, HeadsWarning, stacklevel=2)
        return learn
    get_model(learn.model).compile(**options)
    return learn


def _try(device: torch.device, options: dict[str, Any]) -> None:
    "Compile a small function, which needs all that a network needs."
    found = torch.compile(lambda x: (x * 2).relu(), **options)(torch.ones(3, device=device))
    if found.tolist() != [2.0] * 3:
        raise RuntimeError("what was compiled computes something else")
