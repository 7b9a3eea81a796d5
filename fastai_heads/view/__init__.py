"""What people look at: images with every head's answer, what a learner gets wrong, the network in words and drawn."""

from fastai_heads.view.diagram import draw_heads, write_heads
from fastai_heads.view.interpret import HeadsInterpretation
from fastai_heads.view.losses import plot_losses
from fastai_heads.view.show import show_predictions, show_samples, show_targets
from fastai_heads.view.summary import Summary, summarize

__all__ = [
    "HeadsInterpretation",
    "Summary",
    "draw_heads",
    "plot_losses",
    "show_predictions",
    "show_samples",
    "show_targets",
    "summarize",
    "write_heads",
]
