"""The learning curves of the total and of every head, as one figure."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fastai_heads.training.curves import Curves
from fastai_heads.training.recorder import HeadsRecorder

__all__ = ["plot_losses"]


def plot_losses(
    recorder: HeadsRecorder,  # `learn.recorder`, after a fit
    skip_start: int = 5,  # the first steps are left out
    ncols: int = 3,  # small curves in a row, at most
) -> Figure:
    "Draw what `learn.recorder.plot_loss()` draws, in a new figure: the total, then every head alone."
    fig = plt.figure()
    Curves(recorder, skip_start).whole(fig, ncols)
    return fig
