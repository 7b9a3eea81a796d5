"""What was seen of one fit: how the losses' gradients stood to one another, and the weights of the heads."""

from collections.abc import Sequence

import numpy as np

from fastai_heads.errors import HeadsError
from fastai_heads.training.affinity import group_heads

__all__ = ["ConflictRecord", "step_shares"]


class ConflictRecord:
    "What was seen of one fit. In every array the heads stand in the order of `heads`; NaN is what was not there."

    def __init__(
        self,
        heads: Sequence[str],  # their names, K of them
    ):
        self.heads = tuple(heads)
        self.steps: list[int] = []  # the training batches that were looked at, counted from 0
        self.weight_steps: list[int] = []  # the training batches after which the optimizer stepped
        self._products: list[np.ndarray] = []
        self._shares: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    @property
    def norms(self) -> np.ndarray:  # (n, K)
        "How long each loss's gradient was, not weighted."
        return np.sqrt(np.diagonal(self._stacked(self._products, 2), axis1=1, axis2=2))

    @property
    def cosines(self) -> np.ndarray:  # (n, K, K)
        "Of the angle between the gradients of every two losses: below 0 they are in conflict."
        norms = self.norms
        products, lengths = self._stacked(self._products, 2), norms[:, :, None] * norms[:, None, :]
        return np.clip(np.divide(products, lengths, out=np.full_like(lengths, np.nan), where=lengths > 0), -1, 1)

    @property
    def affinity(self) -> np.ndarray:  # (K, K)
        """How much a step for the row's head lowers the loss of the column's, as a part of that loss and for a learning
        rate of 1: the mean of `<g_i, g_j> / L_j`. Below 0 the row's head harms the column's. It is the first order of
        the affinity of Fifty et al. 2021, eq. 1, `1 - L_j(after a step for i) / L_j`, and needs no further pass."""
        products, losses = self._stacked(self._products, 2), self._stacked(self._losses, 1)[:, None, :]
        each = np.divide(products, losses, out=np.full_like(products, np.nan), where=losses > 0)
        there = ~np.isnan(each)
        counts = there.sum(0)
        sums = np.where(there, each, 0).sum(0)
        return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)

    def groups(
        self,
        at_most: int | None = None,  # networks; None: as many as there are heads
    ) -> list[tuple[str, ...]]:  # names of heads
        """Suggest which heads share a network, from their affinity. It is a suggestion from one run: compare by
        `compare_to_single` before you act on it."""
        whole = isinstance(at_most, int) and not isinstance(at_most, bool) and at_most >= 1
        if at_most is not None and not whole:
            raise HeadsError(f"`at_most` is a number of networks, at least 1, or None, found {at_most!r}.")
        if not self.steps:
            raise HeadsError("`groups` needs a fit in which a ConflictRecorder saw several heads share parameters.")
        return [tuple(self.heads[i] for i in group) for group in group_heads(self.affinity, at_most)]

    @property
    def shares(self) -> np.ndarray:  # (n, K)
        """Each head's share of the step of the shared parameters: `w_k <g_k, d> / <d, d>`. Here `g` are the
        gradients, `w` the strategy's weights, and `d` is the sum of all `w_k g_k`, which the optimizer gets. They
        add up to 1; below 0 the step goes against a head. With `Disjoint`, the same of the steps of the K
        optimizers, whose sum is the step. NaN where an aggregator has no weights."""
        return self._stacked(self._shares, 1)

    @property
    def weights(self) -> np.ndarray:  # (steps, K)
        "`learn.strategy.weights` after every step of the optimizer."
        return self._stacked(self._weights, 1)

    def _stacked(self, parts: list[np.ndarray], ndim: int) -> np.ndarray:
        return np.stack(parts) if parts else np.empty((0, *[len(self.heads)] * ndim))

    def add_weights(
        self,
        step: int,  # which training batch
        weights: dict[str, float],  # head → weight; a head may be missing
    ) -> None:
        "Add the weights of one step."
        self.weight_steps.append(step)
        self._weights.append(np.array([weights.get(name, np.nan) for name in self.heads]))

    def add(
        self,
        step: int,  # which training batch
        products: np.ndarray,  # (K, K) of the gradients
        shares: np.ndarray,  # (K,)
        losses: np.ndarray | None = None,  # (K,)
    ) -> None:
        "Add what was seen in one batch."
        self._losses.append(np.full(len(self.heads), np.nan) if losses is None else losses)
        self.steps.append(step)
        self._products.append(products)
        self._shares.append(shares)


def step_shares(
    products: np.ndarray,  # (K, K) of the gradients, NaN for heads that have none
    weights: np.ndarray | float = 1.0,  # (K,) with which they go into the step
) -> np.ndarray:  # (K,) NaN for those heads, and where there is no step
    """Say how far each head has its way: its weighted gradient along the step, which is their sum, as a share of the
    step."""
    there = ~np.isnan(np.diagonal(products))
    factors = np.where(there, weights, 0.0)
    along = factors * (np.nan_to_num(products) @ factors)
    whole = along.sum()
    return np.where(there, along / whole, np.nan) if whole > 0 else np.full(len(there), np.nan)
