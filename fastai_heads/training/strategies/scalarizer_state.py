"""The state of a scalarizer: the parameters that it learns and the losses that it remembers. It is a module that is
saved with the heads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastai_heads.training.strategies.bridge import DWA, FAMO, Scalarizer, move_to, scalarize

__all__ = ["ScalarizerState", "state_of"]

Again = Callable[[], tuple[Tensor, list[int]]]
"A function that computes the losses of the same batch once more. It gives them and their places among all losses."


class ScalarizerState(nn.Module):
    "The state of most scalarizers. Their parameters, if they have any, train as those of the heads."

    needs_again = False  # true if it needs the losses after a step

    def __init__(
        self,
        scalarizer: Scalarizer,
        n: int,  # losses in all
    ):
        super().__init__()
        self.scalarizer, self.n = scalarizer, n

    def start(
        self,
        like: Tensor,  # on the device, and of the type, of the losses
    ) -> None:
        "Prepare a fit: move tensors that are not parameters to the device."
        move_to(self.scalarizer, like)

    def value(
        self,
        values: Tensor,  # (len(places),) losses with a graph
        places: Sequence[int],  # their places among all losses
    ) -> Tensor:  # a scalar
        "Make one number of the losses that are there."
        return scalarize(self.scalarizer, values, places, self.n)

    def after_step(
        self,
        again: Again,
    ) -> None:
        "Take note that the optimizer has made a step."

    def after_train(self) -> None:
        "Take note that the training of an epoch is over."


class DWAState(ScalarizerState):
    """The state of `DWA`: the average loss of every head over the batches in which it is present. An epoch without a
    head leaves its average as it was. The averages of the last two epochs are buffers."""

    def __init__(self, scalarizer: DWA, n: int):
        super().__init__(scalarizer, n)
        for name, rows in (("older", 1.0), ("newer", 1.0), ("sums", 0.0), ("counts", 0.0)):
            self.register_buffer(name, torch.full((n,), rows, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def start(self, like: Tensor) -> None:
        "Forget the counts of an epoch that was stopped early."
        self.sums.zero_()
        self.counts.zero_()

    def value(self, values: Tensor, places: Sequence[int]) -> Tensor:
        at = torch.tensor(places, device=values.device)
        self.sums[at] += values.detach().to(self.sums.dtype)
        self.counts[at] += 1
        return self._with_history(at, values.dtype)(values)

    def _with_history(self, at: Tensor, dtype: torch.dtype) -> DWA:
        "Make a `DWA` that has seen the last two epochs of some losses."
        dwa = DWA(self.scalarizer.temperature)
        if self.epochs >= 2:
            for averages in (self.older, self.newer):
                dwa(averages[at].to(dtype))
                dwa.step()
        return dwa

    def after_train(self) -> None:
        seen = self.counts > 0
        average = torch.where(seen, self.sums / self.counts.clamp(min=1), self.newer)
        self.older.copy_(self.newer)
        self.newer.copy_(average)
        self.epochs += bool(seen.any())
        self.sums.zero_()
        self.counts.zero_()


class FAMOState(ScalarizerState):
    """The state of `FAMO`. Its logits have an optimizer of their own. The logits and the state of that optimizer are
    buffers here, so that the learner's optimizer leaves them alone. A head that is absent from a batch keeps its
    logit."""

    needs_again = True

    def __init__(self, scalarizer: FAMO, n: int):
        nn.Module.__init__(self)
        self._famo, self.n = (scalarizer,), n  # in a tuple, so that its logits are not parameters of the heads
        self._seen: tuple[Tensor, list[int]] | None = None
        for name in ("logits", "first", "second"):
            self.register_buffer(name, torch.zeros_like(scalarizer._w, requires_grad=False))
        self.register_buffer("steps", torch.zeros(()))
        self._read()

    def start(self, like: Tensor) -> None:
        famo = self._famo[0].to(like.device)
        famo._w.data.copy_(self.logits)
        famo._optimizer = torch.optim.Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay)
        if self.steps:
            moments = {"exp_avg": self.first.to(famo._w.dtype), "exp_avg_sq": self.second.to(famo._w.dtype)}
            state = {name: moment.clone() for name, moment in moments.items()}
            famo._optimizer.state[famo._w] = state | {"step": self.steps.cpu().clone()}

    def value(self, values: Tensor, places: Sequence[int]) -> Tensor:
        self._seen = values.detach(), list(places)
        return scalarize(self._famo[0], values, places, self.n)

    def after_step(self, again: Again) -> None:
        if self._seen is None:
            return
        famo, (before, places) = self._famo[0], self._seen
        after, _ = again()
        logits = famo._w.detach().clone()
        with torch.no_grad():
            famo(self._whole(before, places))
        famo.update(self._whole(after, places))
        absent = [k for k in range(self.n) if k not in places]
        famo._w.data[absent] = logits[absent]
        self._seen = None
        self._read()

    def _whole(self, values: Tensor, places: list[int]) -> Tensor:
        "List all losses. Those of absent heads are one above their bound, so that the step does not change them."
        whole = self._famo[0].min_losses.to(values) + 1
        whole[places] = values
        return whole

    def _read(self) -> None:
        "Copy the logits and their optimizer's state from TorchJD's object."
        famo = self._famo[0]
        self.logits.copy_(famo._w.detach())
        state = famo._optimizer.state[famo._w] if famo._optimizer is not None else {}
        if state:
            self.first.copy_(state["exp_avg"])
            self.second.copy_(state["exp_avg_sq"])
            self.steps.copy_(state["step"])


_KINDS: dict[type, type[ScalarizerState]] = {DWA: DWAState, FAMO: FAMOState}


def state_of(
    scalarizer: Scalarizer,
    n: int,  # losses in all
) -> ScalarizerState:
    "Make the module that holds the state of a scalarizer."
    return next((made for kind, made in _KINDS.items() if isinstance(scalarizer, kind)), ScalarizerState)(scalarizer, n)
