"""`learn.suggest_weights`: what `lr_find` is to the rate, to the weights of the losses."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

from fastai.learner import Learner
from fastai.torch_core import get_model, no_random
from torch import nn

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.probe.collect import plain_batches
from fastai_heads.probe.weights import HOW, WeightSuggestion, measure_pulls
from fastai_heads.training.step import combined_loss

__all__ = ["suggest_weights"]


def suggest_weights(
    learn: Learner,  # a `MultiHeadLearner`
    how: str = "gradients",  # by the gradient's norm where a head reads the body; 'losses': by the losses as they are
    batches: int = 8,  # of the training set, without augmentation
    apply: bool = False,  # set `loss_weight` of every head that was measured
    show_plot: bool = True,  # draw what was measured
) -> WeightSuggestion:
    """Suggest a loss weight for each head, under which all heads pull alike at what they share.

    The learner, its record and the random state stay as they were, but for the loss weights with `apply=True`. A head
    without a label in these batches, or with a loss weight of 0, keeps its weight."""
    if how not in HOW:
        raise HeadsError(f"`how` is one of {', '.join(HOW)}, found {how!r}.{did_you_mean(how, tuple(HOW))}")
    if type(batches) is not int or batches < 1:
        raise HeadsError(f"`batches` is a whole number of at least 1, found {batches!r}.")
    dl, model, present = learn.dls.train, get_model(learn.model), {n: h.loss_weight for n, h in learn.heads.items()}
    if not len(dl.dataset):
        raise HeadsError("`batches`: the training set is empty.")
    if dl.device is not None:
        model.to(dl.device)
    with no_random(), _as_in_training(model):
        looked = plain_batches(dl, (), min(batches * (dl.bs or 64), len(dl.dataset)))
        found = measure_pulls(model, combined_loss(learn.loss_func), looked, how)
    left_out = {name: why for name, values in found.items() if (why := _why_not(values, present[name]))}
    pulls = {name: fmean(values) for name, values in found.items() if name not in left_out}
    if not pulls:
        raise HeadsError(f"`suggest_weights` found nothing: {'; '.join(f'{n}: {why}' for n, why in left_out.items())}.")
    suggestion = WeightSuggestion(how, pulls, present, left_out, max(map(len, found.values())))
    if apply:
        for name, weight in suggestion.weights.items():
            learn.heads[name].loss_weight = weight
    if show_plot:
        suggestion.plot()
    return suggestion


def _why_not(values: list[float], weight: float) -> str:
    if weight == 0:
        return "its loss weight is 0"
    if not values:
        return "no label in these batches"
    mean = fmean(values)
    return "" if math.isfinite(mean) and mean > 0 else f"found {mean:g}"


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    "Let the network run as in training, and put modes and buffers back, such as the statistics of batch norms."
    modes = {part: part.training for part in model.modules()}
    buffers = {b: b.clone() for b in model.buffers()}
    model.train()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for buffer, value in buffers.items():
            buffer.copy_(value)
