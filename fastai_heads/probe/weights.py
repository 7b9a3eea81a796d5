"""How hard each head pulls at what it shares with others, and the loss weights that make all pull alike."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastai_heads.archs.records import INPUT
from fastai_heads.model import MultiHeadModel
from fastai_heads.training.step import CombinedLoss

__all__ = ["HOW", "WeightSuggestion", "measure_pulls"]

HOW = {
    "gradients": "norm of the loss's gradient where the head reads the body",
    "losses": "loss",
}


@dataclass(frozen=True)
class WeightSuggestion:
    "Loss weights under which all heads pull alike. It prints as a table, and as HTML in Jupyter."

    how: str  # 'gradients' or 'losses'
    pulls: Mapping[str, float]  # head → what was measured, the mean over the batches
    present: Mapping[str, float]  # head → its loss weight as it is
    left_out: Mapping[str, str]  # head → why nothing was measured; its weight stays
    batches: int  # how many were looked at

    @property
    def weights(self) -> dict[str, float]:
        "The suggested weight of each head: one over what was measured, on average 1."
        inverse = {name: 1 / pull for name, pull in self.pulls.items()}
        mean = sum(inverse.values()) / len(inverse)
        return {name: value / mean for name, value in inverse.items()}

    def plot(self) -> Figure:
        "Draw what was measured and what is suggested, a bar for each head."
        fig, axes = plt.subplots(1, 2, figsize=(8, 0.6 + 0.4 * len(self.pulls)), sharey=True, layout="constrained")
        for ax, values, title in zip(axes, (self.pulls, self.weights), (HOW[self.how], "suggested loss weight")):
            bars = ax.barh(list(values), list(values.values()), color="#4c78a8")
            ax.bar_label(bars, fmt="%.3g", padding=3)
            ax.set_title(title, fontsize=10)
            ax.margins(x=0.2)
        axes[0].invert_yaxis()
        return fig

    def _rows(self) -> list[tuple[str, ...]]:
        first = ("head", HOW[self.how], "weight", "suggested")
        weights = self.weights
        found = [(n, f"{v:.3g}", f"{self.present[n]:g}", f"{weights[n]:.3g}") for n, v in self.pulls.items()]
        return [first, *found, *((n, why, f"{self.present[n]:g}", "") for n, why in self.left_out.items())]

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*lines, f"Means over {self.batches} batches of the training set."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *rows = self._rows()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in first)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        note = f"<p>Means over {self.batches} batches of the training set.</p>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def measure_pulls(
    model: MultiHeadModel,  # in training mode
    loss_func: CombinedLoss,  # with its heads
    batches: Iterable[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],  # inputs and targets
    how: str,  # a key of `HOW`
) -> dict[str, list[float]]:  # head → a value for each batch in which it has a label
    """Measure what each head's loss is, or how long its gradient is at the taps that it reads.

    Source: Chen et al. 2018, "GradNorm", sec. 3, which holds these norms alike while training."""
    found: dict[str, list[float]] = {name: [] for name in loss_func.heads}
    for inputs, targets in batches:
        with torch.no_grad():
            taps = model.body(*inputs)
        cut = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in taps.items()}
        losses = loss_func.losses(model.heads(cut), targets)
        ends = [t for name, t in cut.items() if t.requires_grad and name.rpartition(".")[2] != INPUT]
        for (name, head), loss in zip(loss_func.heads.items(), losses):
            if not head.labelled(targets[head.target.index]).any():
                continue
            if how == "losses":
                found[name].append(float(loss.detach()))
                continue
            grads = torch.autograd.grad(loss, ends, retain_graph=True, allow_unused=True)
            squares = [g.detach().double().square().sum() for g in grads if g is not None]
            found[name].append(float(torch.stack(squares).sum().sqrt()) if squares else 0.0)
    return found
