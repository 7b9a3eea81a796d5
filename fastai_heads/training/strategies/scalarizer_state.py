"""What a scalarizer learns or remembers: a module beside the heads, saved with them, and stepped when it should
be."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastai_heads.training.strategies.bridge import DWA, FAMO, Scalarizer, move_to, scalarize

__all__ = ["ScalarizerState", "state_of"]

Again = Callable[[], tuple[Tensor, list[int]]]
"Gives the losses of the same batch once more, and their places among all."


class ScalarizerState(nn.Module):
    "A scalarizer whose parameters, if any, train as the heads do."

    needs_again = False  # whether it asks for the losses after a step

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
        "Prepare a fit: what is no parameter has to be moved to the device by hand."
        move_to(self.scalarizer, like)

    def value(
        self,
        values: Tensor,  # (len(places),) losses with a graph
        places: Sequence[int],  # which of all they are
    ) -> Tensor:  # a scalar
        "Make one number of the losses that are there."
        return scalarize(self.scalarizer, values, places, self.n)

    def after_step(
        self,
        again: Again,
    ) -> None:
        "Take note of a step of the optimizer."

    def after_train(self) -> None:
        "Take note of the end of an epoch's training."


class DWAState(ScalarizerState):
    """`DWA` by the average loss of every head over the batches in which it is present. An epoch without it leaves its
    average where it was. The averages of the last two epochs are kept as buffers."""

    def __init__(self, scalarizer: DWA, n: int):
        super().__init__(scalarizer, n)
        for name, rows in (("older", 1.0), ("newer", 1.0), ("sums", 0.0), ("counts", 0.0)):
            self.register_buffer(name, torch.full((n,), rows, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def start(self, like: Tensor) -> None:
        "Forget what an epoch that was broken off has counted."
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
    """`FAMO`, whose logits have an optimizer of their own: they are kept as buffers, out of the learner's optimizer,
    with that optimizer's state. A head that is absent from a batch keeps its logit."""

    needs_again = True

    def __init__(self, scalarizer: FAMO, n: int):
        nn.Module.__init__(self)
        self._famo, self.n = (scalarizer,), n  # in a tuple: its logits are no parameters of the heads
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
        "Read logits and their optimizer's state from where TorchJD has them."
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
    "Make the module that holds what a scalarizer learns or remembers."
    return next((made for kind, made in _KINDS.items() if isinstance(scalarizer, kind)), ScalarizerState)(scalarizer, n)
