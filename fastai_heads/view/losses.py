"""The learning curves of the total loss and of every head."""

from collections.abc import Sequence
from math import ceil, isnan
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastai_heads.errors import HeadsError
from fastai_heads.training.recorder import HeadsRecorder

__all__ = ["Curves", "DrawnRecorder", "plot_losses"]


class Curves:
    "Draws the losses that a recorder holds of the last fit, in fastai's style."

    def __init__(
        self,
        recorder: HeadsRecorder,  # after a fit
        skip_start: int = 5,  # the first steps are left out
        with_valid: bool = True,  # the validation losses, too
        log: bool = False,  # both axes logarithmic
        show_epochs: bool = False,  # a line where an epoch ends
    ):
        self.recorder, self.with_valid, self.log, self.show_epochs = recorder, with_valid, log, show_epochs
        self.skip_start = max(0, min(skip_start, len(recorder.losses) - 1))

    def whole(
        self,
        fig: Figure,  # empty
        ncols: int = 4,  # small curves in a row, at most
    ) -> Axes:  # the total's
        "Draw the total above, and every head in a small axes of its own below."
        heads = self.recorder.losses_by_head
        nrows = ceil(len(heads) / ncols)
        ncols = ceil(len(heads) / nrows)
        grid = fig.add_gridspec(nrows + 1, ncols, height_ratios=[1.6] + [1] * nrows)
        ax = self.total(fig.add_subplot(grid[0, :]))
        for i, name in enumerate(heads):
            small = fig.add_subplot(grid[1 + i // ncols, i % ncols])
            self.head(small, name)
            small.set_title(name, fontsize=10)
            small.tick_params(labelsize=8)
        fig.set_size_inches(max(6.4, 2.6 * ncols), 3.4 + 2.1 * nrows)
        fig.tight_layout()
        return ax

    def total(
        self,
        ax: Axes,  # to draw on
    ) -> Axes:
        "Draw fastai's curve of the total loss."
        self._draw(ax, self.recorder.losses, "valid_loss", ("train", "valid"))
        ax.set(ylabel="loss", xlabel="steps", title="learning curve")
        if self.with_valid:
            ax.legend()
        return ax

    def beside(
        self,
        ax: Axes,  # with the total
    ) -> Axes:
        "Add every head as a thin line. Its validation loss is dashed, in the same colour."
        for name, losses in self.recorder.losses_by_head.items():
            self._draw(ax, losses, f"valid_{name}_loss", (f"train {name}", f"valid {name}"), lw=1, alpha=0.8)
        ax.legend(fontsize=7)
        return ax

    def head(
        self,
        ax: Axes,  # to draw on
        name: str,  # the head
    ) -> Axes:
        "Draw one head's losses."
        self._draw(ax, self.recorder.losses_by_head[name], f"valid_{name}_loss", ("train", "valid"))
        return ax

    def _draw(self, ax: Axes, losses: Sequence[Any], column: str, labels: tuple[str, str], **style: Any) -> None:
        plot = ax.loglog if self.log else ax.plot
        steps = range(self.skip_start, len(losses))
        drawn = plot(steps, [float(losses[s]) for s in steps], label=labels[0], **style)
        if self.show_epochs and not style:
            for step in self.recorder.iters:
                ax.axvline(step, color="grey", ls=":")
        if self.with_valid:
            points = self._valid(column)
            style = {**style, "color": drawn[0].get_color(), "ls": "--"} if style else {}
            marker = "o" if len(points) == 1 else None  # a line of one point is not seen
            plot([n for n, _ in points], [v for _, v in points], label=labels[1], marker=marker, **style)

    def _valid(self, column: str) -> list[tuple[int, float]]:
        "List (step, value) after each epoch that has a validation loss."
        if column not in self.recorder.metric_names:
            return []
        at = self.recorder.metric_names.index(column) - 1
        rows = [(n, row[at]) for n, row in zip(self.recorder.iters, self.recorder.values) if at < len(row)]
        return [(n, float(v)) for n, v in rows if n >= self.skip_start and v is not None and not isnan(v)]


class DrawnRecorder(HeadsRecorder):
    "The recorder of a learner: what `HeadsRecorder` keeps of a fit, with fastai's `plot_loss`."

    def plot_loss(
        self,
        skip_start: int = 5,  # the first steps are left out
        with_valid: bool = True,  # the validation losses, too
        log: bool = False,  # both axes logarithmic
        show_epochs: bool = False,  # a line where an epoch ends
        ax: Axes | None = None,  # to draw on, heads as thin lines; None: a figure with an axes for each head
        heads: bool = True,  # the heads' own losses, too, where there are several
    ) -> Axes:  # the total's
        "Draw fastai's learning curve of the total, and every head's below it."
        if not getattr(self, "losses", None):
            raise HeadsError("`plot_loss` draws the last fit, and there has been none.")
        curves = Curves(self, skip_start, with_valid, log, show_epochs)
        several = heads and len(self.losses_by_head) > 1
        if ax is None and several:
            return curves.whole(_empty_figure())
        ax = curves.total(_empty_figure().add_subplot() if ax is None else ax)
        return curves.beside(ax) if several else ax


def plot_losses(
    recorder: HeadsRecorder,  # `learn.recorder`, after a fit
    skip_start: int = 5,  # the first steps are left out
    ncols: int = 3,  # small curves in a row, at most
) -> Figure:
    "Draw what `learn.recorder.plot_loss()` draws, in a new figure: the total, then every head alone."
    fig = plt.figure()
    Curves(recorder, skip_start).whole(fig, ncols)
    return fig


def _empty_figure() -> Figure:
    "Return the current figure where nothing is drawn on it, else a new one."
    fig = plt.gcf()
    return plt.figure() if fig.axes else fig
