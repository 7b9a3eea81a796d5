"""The base of strategies that read the gradient of each loss. It gathers the rows of a step, batch by batch."""

from collections.abc import Sequence
from typing import Any

from fastai.learner import Learner
from torch import Tensor, nn

from fastai_heads.errors import HeadsError
from fastai_heads.training.gradients import Row, add_rows, loss_gradients
from fastai_heads.training.ranks.exchange import mean_over_ranks
from fastai_heads.training.strategies.base import LeafStrategy

__all__ = ["RowsStrategy", "add_grad", "is_compiled", "loss_scale", "trainable"]


class RowsStrategy(LeafStrategy):
    """A strategy that has a row for each loss: its gradient over every parameter that trains. The rows of the batches
    of one step are added up, so that accumulated batches act as one large batch. A head that is absent from a batch
    adds nothing. A head that is absent from all batches of a step has no row."""

    def __init__(self):
        super().__init__()
        self._rows: dict[str, Row] = {}
        self._variables: list[nn.Parameter] = []
        self._reach: dict[str, frozenset[int]] = {}
        self._open = False  # true once this step has gradients

    def check_model(self, model: nn.Module) -> None:
        "Refuse a compiled network: it frees its memory after one backward pass."
        if is_compiled(model):
            raise HeadsError(
                f"`strategy`: {self!r} goes back through the network once for each head, and a network compiled by "
                "`torch.compile` allows that only once. Use the sum or a scalarizer, or do not compile."
            )

    def before_fit(self, learn: Learner) -> None:
        self._rows, self._variables, self._reach, self._open = {}, [], {}, False

    def predict(self, learn: Learner) -> Any:
        """Predict a training batch. `DistributedDataParallel` must not exchange gradients, as the rows are exchanged
        here."""
        if not hasattr(learn.model, "no_sync"):
            return super().predict(learn)
        with learn.model.no_sync():
            return super().predict(learn)

    def backward(self, learn: Learner) -> None:
        "Make a row for each loss that is present. Terms that callbacks have added to `loss_grad` go to the gradients."
        self.open_step(trainable(learn.model))
        for name, row in self.batch_rows(learn, self._variables).items():
            self._rows[name] = add_rows(self._rows.get(name), row)

    def clear(self, learn: Learner) -> None:
        "Clear the gradients after a step. What no row reaches has none in the next step, and stays where it is."
        learn.opt.zero_grad()

    def batch_rows(
        self,
        learn: Learner,
        variables: Sequence[Tensor],  # the tensors to differentiate by
    ) -> dict[str, Row]:
        "Make the rows of one batch. At the first row of a head, note the variables that it reaches."
        scales = self.coefficients(learn)
        learn.loss_grad.backward()
        asked = [n for n in self._losses if n in self._present or n not in self._reach]
        losses = {name: self._losses[name] for name in asked}
        rows = loss_gradients(losses, scales, variables)
        for name, row in rows.items():
            self._reach[name] = frozenset(i for i, grad in enumerate(row) if grad is not None)
        return {name: row for name, row in rows.items() if name in self._present}

    def reached_by_several(self) -> list[int]:
        "List the places of the variables that more than one loss reaches."
        counts: dict[int, int] = {}
        for reached in self._reach.values():
            for i in reached:
                counts[i] = counts.get(i, 0) + 1
        return sorted(i for i, n in counts.items() if n > 1)

    def take_rows(self) -> dict[str, Row]:
        "Take the rows of a step, averaged over all ranks. The next step starts without rows."
        rows, self._rows, self._open = self._rows, {}, False
        mean_over_ranks([grad for row in rows.values() for grad in row if grad is not None])
        return rows

    def open_step(
        self,
        params: list[nn.Parameter],  # the parameters that train
    ) -> None:
        """Open a step at its first batch, and clear all gradients. If other parameters train than before, forget what
        each loss reaches."""
        if self._open:
            return
        self._open = True
        if [id(p) for p in params] != [id(p) for p in self._variables]:
            self._variables, self._reach = params, {}
        for param in params:
            param.grad = None

    def __getstate__(self) -> dict[str, Any]:
        "Leave out the gradients of a step that was broken off."
        return {**super().__getstate__(), "_rows": {}}


def is_compiled(
    model: nn.Module,
) -> bool:
    "Tell whether a network, or a part of it, was compiled by `torch.compile`."
    return any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in model.modules())


def trainable(
    model: nn.Module,
) -> list[nn.Parameter]:
    "List the parameters that train."
    return [p for p in model.parameters() if p.requires_grad]


def add_grad(
    param: nn.Parameter,
    grad: Tensor,  # of its shape; it is not copied
) -> None:
    "Add a gradient to a parameter's own."
    param.grad = grad if param.grad is None else param.grad + grad


def loss_scale(
    learn: Learner,
) -> float:
    "Return the factor by which half precision multiplies the losses."
    scaler = getattr(learn, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()
