"""Records whether the heads pull what they share in the same direction, and how far each has its way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import need_heads
from fastai_heads.training.conflict_record import ConflictRecord, step_shares
from fastai_heads.training.disjoint_optimizer import DisjointOptimizer
from fastai_heads.training.gradients import Row, add_rows, gramian, loss_gradients
from fastai_heads.training.ranks.exchange import mean_over_ranks, sum_over_ranks
from fastai_heads.training.step import count_labels, share_losses
from fastai_heads.training.strategies.rows import is_compiled, loss_scale, trainable

__all__ = ["ConflictRecorder"]


class ConflictRecorder(Callback):
    """Records how the gradients of the losses stand to one another, over the parameters that more than one loss
    reaches: in one of `every` training batches, at the price of a backward pass for each head. The heads' weights are
    recorded at every step. Training is not disturbed: the network comes out the same to the bit.

    `learn.plot_conflict()` and `learn.plot_weights()` draw the record of the last fit, `learn.conflict`, which holds
    `cosines`, `norms`, `shares` and `weights` as arrays. As long as no parameter that trains is shared (a frozen body
    without batch norm), only the weights are recorded."""

    order, run_valid = 60, False

    def __init__(
        self,
        every: int = 10,  # training batches from one that is looked at to the next
    ):
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise HeadsError(f"`every` of ConflictRecorder is a whole number of at least 1, found {every!r}.")
        self.every, self._starts = every, False

    def before_fit(self) -> None:
        "Ask for a new record, once there is a batch to train on. While a learning rate is sought nothing is recorded."
        need_heads(self)
        self.run, self._starts = not hasattr(self.learn, "lr_finder"), True
        if self.run and is_compiled(self.model):
            raise HeadsError(
                "`cbs`: ConflictRecorder goes back through the network once for each head, and a network compiled by "
                "`torch.compile` can be gone through once. Record without compiling."
            )

    def before_batch(self) -> None:
        "Start a record at the first batch of a fit."
        if self._starts:
            self._starts, self._seen, self._shared, self._moves = False, {}, [], {}
            self.learn.conflict = ConflictRecord(self.learn.heads.names)

    def before_backward(self) -> None:
        "Look at the gradients: the losses are there, and so is the way back through the network."
        if self.train_iter % self.every:
            return
        with _keep_buffers(get_model(self.model)):
            names, rows, self._shared = _shared_rows(self.learn)
            losses = _mean_losses(self.learn, names)
        products = gramian(rows) / loss_scale(self.learn) ** 2
        if not self._shared or not names or not products.isfinite().all():  # an overflow in half precision: no step
            return
        self._seen[self.train_iter] = self._of_all(names, products), losses
        if isinstance(self.opt, DisjointOptimizer):
            self.opt.watch(self._watch_step)

    def after_step(self) -> None:
        "Record the batches of the step: its weights are known now, and with them the shares of the heads."
        record, weights = self.learn.conflict, self.learn.strategy.weights
        record.add_weights(self.train_iter, weights)
        given = np.array([weights.get(name, 0.0) for name in record.heads])
        moved = self._of_all(list(self._moves), gramian(list(self._moves.values()))) if self._moves else None
        for batch, (products, losses) in self._seen.items():
            record.add(batch, products, step_shares(products, given) if moved is None else step_shares(moved), losses)
        self._seen, self._moves = {}, {}
        if isinstance(self.opt, DisjointOptimizer):
            self.opt.watch()

    def _of_all(self, names: Sequence[str], products: Tensor) -> np.ndarray:
        "Put the products of some heads' rows at their places among those of all, with NaN elsewhere."
        whole = np.full([len(self.learn.heads)] * 2, np.nan)
        places = [self.learn.heads.names.index(name) for name in names]
        whole[np.ix_(places, places)] = products.cpu().numpy()
        return whole

    @contextmanager
    def _watch_step(self, name: str) -> Iterator[None]:
        "Note how far the optimizer of one head moves what is shared."
        before = [param.detach().clone() for param in self._shared]
        yield
        self._moves[name] = [param.detach() - old for param, old in zip(self._shared, before)]


@contextmanager
def _keep_buffers(model: nn.Module) -> Iterator[None]:
    "Keep the statistics of batch norms as they are: with gradient checkpointing they would move on the way back."
    before = [buffer.detach().clone() for buffer in model.buffers()]
    yield
    for buffer, old in zip(model.buffers(), before):
        buffer.data.copy_(old)  # `data`, as autograd is not to take it for a change of what it has saved


def _shared_rows(learn: Learner) -> tuple[list[str], list[Row], list[nn.Parameter]]:
    """Give the heads with a label in this batch, the gradients of their losses, and the shared parameters that these
    are of."""
    losses = dict(zip(learn.heads.names, share_losses(learn, learn.head_losses)))
    params = trainable(learn.model)
    rows = _whole_rows(losses, loss_scale(learn), params, learn.strategy.cuts)
    shared = [i for i in range(len(params)) if sum(row[i] is not None for row in rows.values()) > 1]
    counts = sum_over_ranks(count_labels(learn.loss_func, learn.yb)).tolist()
    ours = {name: [row[i] for i in shared] for (name, row), count in zip(rows.items(), counts) if count}
    mean_over_ranks([grad for row in ours.values() for grad in row if grad is not None])
    return list(ours), list(ours.values()), [params[i] for i in shared]


def _mean_losses(
    learn: Learner,
    names: Sequence[str],  # of the heads with a label in this batch
) -> np.ndarray:  # (K,) NaN for the others
    "Give the heads' losses of this batch, over all ranks."
    losses = torch.stack([loss.detach().double() for loss in share_losses(learn, learn.head_losses)])
    mean_over_ranks([losses])
    there = [name in names for name in learn.heads.names]
    return np.where(there, losses.cpu().numpy(), np.nan)


def _whole_rows(
    losses: dict[str, Tensor],  # head → its loss
    scale: float,  # of half precision
    params: list[nn.Parameter],  # that train
    cuts: list[tuple[Tensor, Tensor]],  # (a tap as the body gives it, as the heads read it) where a strategy cuts there
) -> dict[str, Row]:  # head → its gradient, also through the cuts; the graph is kept
    rows = loss_gradients(losses, dict.fromkeys(losses, scale), [*params, *(read for _, read in cuts)], keep=True)
    if not cuts:
        return rows
    n, whole = len(params), {}
    for name, row in rows.items():
        ends = [(tap, grad) for (tap, _), grad in zip(cuts, row[n:]) if grad is not None]
        taps, grads = zip(*ends) if ends else ((), ())
        behind = torch.autograd.grad(taps, params, grads, retain_graph=True, allow_unused=True) if ends else None
        whole[name] = add_rows(behind, row[:n])
    return whole
