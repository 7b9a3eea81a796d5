"""Drawings of the conflict between the heads, and of their weights over time."""

from collections.abc import Sequence
from itertools import combinations
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastai_heads.errors import HeadsError
from fastai_heads.training.conflict_record import ConflictRecord

__all__ = ["draw_affinity", "draw_conflict", "draw_weights"]

_PAIRS = 6  # pairs with a line in colour; if there are more, the pairs most in conflict have one
_WINDOWS = 25  # a bold line is a running mean; its window is the fit divided by this


def draw_conflict(
    record: ConflictRecord | None,  # `learn.conflict`
) -> Figure:
    """Draw four axes: the mean cosine between the gradients of every two heads; the cosines over time; the length of
    each gradient; each head's share of the step."""
    if record is None or not record.steps:
        raise HeadsError(
            "`plot_conflict` draws what a ConflictRecorder saw in the last fit, and it saw nothing: pass "
            "`cbs=ConflictRecorder()` to a fit in which several heads share parameters that train."
        )
    if len(record.heads) < 2:
        raise HeadsError(f"`plot_conflict` compares heads, and there is only one, {record.heads[0]!r}.")
    n = len(record.heads)
    side = max(4.0, 0.62 * n + 1.6)
    fig, axes = plt.subplots(
        2,
        2,
        figsize=(side + 6.4, side + 3.0),
        width_ratios=[side, 6.0],
        height_ratios=[side, 3.2],
        layout="constrained",
    )
    _draw_matrix(axes[0, 0], record)
    _draw_pairs(axes[0, 1], record)
    _draw_lines(axes[1, 0], record.steps, record.norms, record.heads, "gradient norm", logarithmic=True)
    _draw_lines(axes[1, 1], record.steps, record.shares, record.heads, "share of the step")
    axes[1, 1].axhline(0, color="grey", lw=0.8)
    lines = axes[1, 0].get_legend_handles_labels()
    fig.legend(*lines, loc="outside lower center", ncols=min(n, 8), frameon=False)
    return fig


def draw_affinity(
    record: ConflictRecord | None,  # `learn.conflict`
    ax: Axes | None = None,  # to draw on; None: a new figure
) -> Axes:
    "Draw how much a step for the head of a row lowers the loss of the head of a column. Frames hold suggested groups."
    if record is None or not record.steps or len(record.heads) < 2:
        raise HeadsError(
            "`plot_affinity` draws what a ConflictRecorder saw of several heads in the last fit, and it saw nothing: "
            "pass `cbs=ConflictRecorder()` to a fit in which several heads share parameters that train."
        )
    order = [record.heads.index(name) for group in record.groups() for name in group]
    shown = record.affinity[np.ix_(order, order)]
    n, names = len(order), [record.heads[i] for i in order]
    if ax is None:
        ax = plt.subplots(figsize=(0.8 * n + 3.2, 0.7 * n + 2.0), layout="constrained")[1]
    others = np.abs(shown[~np.eye(n, dtype=bool)])
    most = np.nanmax(others) if (others > 0).any() else 1.0
    image = ax.imshow(shown, cmap="PuOr_r", vmin=-most, vmax=most)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    ax.set_xticks(range(n), names, rotation=90 if n > 4 else 0)
    ax.set_yticks(range(n), names)
    ax.grid(False)
    ax.set(xlabel="changes the loss of", ylabel="a step for")
    for i, j in np.ndindex(n, n):
        if i != j and not np.isnan(shown[i, j]):
            color = "white" if abs(shown[i, j]) > 0.6 * most else "black"
            ax.text(j, i, f"{shown[i, j]:.2g}", ha="center", va="center", color=color, fontsize=9)
    start = 0
    for group in record.groups():
        side = len(group)
        ax.add_patch(Rectangle((start - 0.5, start - 0.5), side, side, fill=False, ec="black", lw=2.5, clip_on=False))
        start += side
    ax.set_title("part of a loss that a step takes away, for a rate of 1", fontsize=10)
    return ax


