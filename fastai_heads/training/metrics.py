"""fastai's metrics, each on one head."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

from fastai.learner import Learner, Metric, mk_metric
from fastai.metrics import AccumMetric, ActivationType, Dice, DiceMulti, JaccardCoeffMulti
from fastai.torch_core import to_detach
from torch import Tensor

from fastai_heads.training.bound import BoundHead
from fastai_heads.training.joint import is_joined, joined, joined_target, seen_labels, seen_loss

__all__ = ["HeadMetric", "HeadValidLoss", "head_metrics", "metric_name", "takes_kind", "told_by_kind"]

_NUMBERS = frozenset({"regression", "point", "box"})
_KINDS: dict[str, frozenset[str]] = {  # fastai's functions, by the kind of target that they measure
    **dict.fromkeys(("accuracy", "error_rate", "top_k_accuracy"), frozenset({"category"})),
    **dict.fromkeys(("accuracy_multi",), frozenset({"multilabel"})),
    **dict.fromkeys(("mse", "_rmse", "mae", "msle", "_exp_rmspe", "rmse", "exp_rmspe"), _NUMBERS),
    **dict.fromkeys(("foreground_acc",), frozenset({"mask"})),
}

_OF_MASKS = (Dice, DiceMulti, JaccardCoeffMulti)  # `JaccardCoeff` is a `Dice`


_LESS = frozenset({"mse", "_rmse", "mae", "msle", "_exp_rmspe", "rmse", "exp_rmspe", "perplexity", "distance"})


class HeadMetric(Metric):
    "Any fastai metric on one head: it sees that head's prediction and target, and the labelled items only."

    def __init__(
        self,
        head: BoundHead,  # the head it looks at
        place: int,  # the head's place among the predictions
        metric: Callable | Metric,  # what fastai takes: a function of (pred, target), a `Metric`, or its class
    ):
        self.head, self.place = head, place
        self.metric = mk_metric(deepcopy(metric) if isinstance(metric, Metric) else metric)  # heads may share one

    @property
    def name(self) -> str:
        return f"{self.head.name}_{self.metric.name}"

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
        preds = learn.pred if isinstance(learn.pred, tuple | list) else (learn.pred,)
        targ = joined_target(learn, self.head.target, learn.yb[self.head.target.index])
        pred = joined(learn, self.head.answer(preds[self.place]))
        mask = self.head.labelled(targ)
        if not mask.any() and len(mask):
            return
        whole = bool(mask.all())
        self.metric.accumulate(_OneHead(learn, pred if whole else pred[mask], targ if whole else targ[mask]))

    @property
    def value(self) -> Any:
        return self.metric.value


class HeadValidLoss(Metric):
    "One head's loss over the labelled items of the validation set."

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
        self.total, self.count = 0.0, 0

    def accumulate(self, learn: Learner) -> None:
        loss = to_detach(seen_loss(learn, self.place), gather=False)
        count = int(seen_labels(learn, self.head, self.place))
        self.total += loss * count if count else 0.0
        self.count += count

    @property
    def value(self) -> Tensor | None:
        return self.total / self.count if self.count else None


class _OneHead(SimpleNamespace):
    "A learner as a metric of one head sees it: one prediction, one target, all else the learner's own."

    def __init__(self, learn: Learner, pred: Tensor, targ: Tensor):
        super().__init__(learn=learn, pred=pred, y=targ, yb=(targ,))
        if is_joined(learn):  # the items are those of all ranks already
            self.to_detach = partial(to_detach, gather=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learn, name)


def metric_name(
    metric: Any,  # what fastai takes as one
) -> str:
    "What it is called in the table."
    return mk_metric(metric).name


def takes_kind(
    metric: Any,  # what fastai takes as one
    kind: str,  # of a target
) -> bool:
    "Whether a metric says something of a kind of target: told for fastai's own, believed of the user's."
    return kind in (_known_kinds(metric) or {kind})


def told_by_kind(
    metric: Any,  # what fastai takes as one
) -> bool:
    "Whether it is one of fastai's functions and scores, which are of one kind of target alone."
    return bool(_known_kinds(metric)) and not isinstance(mk_metric(metric), _OF_MASKS)


def _known_kinds(metric: Any) -> frozenset[str]:
    "The kinds of target that one of fastai's metrics measures; none for the user's."
    made = mk_metric(metric)
    if isinstance(made, AccumMetric):
        return _accumulated_kinds(made)
    if isinstance(made, _OF_MASKS):
        return frozenset({"mask"})
    func = getattr(made, "func", None)
    return _KINDS.get(getattr(getattr(func, "func", func), "__name__", ""), frozenset())


def _accumulated_kinds(metric: AccumMetric) -> frozenset[str]:
    "What fastai's scikit-learn metrics do to the prediction tells what they are for."
    if metric.activation == ActivationType.Sigmoid or metric.thresh is not None:
        return frozenset({"multilabel"})  # first, as `RocAucMulti` has an unused `dim_argmax`
    if metric.activation in (ActivationType.Softmax, ActivationType.BinarySoftmax) or metric.dim_argmax is not None:
        return frozenset({"category"})
    return _NUMBERS


def head_metrics(
    head: BoundHead,  # the head
    place: int,  # its place among the predictions
) -> list[HeadMetric]:  # none for an auxiliary head without metrics of its own
    "The metrics of one head: those of its spec, else its kind's defaults."
    chosen = head.spec.metrics
    if chosen is None:
        chosen = () if head.spec.train_only else head.spec.default_metrics()
    elif callable(chosen) or isinstance(chosen, Metric):
        chosen = (chosen,)
    return [HeadMetric(head, place, metric) for metric in chosen]
