"""Learners that a comparison trains: made anew from a seed, measured head by head."""

import random
from collections.abc import Callable
from inspect import signature
from typing import Any
from weakref import WeakSet

from fastai.torch_core import get_model, no_random

from fastai_heads.compare.table import Measure
from fastai_heads.errors import HeadsError, did_you_mean, unknown
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.training.metrics import HeadMetric
from fastai_heads.training.strategies.base import WeightedSum

__all__ = ["Factory", "counts", "describe", "find_measures", "one_cycle", "takes", "validate"]


class Factory:
    "The user's factory, from a seed, and checked to give a fresh learner every time."

    def __init__(self, learn_factory: Callable[[Any], MultiHeadLearner]):
        self.learn_factory, self._seen = learn_factory, WeakSet()

    def __call__(self, strategy: Any, seed: int) -> MultiHeadLearner:
        with no_random(seed):
            learn = self.learn_factory(strategy)
        if not isinstance(learn, MultiHeadLearner):
            raise HeadsError(f"`learn_factory` makes a MultiHeadLearner, found {type(learn).__name__}.")
        if learn.model in self._seen:
            raise HeadsError("`learn_factory` gave the same network twice: make the learner anew in every call.")
        self._seen.add(learn.model)
        if strategy is not None and isinstance(learn.strategy, WeightedSum):
            raise HeadsError(
                "`learn_factory` does not pass its strategy on: `multihead_learner(…, strategy=strategy)`."
            )
        for loader in learn.dls.loaders:
            loader.rng = random.Random(seed)  # the order of the batches, also where learners share the data
        return learn


def one_cycle(
    learn: MultiHeadLearner,  # fresh
    epochs: int,  # the budget
) -> None:
    "Train as by default."
    learn.fit_one_cycle(epochs)


def find_measures(learn: MultiHeadLearner, metrics: dict[str, str]) -> dict[str, Measure]:
    "Say what each head that decodes a target is judged by: the metric asked for, else its first, else its loss."
    if len(learn.heads) < 2:
        raise HeadsError(f"`learn_factory` makes a learner with several heads, found {', '.join(learn.heads)} alone.")
    found = {}
    for head in learn.heads.deciding:
        own = {m.name: Measure(m.name, m.higher_is_better) for m in _metrics_of(learn, head.name)}
        own[f"{head.name}_loss"] = Measure(f"{head.name}_loss", False)
        wanted = metrics.pop(head.name, next(iter(own)))
        if wanted not in own:
            near = did_you_mean(wanted, own)
            raise HeadsError(f"`metrics[{head.name!r}]` is one of {', '.join(own)}, found {wanted!r}.{near}")
        found[head.name] = own[wanted]
    for name in metrics:
        raise unknown("head that decodes a target", name, found)
    return found


def _metrics_of(learn: MultiHeadLearner, name: str) -> list[HeadMetric]:
    return [m for m in learn.metrics if isinstance(m, HeadMetric) and m.head.name == name]


def validate(learn: MultiHeadLearner) -> dict[str, float]:
    "Measure every head's loss and metrics on the validation set, by the name of the table's column."
    columns = ["loss", *(f"{name}_loss" for name in learn.heads), *(m.name for m in learn.metrics)]
    values = ["nan" if value is None else value for value in learn.validate()]
    return dict(zip(columns, map(float, values), strict=True))


def describe(learn: MultiHeadLearner, epochs: int) -> dict[str, Any]:
    "Describe a comparison: runs of another one are not to be mixed with its."
    heads = {name: f"{head!r}, loss weight {head.loss_weight:g}" for name, head in learn.heads.items()}
    return {
        "epochs": epochs,
        "arch": get_model(learn.model)[0].arch,
        "parameters": sum(p.numel() for p in learn.model.parameters()),
        "training items": len(learn.dls.train_ds),
        "validation items": len(learn.dls.valid_ds),
        "batch size": learn.dls.train.bs,
        "heads": heads,
    }


def takes(function: Callable, n: int) -> bool:
    "Tell whether a function can be called with so many arguments."
    try:
        signature(function).bind(*range(n))
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say
        return True
    return True


def counts(value: object) -> bool:
    "Tell whether a value is a whole number of at least 1."
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
