"""Metrics that fastai's loop cannot take as they are: torchmetrics' objects, and scikit-learn's of tags with gaps."""

from collections.abc import Callable
from copy import deepcopy
from inspect import isclass
from typing import Any

import torch
from fastai.learner import Learner, Metric, mk_metric
from fastai.metrics import AccumMetric
from fastcore.basics import camel2snake
from torch import Tensor, nn

__all__ = ["TagsMetric", "TorchMetric", "as_metric", "metric_name"]


class TorchMetric(Metric):
    "An object of torchmetrics, which counts for itself."

    def __init__(
        self,
        func: nn.Module,  # with `update`, `compute` and `reset`
    ):
        self.func, self.seen = func, False
        self.func.sync_on_compute = False  # the batches are those of all ranks already

    @property
    def name(self) -> str:
        return camel2snake(type(self.func).__name__)

    def reset(self) -> None:
        self.func.reset()
        self.seen = False

    def accumulate(self, learn: Learner) -> None:
        "Update it with a batch, as the head's task says."
        pred, targ = (t.detach().as_subclass(Tensor) for t in (learn.pred, learn.y))
        if targ.is_floating_point():
            targ = learn.head.task.as_updated(pred, targ, self.func)
        if pred.ndim == 2 and pred.shape[1] == 1 and targ.shape == pred.shape:
            pred, targ = pred[:, 0], targ[:, 0]
        self.func.to(pred.device).update(pred.float(), targ)
        self.seen = True

    @property
    def value(self) -> Any:
        return self.func.compute() if self.seen else None


class TagsMetric(Metric):
    """scikit-learn's metric of several tags, some of which may be missing. Each tag is measured over the images that
    have it, and their average is taken as the metric says."""

    def __init__(
        self,
        metric: AccumMetric,  # of fastai: `F1ScoreMulti()`, `RocAucMulti()`
    ):
        self.metric, self.func, self.known = metric, metric.func, []

    @property
    def name(self) -> str:
        return self.metric.name

    def reset(self) -> None:
        self.metric.reset()
        self.known = []

    def accumulate(self, learn: Learner) -> None:
        "Keep a batch, and which of its tags are there."
        known = ~learn.y.as_subclass(Tensor).isnan()
        self.known.append(learn.to_detach(known))
        learn.y = learn.y.masked_fill(~known, 0)
        self.metric.accumulate(learn)

    @property
    def value(self) -> Any:
        if not self.known:
            return None
        known = torch.cat(self.known)
        if known.all():
            return self.metric.value
        preds, targs = torch.cat(self.metric.preds), torch.cat(self.metric.targs)
        average = self.metric.kwargs.get("average", "micro")
        if average == "micro":
            return self._score(preds[known], targs[known])
        if average == "samples":
            preds, targs, known = preds.T, targs.T, known.T
        there = [(p[k], t[k]) for p, t, k in zip(preds.T, targs.T, known.T) if k.any()]
        scores = torch.tensor([float(self._score(*pair)) for pair in there])
        if average is None:
            return scores.numpy()
        weights = torch.tensor([float(t.sum()) for _, t in there]) if average == "weighted" else torch.ones(len(there))
        return float((scores * weights).sum() / weights.sum().clamp(min=1))

    def _score(self, preds: Tensor, targs: Tensor) -> Any:
        "Score one tag, or all as one, as the function does where it is not told how to average."
        kwargs = {name: value for name, value in self.metric.kwargs.items() if name != "average"}
        pair = (targs, preds) if self.metric.invert_args else (preds, targs)
        return self.metric.func(*(part.numpy() if self.metric.to_np else part for part in pair), **kwargs)


def as_metric(
    metric: Any,  # what fastai takes as one, or an object of torchmetrics
) -> Metric:  # one of its own, as heads may share what they are given
    "Make a metric of fastai of a function, a class, a metric or an object of torchmetrics."
    made = metric() if isclass(metric) else metric
    if isinstance(made, nn.Module) and all(hasattr(made, part) for part in ("update", "compute", "reset")):
        return TorchMetric(deepcopy(made))
    return mk_metric(deepcopy(made) if isinstance(made, Metric) else made)


def metric_name(
    metric: Any,  # as for `as_metric`
) -> str:
    "Return what it is called in the table: `rmse` for fastai's `_rmse`; a callable object has its class's name."
    made = as_metric(metric)
    said = getattr(made, "name", None)
    func: Callable = getattr(made, "func", made)
    return said.lstrip("_") or said if isinstance(said, str) else camel2snake(type(func).__name__)
