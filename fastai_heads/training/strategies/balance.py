"""Gradient balancing: TorchJD's aggregators on the gradients of all losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.gradients import Row, as_matrix, combine, gramian, split_like
from fastai_heads.training.ranks.exchange import from_first_rank, mean_over_ranks, sum_over_ranks, world
from fastai_heads.training.strategies.bridge import (
    Aggregator,
    aggregate,
    check_rows,
    classes_by_name,
    for_some,
    is_one_of,
    make,
    move_to,
    needs_every_head,
    row_weights,
)
from fastai_heads.training.strategies.rows import RowsStrategy, add_grad, loss_scale, trainable

__all__ = ["Balance"]

OVER = ("body", "taps")


class Balance(RowsStrategy):
    """Gradient balancing by an aggregator of TorchJD: `UPGrad`, `MGDA`, `PCGrad`, `CAGrad`, `NashMTL`, `AlignedMTL`,
    …

    With `over='body'` it sees the gradient of each (weighted) loss over every parameter that more than one loss
    reaches. The gradient is zero where a loss does not reach. Parameters that one loss alone reaches, such as those of
    its head, get that loss's own gradient. It costs a backward pass through the body for each head.

    With `over='taps'` it sees the gradients with respect to the taps of the body, and to shared trunks. One pass goes
    back through the body from there: this costs about as much as a plain sum. Accumulated batches are balanced one by
    one.

    A head without a label in a batch has no row. Source: `torchjd.autojac.mtl_backward`. The matrix of all rows, which
    that code builds, is not built where the K × K products of the rows are enough."""

    fields = ("aggregator", "over")

    def __init__(
        self,
        aggregator: Aggregator | str,  # or a class of it that can be made without arguments, or the class's name
        over: str = "body",  # 'body' or 'taps'
    ):
        super().__init__()
        _check_over(over)
        aggregator = classes_by_name().get(aggregator, aggregator) if isinstance(aggregator, str) else aggregator
        if not is_one_of(aggregator, Aggregator):
            names = [name for name, cls in classes_by_name().items() if is_one_of(cls, Aggregator)]
            near = did_you_mean(aggregator, names, n=1) if isinstance(aggregator, str) else ""
            raise HeadsError(
                "`aggregator` of Balance is one of torchjd.aggregation, such as `UPGrad()`, "
                f"found {aggregator!r}.{near}"
            )
        self.aggregator, self.over = aggregator, over
        self._some: dict[tuple[int, ...], Aggregator] = {}
        self._row_weights: dict[str, float] = {}
        self._taps: list[tuple[Tensor, Tensor]] = []  # the tap of the body, and the copy that the heads read

    def check(self, heads: BoundHeads) -> None:
        _check_over(self.over)
        self.aggregator = make(self.aggregator, len(heads))
        check_rows(self.aggregator, len(heads))
        partial = [name for name, head in heads.items() if head.target.partial]
        if partial and needs_every_head(self.aggregator):
            what = type(self.aggregator).__name__
            raise HeadsError(
                f"`strategy`: {what} needs a gradient of every head in every batch, and labels of "
                f"{', '.join(partial)} may be missing. UPGrad, MGDA or PCGrad do not need them."
            )
        if partial:
            check_rows(for_some(self.aggregator, [0], len(heads)), 1)

    @property
    def weights(self) -> dict[str, float]:
        "The aggregator's weights times the heads' own. They are NaN if an aggregator does not weight the gradients."
        slopes = super().weights
        return {name: slopes[name] * weight for name, weight in self._row_weights.items() if name in slopes}

    @property
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._taps)

    def before_fit(self, learn: Learner) -> None:
        super().before_fit(learn)
        self._some = {}
        move_to(self.aggregator, next(learn.model.parameters()).detach())

    def predict(self, learn: Learner) -> Any:
        if self.over == "body":
            return super().predict(learn)
        hook = get_model(learn.model)[1].register_forward_pre_hook(self._detach)
        try:
            return super().predict(learn)
        finally:
            hook.remove()

    def _detach(self, _heads: nn.Module, args: tuple[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor]]:
        """Give the heads copies of the taps. The copies are cut off from the body's graph. Each has a gradient of its
        own, also where one tap lies behind another."""
        taps = {name: tap for name, tap in args[0].items() if tap.requires_grad}
        self._taps = [(tap, tap.detach().requires_grad_()) for tap in taps.values()]
        return ({**args[0], **{name: read for name, (_, read) in zip(taps, self._taps)}},)

    def backward(self, learn: Learner) -> None:
        if self.over == "body":
            super().backward(learn)
            return
        self.open_step(trainable(learn.model))
        params = trainable(get_model(learn.model)[1])
        n = len(self._taps)
        variables = [read for _, read in self._taps] + params
        rows = self.batch_rows(learn, variables)
        mean_over_ranks([grad for row in rows.values() for grad in row[n:] if grad is not None])
        grads = self._balance(rows, variables, learn, n)
        _add(params, grads[n:])
        ends = [(tap, grad) for (tap, _), grad in zip(self._taps, grads[:n]) if grad is not None]
        self._taps = []
        if ends:
            torch.autograd.backward(*zip(*ends))

    def before_step(self, learn: Learner) -> None:
        rows = self.take_rows()
        if self.over == "taps":
            mean_over_ranks([p.grad for p in self._variables if p.grad is not None])
        elif rows:
            _add(self._variables, self._balance(rows, self._variables, learn))

    def shared(self, n_taps: int) -> list[int]:
        """List the variables that more than one loss reaches. The taps belong together, as they have one body behind
        them: all of them are listed, or none."""
        reached = [name for name, reach in self._reach.items() if any(i < n_taps for i in reach)]
        taps = range(n_taps) if len(reached) > 1 else ()
        return sorted({*taps, *self.reached_by_several()})

    def _balance(
        self,
        rows: dict[str, Row],
        variables: Sequence[Tensor],
        learn: Learner,
        n_taps: int = 0,  # so many of the variables, the first ones, are taps of this rank's own images
    ) -> Row:
        "Make one gradient per variable. The aggregator makes those that losses share; the others are one loss's own."
        shared = self.shared(n_taps)
        alone = set(range(len(variables))) - set(shared)
        total = combine(
            [[g if i in alone else None for i, g in enumerate(row)] for row in rows.values()], [1.0] * len(rows)
        )
        if not shared:
            self._row_weights = dict.fromkeys(rows, 1.0)
            return total
        ours = {name: [row[i] for i in shared] for name, row in rows.items()}
        n_local = sum(i < n_taps for i in shared)
        for i, grad in zip(shared, self._of_shared(ours, [variables[i] for i in shared], learn, n_local)):
            total[i] = grad
        return total

    def _of_shared(self, rows: dict[str, Row], variables: Sequence[Tensor], learn: Learner, n_local: int) -> Row:
        """Ask the aggregator for one row. It sees the gradients without the loss scale of half precision. If a gradient
        is not finite, or all are zero, the rows are added up instead: the scaler then sees what is not finite."""
        listed, scale = list(rows.values()), loss_scale(learn)
        products = _joint_gramian(listed, n_local) / scale**2
        if not products.isfinite().all() or not products.any():
            self._row_weights = dict.fromkeys(rows, 1.0)
            return combine(listed, [1.0] * len(rows))
        aggregator = self._aggregator([learn.heads.names.index(name) for name in rows], len(learn.heads))
        with torch.no_grad():
            weights = row_weights(aggregator, lambda: products, lambda: as_matrix(listed, variables) / scale)
            if weights is None:
                self._row_weights = dict.fromkeys(rows, float("nan"))
                row = split_like(aggregate(aggregator, as_matrix(listed, variables) / scale) * scale, variables)
                return [*row[:n_local], *map(from_first_rank, row[n_local:])]
        numbers = from_first_rank(weights).tolist()
        self._row_weights = dict(zip(rows, numbers))
        return combine(listed, numbers, used_up=True)

    def _aggregator(self, places: list[int], n: int) -> Aggregator:
        """Return the aggregator. For a batch without some heads, return a copy for the other heads, which has a state
        of its own."""
        if len(places) == n:
            return self.aggregator
        key = tuple(places)
        if key not in self._some:
            self._some[key] = for_some(self.aggregator, places, n)
        return self._some[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_taps": []}

    @property
    def label(self) -> str:
        return f"{type(self.aggregator).__name__} over {self.over}"

    def __repr__(self) -> str:
        return f"Balance({self.aggregator!r}, over={self.over!r})"


def _check_over(over: Any) -> None:
    if over not in OVER:
        raise HeadsError(f"`over` of Balance is 'body' or 'taps', found {over!r}.")


def _joint_gramian(rows: Sequence[Row], n_local: int) -> Tensor:
    """Multiply every two rows, over all ranks. At the taps every rank has other images, so that the products of these
    parts are added up over the ranks."""
    if world() == 1 or not n_local:
        return gramian(rows)
    local = sum_over_ranks(gramian([row[:n_local] for row in rows])) / world() ** 2
    return local + gramian([row[n_local:] for row in rows])


def _add(params: Sequence[nn.Parameter], grads: Row) -> None:
    for param, grad in zip(params, grads):
        if grad is not None:
            add_grad(param, grad)
