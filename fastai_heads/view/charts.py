"""Drawings of confusion matrices and of predicted against true numbers."""

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastai_heads.view.texts import number

__all__ = ["draw_confusion", "draw_label_confusions", "draw_scatter"]

_WRITTEN = 30  # most classes of a matrix whose cells hold numbers


def draw_confusion(
    ax: Axes,  # to draw on
    matrix: np.ndarray,  # (C, C) counts, or shares of a row; a row is a true class
    names: Sequence[Any],  # the classes
    cmap: str = "Blues",  # matplotlib's
    decimals: int | None = None,  # of shares; None: the matrix holds counts
    written: bool = True,  # write the numbers into the cells
) -> None:
    "Draw a confusion matrix as fastai does: the true class down, the predicted class across."
    ax.imshow(matrix, interpolation="nearest", cmap=cmap)
    ticks = range(len(names))
    ax.set_xticks(ticks, [str(n) for n in names], rotation=90)
    ax.set_yticks(ticks, [str(n) for n in names])
    ax.set(ylabel="Actual", xlabel="Predicted")
    ax.grid(False)
    if written and len(names) <= _WRITTEN:
        half = matrix.max() / 2
        for i, j in product(ticks, ticks):
            text = f"{matrix[i, j]}" if decimals is None else f"{matrix[i, j]:.{decimals}f}"
            color = "white" if matrix[i, j] > half else "black"
            ax.text(j, i, text, ha="center", va="center", color=color)


def draw_label_confusions(
    matrices: np.ndarray,  # (labels, 2, 2)
    names: Sequence[Any],  # the labels
    fig: Figure,  # empty
    **kwargs,  # to `draw_confusion`
) -> None:
    "Draw a confusion matrix of absent and present for every label."
    ncols = min(4, len(names))
    axes = fig.subplots(ceil(len(names) / ncols), ncols, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name, matrix in zip(axes.flat, names, matrices):
        draw_confusion(ax, matrix, ("absent", "present"), **kwargs)
        ax.set_title(str(name), fontsize=10)
        ax.tick_params(axis="x", rotation=0)


def draw_scatter(
    predicted: np.ndarray,  # (N, n)
    true: np.ndarray,  # (N, n)
    names: Sequence[str],  # n of them
    **kwargs,  # to matplotlib's `figure`: `figsize`
) -> Figure:
    "Draw predicted against true values, one axes for each number. On the line the two are equal."
    ncols = min(4, len(names))
    nrows = ceil(len(names) / ncols)
    fig, axes = plt.subplots(nrows, ncols, squeeze=False, **{"figsize": (3.4 * ncols, 3.4 * nrows), **kwargs})
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name, said, truth in zip(axes.flat, names, predicted.T, true.T):
        ends = np.array([min(said.min(), truth.min()), max(said.max(), truth.max())])
        ax.plot(ends, ends, color="grey", lw=1)
        ax.scatter(truth, said, s=14, alpha=0.6, edgecolors="none")
        ax.set_title(f"{name}: mean error {number(np.abs(said - truth).mean())}", fontsize=10)
        ax.set(xlabel="Actual", ylabel="Predicted")
        ax.set_aspect("equal", adjustable="datalim")
        ax.grid(alpha=0.3)
    fig.tight_layout()
    return fig
