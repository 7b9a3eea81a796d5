"""Metrics on a few real items: those of a head are checked, those for all go to the heads that they fit."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fastai.learner import AvgMetric, Learner
from fastai.torch_core import no_random
from torch import Tensor

from fastai_heads.errors import HeadsError, HeadsWarning, did_you_mean, first_line
from fastai_heads.heads.spec import is_metric
from fastai_heads.learner.trial import Trial
from fastai_heads.training.bound import BoundHead
from fastai_heads.training.metrics import HeadMetric, fits_task, metric_name, told_by_kind
from fastai_heads.training.step import take_losses

__all__ = ["check_metrics", "fitting_metrics", "shared_metrics"]

_NAMES = ("accuracy", "error_rate", "accuracy_multi", "mae", "mse", "rmse", "Dice", "F1Score", "RocAuc", "R2Score")


def check_metrics(
    learn: Learner,  # with `heads`
    trial: Trial | None,  # what the network gave; None: nothing was tried
    metrics: Sequence[HeadMetric],  # of some heads
) -> list[HeadMetric]:  # those that stay
    """Refuse a metric that a head names and that cannot be taken of it. Default metrics that do not fit the predictions
    of a loss of the user's are left out."""
    found = []
    for metric in metrics:
        why = _fault(learn, trial, metric)
        head = metric.head
        if why and (head.spec.metrics is not None or head.spec.loss is None):
            raise HeadsError(
                f"`heads[{head.name!r}]`: `metrics` of {head.spec.label}: {metric.metric.name} cannot be taken of "
                f"{_shapes(trial, head)} of kind {head.target.kind}: {why}. {_own(head)}"
            )
        found += [] if why else [metric]
    return found


def shared_metrics(
    learn: Learner,  # with `heads`
    trial: Trial | None,  # what the network gave; None: nothing was tried, and the kinds of target alone tell
    given: Sequence[Any],  # what fastai takes as metrics
) -> list[HeadMetric]:
    """Return each of the metrics for every deciding head that can take it and whose spec names none. Raises
    `HeadsError` for one that no head can take. Where the kind does not tell, a `HeadsWarning` says which heads got
    none."""
    for metric in given:
        if not is_metric(metric):
            raise HeadsError(
                f"`metrics` is a metric or a list of them, such as `accuracy`, found {metric!r}."
                f"{did_you_mean(metric, _NAMES)}"
            )
    found: list[HeadMetric] = []
    faults: dict[int, dict[str, str]] = {place: {} for place in range(len(given))}
    for place, head in enumerate(learn.heads.values()):
        if head.spec.metrics is not None or head.spec.train_only:
            continue
        for which, metric in enumerate(given):
            made = HeadMetric(head, place, metric)
            why = "it is of another kind" if not fits_task(metric, head.task) else _fault(learn, trial, made)
            faults[which] |= {head.name: why} if why else {}
            found += [] if why else [made]
    _report(learn, given, found, faults)
    return found


def fitting_metrics(
    shared: Sequence[HeadMetric],  # from `shared_metrics`
    own: Sequence[HeadMetric],  # the heads' own and default metrics
) -> list[HeadMetric]:  # in head order
    "Return the metrics of all heads: what was given for those that share in it, their own for the others."
    sharing = {metric.head.name for metric in shared}
    found = [*shared, *(metric for metric in own if metric.head.name not in sharing)]
    return sorted(found, key=lambda metric: metric.place)


def _report(learn: Learner, given: Sequence[Any], found: list[HeadMetric], faults: dict[int, dict[str, str]]) -> None:
    "Refuse what no head takes; say which heads got none where it was tried."
    names = {metric.head.name for metric in found}
    asked = [h for h in learn.heads.values() if h.spec.metrics is None and not h.spec.train_only]
    kinds = ", ".join(f"{head.name} ({head.target.kind})" for head in learn.heads.values())
    for which, metric in enumerate(given):
        if len(faults[which]) == len(asked):
            why = "".join(f" {name}: {text}." for name, text in faults[which].items())
            raise HeadsError(f"`metrics`: no head takes {metric_name(metric)}. Heads: {kinds}.{why}")
    without = [head.name for head in asked if head.name not in names]
    if without and not all(told_by_kind(metric) for metric in given):
        said = ", ".join(map(metric_name, given))
        warnings.warn(
            f"`metrics`: {said} fits {', '.join(sorted(names))}; {', '.join(without)} got none and keeps its own.",
            HeadsWarning,
            stacklevel=4,
        )


def _fault(learn: Learner, trial: Trial | None, metric: HeadMetric) -> str:
    "Say why a metric cannot be taken of its head; '' where it can, or where nothing was tried."
    head = metric.head
    shape = head.task.output_shape
    vector = head.task.answers is not None and shape is not None and len(shape) == 1
    if vector and not fits_task(metric.metric, head.task):  # also where it runs
        return "it is of another kind"
    if trial is None:
        return ""
    with _after_batch(learn, trial), no_random(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            metric.reset()
            metric.accumulate(learn)
            value = metric.value if isinstance(metric.metric, AvgMetric) else None  # others may need more items
        except Exception as error:  # metrics are the user's, and may raise anything
            return first_line(error)
        finally:
            metric.reset()
    several = isinstance(value, Tensor) and value.numel() != 1
    return f"it gives {tuple(value.shape)}, expected one number" if several else ""


@contextmanager
def _after_batch(learn: Learner, trial: Trial) -> Iterator[None]:
    "Put the learner in the state after a batch of validation, for a while."
    names = ("xb", "yb", "pred", "head_losses", "loss", "training", "dl")
    before = {name: learn.__dict__[name] for name in names if name in learn.__dict__}
    learn.xb, learn.yb, learn.pred = trial.inputs, trial.targets, tuple(trial.preds.values())
    learn.training, learn.dl = False, learn.dls.valid
    try:
        take_losses(learn)
        yield
    finally:
        for name in names:
            learn.__dict__.pop(name, None)
        learn.__dict__.update(before)


def _shapes(trial: Trial | None, head: BoundHead) -> str:
    if trial is None:
        return "a target"
    pred, targ = trial.preds[head.name], trial.targets[head.target.index]
    return f"predictions {tuple(pred.shape)} and targets {tuple(targ.shape)}"


def _own(head: BoundHead) -> str:
    "Say the nearest right answer: the metrics of the head's kind."
    names = [metric_name(metric) for metric in head.task.default_metrics()]
    return f"Its kind's are {', '.join(names)}." if names else "Pass `metrics=[]` for none."
