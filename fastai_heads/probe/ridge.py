"""Ridge regression of many targets on one set of features, with every answer in closed form from one decomposition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["STRENGTHS", "Fitted", "Ridge"]

STRENGTHS = torch.logspace(-4, 3, 15, dtype=torch.float64)
_NOTHING = 1e-10  # of the largest eigenvalue: a direction that the features do not have


@dataclass(frozen=True)
class Fitted:
    "Ridge regressions of some columns, and what they say of items that they were not fitted on."

    strengths: Tensor  # (k,) the strength of every column
    left_out: Tensor  # (n, k) the prediction of each item by a regression without it
    weights: tuple[Tensor, ...]  # (d, k) for each block of features, as they are given
    bias: Tensor  # (k,)


class Ridge:
    """Ridge regression on standardised features, the intercept without penalty. Blocks of features count alike, however
    wide they are.

    One decomposition serves all columns and strengths. Predictions of what is left out, an item or a fold, are exact:
    their residuals are (I - H)⁻¹ times those of the fit, H being their part of its hat matrix. Scikit-learn's `RidgeCV`
    gives the same for an item, decomposes anew for every call, and leaves no folds out."""

    def __init__(
        self,
        blocks: Sequence[Tensor],  # (n, d) each
    ):
        self.means = [x.double().mean(0) for x in blocks]
        spread = [x.double().std(0, correction=0) for x in blocks]
        self.scales = [torch.where(s > 0, 1 / s, 0.0) / max(1, len(s)) ** 0.5 for s in spread]
        self.x = torch.cat([(x.double() - m) * s for x, m, s in zip(blocks, self.means, self.scales)], 1)
        wide = self.x.shape[1] > len(self.x)
        values, vectors = torch.linalg.eigh(self.x @ self.x.T if wide else self.x.T @ self.x)
        kept = values > _NOTHING * values.max().clamp(min=1e-300)
        self.values = values[kept]
        vectors = vectors[:, kept]
        self.basis = vectors if wide else self.x @ vectors / self.values.sqrt()  # (n, r)

    def fit(
        self,
        y: Tensor,  # (n, k)
        each: bool = False,  # choose a strength for every column, instead of one for all
    ) -> Fitted:
        "Fit all columns, each with the strength that leaves the least squared error of items left out."
        y = y.double()
        centred = y - y.mean(0)
        inside = self.basis.T @ centred
        residuals = [
            (centred - self.basis @ (shrink[:, None] * inside)) / (1 - self._leverage(shrink))[:, None]
            for shrink in map(self._shrink, STRENGTHS)
        ]
        errors = torch.stack([r.square().mean(0) for r in residuals])
        best = errors.argmin(0) if each else errors.sum(1).argmin().expand(y.shape[1])
        left_out = y - torch.stack(residuals)[best, :, torch.arange(y.shape[1])].T
        strengths = STRENGTHS[best]
        weights = self.x.T @ (self.basis @ (inside / (self.values[:, None] + strengths)))
        parts = [w * s[:, None] for w, s in zip(weights.split([len(s) for s in self.scales]), self.scales)]
        bias = y.mean(0) - sum(m @ w for m, w in zip(self.means, parts))
        return Fitted(strengths, left_out, tuple(parts), bias)

    def leave_out(
        self,
        y: Tensor,  # (n, k)
        folds: Tensor,  # (n,) the fold of each item
        strengths: Tensor,  # (k,)
    ) -> Tensor:  # (n, k)
        "Predict every item by a regression without all items of its fold."
        y = y.double()
        centred = y - y.mean(0)
        inside = self.basis.T @ centred
        found = torch.empty_like(y)
        for strength in strengths.unique():
            columns, shrink = strengths == strength, self._shrink(strength)
            residual = centred[:, columns] - self.basis @ (shrink[:, None] * inside[:, columns])
            for fold in folds.unique():
                rows = folds == fold
                part = self.basis[rows]
                hat = part @ (shrink[:, None] * part.T) + 1 / len(y)
                away = torch.linalg.solve(torch.eye(len(part), dtype=hat.dtype) - hat, residual[rows])
                found[rows.nonzero(), columns.nonzero().T] = y[rows][:, columns] - away
        return found

    def _shrink(self, strength: Tensor) -> Tensor:
        return self.values / (self.values + strength)

    def _leverage(self, shrink: Tensor) -> Tensor:
        "Give the diagonal of the hat matrix, the intercept's share in it."
        return self.basis.square() @ shrink + 1 / len(self.basis)
