"""The learning curves of the total and of every head."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastai_heads.training.recorder import HeadsRecorder

__all__ = ["plot_losses"]


def plot_losses(
    recorder: HeadsRecorder,  # `learn.recorder`, after a fit
    skip_start: int = 5,  # the first steps are left out
    ncols: int = 3,  # curves in a row
) -> Figure:
    "Smoothed training loss by step and validation loss by epoch: the total first, then every head by itself."
    curves = {"total": (recorder.losses, "valid_loss")}
    curves |= {name: (losses, f"valid_{name}_loss") for name, losses in recorder.losses_by_head.items()}
    ncols = min(ncols, len(curves))
    nrows = -(-len(curves) // ncols)
    fig, axes = plt.subplots(nrows, ncols, figsize=(3.6 * ncols, 2.4 * nrows), squeeze=False)
    for ax in axes.flat[len(curves) :]:
        ax.set_axis_off()
    for ax, (name, (losses, column)) in zip(axes.flat, curves.items()):
        _curve(ax, name, losses, column, recorder, skip_start)
    axes.flat[0].legend()
    fig.tight_layout()
    return fig


def _curve(ax: Axes, name: str, losses: list, column: str, recorder: HeadsRecorder, skip_start: int) -> None:
    steps = range(min(skip_start, len(losses) - 1), len(losses))
    ax.plot(steps, [float(losses[s]) for s in steps], label="train")
    if column in recorder.metric_names:
        at = recorder.metric_names.index(column) - 1
        points = [(n, row[at]) for n, row in zip(recorder.iters, recorder.values) if row[at] is not None]
        ax.plot([n for n, _ in points], [float(v) for _, v in points], marker="o", markersize=3, label="valid")
    ax.set_title(name, fontsize=10)
    ax.set_xlabel("step")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
