"""Learned and adaptive weights: TorchJD's scalarizers get the losses of each batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model, to_float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.ranks.exchange import mean_over_ranks
from fastai_heads.training.step import batch_losses, share_losses
from fastai_heads.training.strategies.base import LeafStrategy
from fastai_heads.training.strategies.bridge import Scalarizer, check_values
from fastai_heads.training.strategies.scalarizer_state import ScalarizerState, state_of

__all__ = ["Scalarized"]


class Scalarized(LeafStrategy):
    """One number of all losses by a scalarizer of TorchJD: `UW`, `DWA`, `FAMO`, `IMTLL`, `GeometricMean`, `STCH`, …

    Its parameters train with the heads and are saved with them. It gets each loss times its `loss_weight`. A loss that
    is absent from a batch is left out. `DWA` takes a step after every epoch. `FAMO` takes a step after every training
    step, with the new losses of the same batch, which costs one more forward pass."""

    fields = ("scalarizer",)

    def __init__(
        self,
        scalarizer: Scalarizer,  # for as many losses as there are heads
    ):
        super().__init__()
        self.scalarizer = scalarizer
        self._state: ScalarizerState | None = None
        self._random: dict[str, Any] = {}

    def check(self, heads: BoundHeads) -> None:
        check_values(self.scalarizer, len(heads))

    def module(self, heads: BoundHeads) -> nn.Module:
        self._state = state_of(self.scalarizer, len(heads))
        return self._state

    def before_fit(self, learn: Learner) -> None:
        self._state.start(next(learn.model.parameters()).detach())

    def predict(self, learn: Learner) -> Any:
        if self._state.needs_again:
            self._random = _random_state()
        return super().predict(learn)

    def combine(self, losses: dict[str, Tensor]) -> Tensor:
        return self._state.value(torch.stack(list(losses.values())), [self._names.index(name) for name in losses])

    def nothing(self, losses: Tensor) -> Tensor:
        """Make a number that also depends on the scalarizer's parameters: in distributed training each waits for a
        gradient."""
        return losses.sum() + sum(param.sum() * 0 for param in self._state.parameters())

    def backward(self, learn: Learner) -> None:
        """Go back once: through the scalarizer to its parameters, and through every loss. Losses of absent heads have
        the factor 0."""
        slopes = self.coefficients(learn)
        losses = {name: loss for name, loss in self._losses.items() if loss.requires_grad}
        starts = [slopes[name].to(loss.dtype) for name, loss in losses.items()]
        torch.autograd.backward([learn.loss_grad, *losses.values()], [None, *starts])

    def after_step(self, learn: Learner) -> None:
        self._state.after_step(lambda: self._again(learn))

    def after_train(self, learn: Learner) -> None:
        self._state.after_train()

    def _again(self, learn: Learner) -> tuple[Tensor, list[int]]:
        "Compute the losses of the batch after the step, with the same dropout. Statistics of batch norms do not move."
        mixed, model = getattr(learn, "mixed_precision", None), get_model(learn.model)
        with torch.no_grad(), _same_random(self._random), _still_norms(model):
            with nullcontext() if mixed is None else mixed.autocast:
                preds = model(*learn.xb)
                losses = batch_losses(learn.loss_func, preds if mixed is None else to_float(preds), learn.yb)
            losses = torch.stack(share_losses(learn, losses))
        mean_over_ranks([losses])
        places = [place for place, name in enumerate(learn.heads.names) if name in self._present]
        weights = losses.new_tensor([learn.heads[learn.heads.names[p]].loss_weight for p in places])
        return losses[places] * weights, places

    @property
    def label(self) -> str:
        return type(self.scalarizer).__name__

    def __repr__(self) -> str:
        return f"Scalarized({self.scalarizer!r})"


def _random_state() -> dict[str, Any]:
    "Read torch's random state, on the CPU and on every GPU."
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "gpus": gpus}


@contextmanager
def _same_random(state: dict[str, Any]) -> Iterator[None]:
    "Let torch draw from that random state again. Afterwards its present state is restored."
    with torch.random.fork_rng(range(len(state["gpus"]))):
        torch.set_rng_state(state["cpu"])
        for gpu, there in enumerate(state["gpus"]):
            torch.cuda.set_rng_state(there, gpu)
        yield


@contextmanager
def _still_norms(model: nn.Module) -> Iterator[None]:
    "Let batch norms use each batch's own statistics, as in training, and keep none of them."
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