def draw_weights(
    record: ConflictRecord | None,  # `learn.conflict`
    ax: Axes | None = None,  # to draw on; None: a new figure
) -> Axes:
    "Draw the weight of each head's gradient in the shared parameters, after every step."
    if record is None or not record.weight_steps:
        raise HeadsError(
            "`plot_weights` draws what a ConflictRecorder saw in the last fit, and it saw no step: pass "
            "`cbs=ConflictRecorder()` to a fit."
        )
    weights = record.weights
    if np.isnan(weights).all():
        raise HeadsError("`plot_weights`: this strategy does not weight the gradients of the heads.")
    ax = plt.subplots(figsize=(7.0, 3.6), layout="constrained")[1] if ax is None else ax
    _draw_lines(ax, record.weight_steps, weights, record.heads, "weight", logarithmic=_spans(weights))
    ax.legend(
        fontsize=8, ncols=ceil(len(record.heads) / 8), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    return ax


def _draw_matrix(ax: Axes, record: ConflictRecord) -> None:
    "Draw the mean cosines. A mean counts only the batches in which both heads had a label."
    n, mean = len(record.heads), _mean(record.cosines)
    image = ax.imshow(mean, cmap="RdBu", vmin=-1, vmax=1)
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    ax.set_xticks(range(n), record.heads, rotation=90 if n > 4 else 0)
    ax.set_yticks(range(n), record.heads)
    ax.grid(False)
    for i, j in np.ndindex(n, n):
        if i != j and not np.isnan(mean[i, j]):
            color = "white" if abs(mean[i, j]) > 0.6 else "black"
            ax.text(j, i, f"{mean[i, j]:.2f}", ha="center", va="center", color=color, fontsize=9)
    ax.set_title("mean cosine of gradients", fontsize=10)


def _draw_pairs(ax: Axes, record: ConflictRecord) -> None:
    "Draw the cosines over time: the pairs most in conflict in colour, the others in grey."
    cosines, mean = record.cosines, _mean(record.cosines)
    pairs = [pair for pair in combinations(range(len(record.heads)), 2) if not np.isnan(mean[pair])]
    pairs = sorted(pairs, key=lambda pair: mean[pair])
    for i, j in pairs[_PAIRS:]:
        ax.plot(record.steps, _smooth(cosines[:, i, j]), color="lightgrey", lw=0.8)
    for place, (i, j) in enumerate(pairs[:_PAIRS]):
        color = plt.get_cmap("Dark2")(place)
        label = f"{record.heads[i]}, {record.heads[j]}"
        _draw_line(ax, record.steps, cosines[:, i, j], color, label, pale=len(pairs) <= 3)
    ax.axhline(0, color="grey", lw=0.8)
    ax.set(ylim=(-1.05, 1.05), xlabel="training batch", ylabel="cosine")
    several = f", the {_PAIRS} most in conflict of {len(pairs)}" if len(pairs) > _PAIRS else ""
    ax.set_title(f"cosine of pairs{several}", fontsize=10)
    ax.legend(fontsize=8, loc="lower right" if mean[pairs[0]] > -0.3 else "upper right")


def _draw_lines(
    ax: Axes, steps: Sequence[int], values: np.ndarray, heads: Sequence[str], what: str, logarithmic: bool = False
) -> None:
    "Draw a line for each head, in the head's colour."
    for place, name in enumerate(heads):
        _draw_line(ax, steps, values[:, place], plt.get_cmap("tab10")(place % 10), name, "-" if place < 10 else "--")
    if logarithmic:
        ax.set_yscale("log")
    ax.set(xlabel="training batch")
    ax.set_title(what, fontsize=10)


def _draw_line(
    ax: Axes,
    steps: Sequence[int],
    values: np.ndarray,
    color: tuple[float, ...],
    label: str,
    style: str = "-",
    pale: bool = True,
) -> None:
    "Draw the values pale, and their running mean over them."
    if len(steps) == 1:
        ax.plot(steps, values, color=color, marker="o", label=label)
        return
    if pale:
        ax.plot(steps, values, color=color, lw=0.8, alpha=0.3)
    ax.plot(steps, _smooth(values), color=color, lw=1.8, ls=style, label=label)


def _mean(values: np.ndarray) -> np.ndarray:
    "Average over the first axis. NaN does not count; where all is NaN the mean is NaN."
    there = ~np.isnan(values)
    counts = there.sum(0)
    sums = np.where(there, values, 0).sum(0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _smooth(values: np.ndarray) -> np.ndarray:
    "Compute a running mean. NaN does not count; a few values stay as they are."
    reach = len(values) // _WINDOWS // 2
    return np.array([_mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))])


def _spans(values: np.ndarray) -> bool:
    "Tell whether positive numbers are too far apart for one linear axis."
    there = values[~np.isnan(values)]
    return bool((there > 0).all() and there.max() > 30 * there.min())
