"""What may be set on a learner, and what its training may be called with: anything else is refused at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any
from weakref import ref

import fastai.callback.schedule  # noqa: F401  gives `Learner` its `fit_one_cycle`, `fine_tune` and `lr_find`
import numpy as np
from fastai.data.core import DataLoaders
from fastai.learner import Learner, mk_metric
from fastai.torch_core import get_model
from fastcore.foundation import L
from torch import nn

from fastai_heads.data.given import check_loaders
from fastai_heads.data.inspect import Inspected
from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner.arguments import check_arguments
from fastai_heads.learner.guards import same_data
from fastai_heads.learner.trial import Trial, run_trial
from fastai_heads.learner.trial_metrics import check_metrics, fitting_metrics, shared_metrics
from fastai_heads.model import MultiHeadModel
from fastai_heads.training.bound import BoundHeads
from fastai_heads.training.metrics import HeadMetric, head_metrics
from fastai_heads.training.step import CombinedLoss, combined_loss
from fastai_heads.training.strategies.base import Strategy

__all__ = [
    "accept_trial",
    "bind_strategy",
    "check_groups",
    "check_loss",
    "check_model",
    "check_strategy",
    "checked",
    "exchange_data",
    "own_metrics",
    "spread_metrics",
]


def checked(
    method: Callable,  # of fastai's `Learner`
) -> Callable:
    "Return the method, which refuses arguments of a wrong type before it does anything."

    @wraps(method)
    def run(self: Learner, *args: Any, **kwargs: Any) -> Any:
        given = signature(method).bind(self, *args, **kwargs).arguments
        check_arguments(method.__name__, given)
        check_groups(self, given)
        return method(self, *args, **kwargs)

    return run


def check_groups(
    learn: Learner,  # a `MultiHeadLearner`
    given: Mapping[str, Any],  # arguments of training
) -> None:
    "Refuse a list of rates, or of weight decays, of another length than there are groups of parameters."
    for name in ("lr", "lr_max", "base_lr", "wd"):
        value = given.get(name)
        n = len(value) if isinstance(value, list | tuple | L | np.ndarray) and np.ndim(value) else 1
        if n > 1 and n != (groups := len(learn.splitter(learn.model))):
            raise HeadsError(
                f"`{name}` has {n} values, and there are {groups} groups of parameters, of the body and one for all "
                f"heads. `slice(1e-5, 1e-3)` spreads rates over them."
            )


def check_model(
    model: nn.Module,  # that is to be the learner's
) -> nn.Module:  # the same
    "Refuse a network that is none of a body and heads."
    if not isinstance(model, nn.Module) or not isinstance(get_model(model), MultiHeadModel):
        raise HeadsError(
            f"`model` of a learner with several heads is a network of a body and heads, found {type(model).__name__}: "
            "another network needs another learner, `multihead_learner(dls, net)`."
        )
    return model


def check_loss(
    loss_func: Callable,  # that is to be the learner's
) -> Callable:  # the same
    "Refuse a loss that is not the sum of the heads' own."
    if not isinstance(combined_loss(loss_func), CombinedLoss):  # `MixUp` and `CutMix` wrap it while they train
        raise HeadsError(
            "`loss_func` of a learner with several heads is the sum of theirs, and each head's is `loss=` of its "
            f"spec: `multihead_learner(dls, arch, heads={{name: ClassificationHead(loss={_name(loss_func)})}})`. "
            "How they become one is `learn.heads.<name>.loss_weight` and `learn.strategy`."
        )
    return loss_func


def own_metrics(
    heads: BoundHeads,  # of a learner
) -> list[HeadMetric]:
    "List the metrics that the heads' specs name, or their kinds' defaults."
    return [metric for place, head in enumerate(heads.values()) for metric in head_metrics(head, place)]


def spread_metrics(
    learn: Learner,  # a `MultiHeadLearner`
    metrics: Any,  # what is to be `learn.metrics`
) -> L:
    """Give each of a user's metrics to every head that can take it and whose spec names none. Those of `learn.metrics`
    itself stay as they are."""
    bound = [m for m in L(metrics) if isinstance(m, HeadMetric)]
    given = [m for m in L(metrics) if not isinstance(m, HeadMetric)]
    if given:
        batch = draw_sample(learn.dls, learn.data_targets).batch() if len(learn.dls.train_ds) else None
        trial = None if batch is None else run_trial(learn.model, batch, _specs(learn))
        shared = shared_metrics(learn, trial, given)
        bound = [*bound, *shared] if bound else fitting_metrics(shared, own_metrics(learn.heads))
    return L(bound).map(mk_metric)


def accept_trial(
    learn: Learner,  # a `MultiHeadLearner`
    trial: Trial,  # of this network on this data
    metrics: Any = None,  # for every head that can take them and whose spec names none
) -> None:
    "Refuse heads and metrics that the trial shows not to work; the metrics that do are the learner's."
    trial.check(tuple(learn.heads.values()))
    own = check_metrics(learn, trial, learn.metrics)
    given = [] if metrics is None else list(L(metrics))
    learn.metrics = fitting_metrics(shared_metrics(learn, trial, given), own)


def exchange_data(
    learn: Learner,  # a `MultiHeadLearner`
    dls: DataLoaders,  # with the same targets and vocabularies
) -> DataLoaders:  # one target for each head
    "Bind the heads to the targets of new data. Refuse data that does not fit; then nothing has changed."
    check_loaders(dls)
    before = learn.data_targets
    data = same_data(dls, before, learn.heads)
    _bind_targets(learn, data.targets)
    try:
        _try_data(learn, data)
    except HeadsError:
        _bind_targets(learn, before)
        raise
    return data.dls


def _bind_targets(learn: Learner, targets: Sequence[Target]) -> None:
    learn.data_targets = tuple(targets)
    for head in learn.heads.values():
        head.target = learn.data_targets[head.target.index]


def _try_data(learn: Learner, data: Inspected) -> None:
    "Refuse data that the network or a head cannot take. What was tried already, and data without items, is not."
    if data.sample is None or (learn.tried_dls is not None and learn.tried_dls() is data.dls):
        return
    get_model(learn.model)[0].check_inputs(data.sample.inputs())
    run_trial(learn.model, data.sample.batch(), _specs(learn)).check(tuple(learn.heads.values()))
    learn.tried_dls = ref(data.dls)


def _specs(learn: Learner) -> dict[str, tuple[HeadSpec, Target]]:
    return {name: (head.spec, head.target) for name, head in learn.heads.items()}


def check_strategy(
    learn: Learner,  # a `MultiHeadLearner`
    strategy: Strategy,  # that is to be its own
    heads: BoundHeads,  # that it is to have
) -> None:
    "Refuse a strategy that does not fit the heads or the network."
    strategy.check(heads)
    strategy.check_model(learn.model)


def bind_strategy(
    learn: Learner,  # a `MultiHeadLearner`, whose strategy or heads are new
) -> None:
    "Put what the strategy learns beside the heads, on their device. The optimizer starts anew."
    model = get_model(learn.model)
    module = learn.strategy.module(learn.heads)
    model[1].strategy = None if module is None else module.to(next(model.parameters()).device)
    frozen, learn.opt = getattr(learn.opt, "frozen_idx", 0), None
    if frozen:
        learn.freeze_to(frozen)


def _name(value: object) -> str:
    return getattr(value, "__name__", None) or f"{type(value).__name__}()"
