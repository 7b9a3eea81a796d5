"""fastai's metrics, each on one head."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any

import torch
from fastai.data.core import DataLoaders
from fastai.learner import AvgLoss, AvgMetric, Learner, Metric
from fastai.metrics import AccumMetric, ActivationType, Dice, DiceMulti, JaccardCoeffMulti
from fastai.torch_core import to_detach
from torch import Tensor, nn

from fastai_heads.data.decode import dls_of_target, select_targets
from fastai_heads.data.kinds import Answer
from fastai_heads.tasks.task import Task
from fastai_heads.training.bound import BoundHead
from fastai_heads.training.ranks.joint import gather_items, gather_target, is_shared, over_counts
from fastai_heads.training.step import as_tuple, read_loss, read_measure
from fastai_heads.training.wrapped_metrics import TagsMetric, TorchMetric, as_metric, metric_name

__all__ = ["HeadMetric", "HeadValidLoss", "distinct", "fits_task", "head_metrics", "metric_name", "told_by_kind"]

_BY_NUMBER = (AvgMetric, AccumMetric, Dice, DiceMulti)  # fastai's, which look at the pixels of a mask one by one
_FUNCTIONS: dict[str, Answer] = {  # fastai's, by what they measure
    **dict.fromkeys(("accuracy", "error_rate", "top_k_accuracy"), Answer.CLASS),
    **dict.fromkeys(("accuracy_multi",), Answer.TAGS),
    **dict.fromkeys(("mse", "_rmse", "mae", "msle", "_exp_rmspe", "rmse", "exp_rmspe"), Answer.NUMBERS),
    **dict.fromkeys(("foreground_acc",), Answer.CODES),
}
_OF_MASKS = (Dice, DiceMulti, JaccardCoeffMulti)  # `JaccardCoeff` is a `Dice`


_LESS = frozenset({"mse", "_rmse", "mae", "msle", "_exp_rmspe", "rmse", "exp_rmspe", "perplexity", "distance"})


class HeadMetric(Metric):
    """Any metric on one head. It sees a learner that has this head alone: its prediction, target, loss, inputs and
    data loader. It sees only the items, pixels and tags that have a label."""

    def __init__(
        self,
        head: BoundHead,  # the head it looks at
        place: int,  # the head's place among the predictions
        metric: Callable | Metric,  # what fastai takes: a function of (pred, target), a `Metric`, or its class
        called: str | None = None,  # in the table, behind the head's name; None: the metric's own name
    ):
        self.head, self.place = head, place
        self.called = metric_name(metric) if called is None else called
        self.metric = _of_gaps(head, as_metric(metric))

    @property
    def name(self) -> str:
        return f"{self.head.name}_{self.called}"

    @property
    def higher_is_better(self) -> bool:
        """Which way it is better. The metric's own word goes first: an attribute `higher_is_better` of it or of its
        function, as torchmetrics has; then fastai's names and scikit-learn's endings."""
        func = getattr(self.metric, "func", None)
        for part in (self.metric, func, getattr(func, "func", None)):
            if isinstance(getattr(part, "higher_is_better", None), bool):
                return part.higher_is_better
        name = self.metric.name
        return name not in _LESS and not any(word in name for word in ("loss", "error", "deviance"))

    def reset(self) -> None:
        self.metric.reset()

    def accumulate(self, learn: Learner) -> None:
        "Measure a batch. Means of batches are weighted by what they are means of, so that `bs` changes none."
        if type(self.metric).accumulate is AvgLoss.accumulate:
            self._add_loss(learn)
            return
        preds = as_tuple(learn.pred)
        targ = gather_target(learn, self.head.task.align, learn.yb[self.head.target.index])
        pred = gather_items(learn, self.head.answer(preds[self.place]))
        mask = self.head.labelled(targ)
        if not mask.any() and len(mask):
            return
        whole = bool(mask.all())
        self._add(_OneHead(learn, self, pred if whole else pred[mask], targ if whole else targ[mask], mask))

    def _add_loss(self, learn: Learner) -> None:
        if learn.loss.ndim:
            return
        total, count = read_measure(learn, self.head, self.place)
        self.metric.total += total
        self.metric.count = 1 if self.head.sums else self.metric.count + count

    def _add(self, view: "_OneHead") -> None:
        weight = len(view.y)
        if view.y.ndim > 1 and self._looks_by_number:
            known = self.head.task.counted(view.y)
            if not known.any() and known.numel():
                return
            if not known.all():
                weight = float(known.sum() / known[0].numel())
                view.pred, view.y = _counted_alone(view.pred, view.y, known)
        if type(self.metric).accumulate is AvgMetric.accumulate:
            self.metric.total += view.to_detach(self.metric.func(view.pred, view.y)) * weight
            self.metric.count += weight
        else:
            self.metric.accumulate(view)

    @property
    def _looks_by_number(self) -> bool:
        "Tell whether it can be given the tags or pixels that are there, without those beside them."
        if self.head.task.answers is Answer.CODES:
            return isinstance(self.metric, (*_BY_NUMBER, TorchMetric))
        return not isinstance(self.metric, TagsMetric | TorchMetric)

    @property
    def value(self) -> Any:
        return self.metric.value


class HeadValidLoss(Metric):
    "One head's loss over all of the validation set that has a label, as if it were one batch."

    def __init__(
        self,
        head: BoundHead,  # the head
        place: int,  # its place among the losses
    ):
        self.head, self.place = head, place

    @property
    def name(self) -> str:
        return f"{self.head.name}_loss"

    def reset(self) -> None:
        self.total, self.count = torch.zeros(()), torch.zeros(())

    def accumulate(self, learn: Learner) -> None:
        "Add a batch; losses per item (`get_preds(with_loss=True)`) are none."
        if learn.loss.ndim:
            return
        total, count = (to_detach(part, gather=False).double() for part in read_measure(learn, self.head, self.place))
        self.total, self.count = self.total + total, self.count + count

    @property
    def value(self) -> Tensor | None:
        if not self.count and not self.total:
            return None
        return over_counts([self.head], self.total[None], self.count[None])[0]


class _OneHead:
    "A learner as a metric of one head sees it: as the one that has this head alone. All else is the learner's own."

    def __init__(self, learn: Learner, metric: HeadMetric, pred: Tensor, targ: Tensor, mask: Tensor):
        self.learn, self.head, self.pred, self.y = learn, metric.head, pred, targ
        self.loss_func = metric.head.loss_func
        self._place, self._mask = metric.place, mask
        if is_shared(learn):  # the items are those of all ranks already
            self.to_detach = partial(to_detach, gather=False)

    @property
    def yb(self) -> tuple[Tensor]:
        return (self.y,)

    @property
    def loss(self) -> Tensor:
        return read_loss(self.learn, self._place)

    @property
    def xb(self) -> tuple[Tensor, ...]:
        inputs = gather_items(self.learn, tuple(self.learn.xb))
        return inputs if self._mask.all() else tuple(x[self._mask.to(x.device)] for x in inputs)

    @property
    def x(self) -> Tensor:
        return self.xb[0]

    @property
    def dl(self) -> Any:
        return select_targets(self.learn.dl, [self.head.target.index])

    @property
    def dls(self) -> DataLoaders:
        return dls_of_target(self.learn.dls, self.head.target.index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learn, name)


def _counted_alone(pred: Tensor, targ: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    "Return the tags that are there, (N,); of a mask the labelled pixels as an image that is one pixel wide."
    if pred.shape == targ.shape:
        return pred[known], targ[known]
    return pred.movedim(1, -1)[known].T[None, ..., None], targ[known][None, :, None]


def _of_gaps(head: BoundHead, metric: Metric) -> Metric:
    "Let scikit-learn's metrics of several tags see them beside each other."
    return (
        TagsMetric(metric) if head.task.has_gaps and isinstance(metric, AccumMetric) and not metric.flatten else metric
    )


def distinct(
    names: Iterable[str],  # in order
) -> list[str]:
    "Return the names, a second one of a kind as `name_2`."
    found: list[str] = []
    for name in names:
        number = next(n for n in count(1) if (name if n == 1 else f"{name}_{n}") not in found)
        found.append(name if number == 1 else f"{name}_{number}")
    return found


def fits_task(
    metric: Any,  # what fastai takes as one
    task: Task,  # of a head
) -> bool:
    "Tell whether a metric says something of a task: known of fastai's own, believed of the user's."
    return measured_answer(metric) in (None, task.answers)


def told_by_kind(
    metric: Any,  # what fastai takes as one
) -> bool:
    "Tell whether it is one of fastai's functions and scores, which are of one kind of answer alone."
    return measured_answer(metric) is not None and not isinstance(as_metric(metric), _OF_MASKS)


def measured_answer(
    metric: Any,  # what fastai takes as one
) -> Answer | None:
    "Return what one of fastai's metrics measures; None for the user's."
    made = as_metric(metric)
    if isinstance(made, AccumMetric):
        return _accumulated_answer(made)
    if isinstance(made, _OF_MASKS):
        return Answer.CODES
    func = getattr(made, "func", None)
    return _FUNCTIONS.get(getattr(getattr(func, "func", func), "__name__", ""))


def _accumulated_answer(metric: AccumMetric) -> Answer:
    "Tell by what fastai's scikit-learn metrics do to the prediction."
    if metric.activation == ActivationType.Sigmoid or metric.thresh is not None:
        return Answer.TAGS  # first, as `RocAucMulti` has an unused `dim_argmax`
    if metric.activation in (ActivationType.Softmax, ActivationType.BinarySoftmax) or metric.dim_argmax is not None:
        return Answer.CLASS
    return Answer.NUMBERS


def head_metrics(
    head: BoundHead,  # the head
    place: int,  # its place among the predictions
) -> list[HeadMetric]:  # none for an auxiliary head without metrics of its own
    "Return the metrics of one head: those of its spec, else its kind's defaults."
    chosen = head.spec.metrics
    if chosen is None:
        chosen = () if head.spec.train_only else head.task.default_metrics()
    elif callable(chosen) or isinstance(chosen, Metric):
        chosen = (chosen,)
    chosen = [m for given in chosen for m in (given.values() if isinstance(given, nn.ModuleDict) else (given,))]
    names = distinct(metric_name(metric) for metric in chosen)
    return [HeadMetric(head, place, metric, name) for metric, name in zip(chosen, names)]
