"""What people look at: images with every head's answer, and the network in words."""

from fastai_heads.view.losses import plot_losses
from fastai_heads.view.show import show_samples
from fastai_heads.view.summary import Summary, summarize

__all__ = ["Summary", "plot_losses", "show_samples", "summarize"]
