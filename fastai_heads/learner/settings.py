"""What may be set on a learner, and what its training may be called with: anything else is refused at once."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any
from weakref import ref

import fastai.callback.schedule  # noqa: F401  gives `Learner` its `fit_one_cycle`, `fine_tune` and `lr_find`
from fastai.data.core import DataLoaders
from fastai.learner import Learner, mk_metric
from fastcore.foundation import L
from torch import nn

from fastai_heads.data.inspect import Inspected
from fastai_heads.data.loaders import with_test_dl
from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.learner.arguments import check_arguments
from fastai_heads.learner.guards import same_data
from fastai_heads.learner.trial import Trial, run_trial
from fastai_heads.learner.trial_metrics import check_metrics, fitting_metrics, shared_metrics
from fastai_heads.modes import compile_in_place
from fastai_heads.training.loss import CombinedLoss
from fastai_heads.training.metrics import HeadMetric, head_metrics
from fastai_heads.training.mixing import combined_loss

__all__ = ["CheckedLearner"]


def checked(
    method: Callable,  # of fastai's `Learner`
) -> Callable:
    "Return the method, which refuses arguments of a wrong type before it does anything."

    @wraps(method)
    def run(self: Learner, *args: Any, **kwargs: Any) -> Any:
        check_arguments(method.__name__, signature(method).bind(self, *args, **kwargs).arguments)
        return method(self, *args, **kwargs)

    return run


class CheckedLearner(Learner):
    "The part of `MultiHeadLearner` that refuses what would fail, or be ignored, in training."

    fit_one_cycle = checked(Learner.fit_one_cycle)
    fit_flat_cos = checked(Learner.fit_flat_cos)
    fit_sgdr = checked(Learner.fit_sgdr)
    fine_tune = checked(Learner.fine_tune)
    lr_find = checked(Learner.lr_find)

    @property
    def model(self) -> nn.Module:
        "The network, (body, heads). One that `torch.compile` has wrapped is compiled in place."
        return self.__dict__.get("_model")  # fastai looks for what is not there yet in the model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = compile_in_place(model)

    @property
    def loss_func(self) -> CombinedLoss:
        "The sum of the heads' losses, which are those of their specs."
        return self._loss_func

    @loss_func.setter
    def loss_func(self, value: Callable) -> None:
        if not isinstance(combined_loss(value), CombinedLoss):  # `MixUp` and `CutMix` wrap it while they train
            raise HeadsError(
                "`loss_func` of a learner with several heads is the sum of theirs, and each head's is `loss=` of its "
                f"spec: `multihead_learner(dls, arch, heads={{name: ClassificationHead(loss={_name(value)})}})`. "
                "How they become one is `learn.heads.<name>.loss_weight` and `learn.strategy`."
            )
        self._loss_func = value

    @property
    def metrics(self) -> L:
        """The metrics of every head. It may be set: as with `metrics=` of `multihead_learner`, each of the metrics goes
        to every head that can take it and whose spec names none. Those of `learn.metrics` itself stay as they are."""
        return self._metrics

    @metrics.setter
    def metrics(self, value: Any) -> None:
        kept = [m for m in L(value) if isinstance(m, HeadMetric)]
        given = [m for m in L(value) if not isinstance(m, HeadMetric)]
        if given:
            specs = {name: (head.spec, head.target) for name, head in self.heads.items()}
            batch = draw_sample(self.dls, self.data_targets).batch() if len(self.dls.train_ds) else None
            trial = None if batch is None else run_trial(self.model, batch, specs)
            shared = shared_metrics(self, trial, given)
            kept = [*kept, *shared] if kept else fitting_metrics(self, shared, self._own_metrics())
        self._metrics = L(kept).map(mk_metric)

    @property
    def dls(self) -> DataLoaders:
        """The data. New data must have the same targets and vocabularies, and a few of its items go through the network
        and every head's loss; else `HeadsError`, and nothing has changed."""
        return self._dls

    @dls.setter
    def dls(self, dls: DataLoaders) -> None:
        if hasattr(self, "_dls"):
            before = self.data_targets
            data = same_data(dls, before, self.heads)
            dls = data.dls
            self._set_targets(data.targets)
            try:
                self._try(data)
            except HeadsError:
                self._set_targets(before)
                raise
        self._dls = with_test_dl(dls)

    def _set_targets(self, targets: Sequence[Target]) -> None:
        self.data_targets = tuple(targets)
        for head in self.heads.values():
            head.target = self.data_targets[head.target.index]

    def _try(self, data: Inspected) -> None:
        "Refuse data that the network or a head cannot take. What was tried already, and data without items, is not."
        if data.sample is None or (self._tried is not None and self._tried() is data.dls):
            return
        specs = {name: (head.spec, head.target) for name, head in self.heads.items()}
        run_trial(self.model, data.sample.batch(), specs).check(tuple(self.heads.values()))
        self._tried = ref(data.dls)

    def __getstate__(self) -> dict[str, Any]:
        "Without what points to the data that was tried."
        return {**super().__getstate__(), "_tried": None}

    def accept(
        self,
        trial: Trial,  # of this network on this data
        metrics: Any = None,  # for every head that can take them and whose spec names none
    ) -> None:
        "Refuse heads and metrics that the trial shows not to work; the metrics that do are the learner's."
        trial.check(tuple(self.heads.values()))
        own = check_metrics(self, trial, self.metrics)
        given = [] if metrics is None else list(L(metrics))
        self.metrics = fitting_metrics(self, shared_metrics(self, trial, given), own)

    def _own_metrics(self) -> list[HeadMetric]:
        "The metrics that the heads' specs name, or their kinds' defaults."
        return [m for place, head in enumerate(self.heads.values()) for m in head_metrics(head, place)]


def _name(value: object) -> str:
    return getattr(value, "__name__", None) or f"{type(value).__name__}()"
