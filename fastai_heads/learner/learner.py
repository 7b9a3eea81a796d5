"""fastai's `Learner` for a body with several heads."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode
from fastai.callback.tracker import TrackerCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Metric, Recorder
from fastai.optimizer import OptimWrapper, _BaseOptimizer
from fastai.torch_core import distrib_barrier, get_model
from fastcore.basics import detuplify
from fastcore.foundation import L
from fastcore.xtras import join_path_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner.arguments import check_arguments
from fastai_heads.learner.editing import add_module, added_spec, restandardize
from fastai_heads.learner.export import HeadsExport
from fastai_heads.learner.guards import check_batches
from fastai_heads.learner.head_view import head_learner
from fastai_heads.learner.predictions import HeadPredictions
from fastai_heads.learner.settings import CheckedLearner
from fastai_heads.learner.trial import Trial, run_trial
from fastai_heads.learner.trial_metrics import check_metrics
from fastai_heads.learner.weights import (
    check_load_arguments,
    check_optimizer_state,
    check_state_fits,
    load_vision_weights,
    load_what_fits,
)
from fastai_heads.model import body_and_heads
from fastai_heads.modes import evaluate
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.callbacks import are_callbacks, check_callbacks
from fastai_heads.training.fused_optimizer import fuse
from fastai_heads.training.loss import CombinedLoss
from fastai_heads.training.metrics import HeadMetric, head_metrics
from fastai_heads.training.mixing import Targets, batch_losses, combined_loss
from fastai_heads.training.monitors import HeadsMonitor
from fastai_heads.training.optimizer import multiplied
from fastai_heads.training.precision import DevicePrecision, warn_of_half
from fastai_heads.training.recorder import HeadsRecorder
from fastai_heads.training.strategies.base import Strategy
from fastai_heads.training.strategies.callback import StrategyCallback
from fastai_heads.training.strategies.resolve import as_strategy
from fastai_heads.training.trackers import set_direction
from fastai_heads.view.conflict import draw_conflict, draw_weights
from fastai_heads.view.diagram import draw_heads
from fastai_heads.view.summary import Summary, summarize

__all__ = ["MultiHeadLearner"]


class MultiHeadLearner(CheckedLearner, HeadPredictions, HeadsExport):
    """fastai's `Learner` over a `MultiHeadModel`: every head trained, measured, predicted and shown.

    Made by `multihead_learner`. `learn.heads` holds the heads, by name and by attribute."""

    def __init__(
        self,
        dls: DataLoaders,  # with the targets that the specs were fitted to
        model: nn.Module,  # a `MultiHeadModel`, perhaps wrapped
        specs: Mapping[str, tuple[HeadSpec, Target]],  # name → (fitted spec, its target), in head order
        targets: Sequence[Target],  # every target of the data, in order, also those without a head
        strategy: Any = None,  # how the losses become one step, as for `multihead_learner`
        fused: bool = True,  # step fastai's `Adam` and `SGD` by torch's fused kernels
        **learner_kwargs: Any,  # fastai's `Learner`'s: opt_func, lr, cbs, path, model_dir, wd, moms, …
    ):
        self.fused = fused
        self.data_targets = tuple(targets)  # not `targets`: fastai's callbacks set that on themselves
        self.heads = BoundHeads({name: BoundHead(name, spec, t, model[1]) for name, (spec, t) in specs.items()})
        self._tried: ref[DataLoaders] | None = ref(dls)
        super().__init__(
            dls,
            model,
            loss_func=CombinedLoss(self.heads),
            splitter=body_and_heads,
            metrics=self._own_metrics(),
            **learner_kwargs,
        )
        for recorder in self._grab_cbs(Recorder):
            self.remove_cb(recorder)
            self.add_cb(HeadsRecorder(recorder.add_time, recorder.train_metrics, recorder.valid_metrics))
            self.add_cb(HeadsMonitor())
        self.add_cb(StrategyCallback())
        self.strategy = strategy

    @property
    def strategy(self) -> Strategy:
        """How the losses of the heads become one step. It may be set: `learn.strategy = UPGrad()`; the optimizer starts
        anew then. Raises `HeadsError`, and nothing has changed, where it does not fit the heads."""
        return self._strategy

    @strategy.setter
    def strategy(self, value: Any) -> None:
        strategy = as_strategy(value, len(self.heads))
        self._check_strategy(strategy, self.heads)
        self._strategy = strategy
        self._bind_strategy()
        self._renew_opt()

    # training

    def fit(
        self,
        n_epoch: int,
        lr: float | slice | None = None,
        wd: float | None = None,
        cbs: Any = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
    ) -> None:
        "fastai's `fit`. Raises `HeadsError` before the first step where an argument, batch or callback would not work."
        given = {"n_epoch": n_epoch, "lr": lr, "wd": wd, "cbs": cbs, "reset_opt": reset_opt, "start_epoch": start_epoch}
        check_arguments("fit", given)
        check_batches(self.dls, self.model, self.ranks)
        check_callbacks(self, L(cbs))
        self._check_strategy(self.strategy, self.heads)
        try:
            super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            self.loss_func = combined_loss(self.loss_func)  # `MixUp` leaves its own there after an error

    def add_cb(self, cb: Callback | type) -> "MultiHeadLearner":
        "fastai's. A tracker (`SaveModelCallback`, …) learns which way its metric is better, unless `comp` says so."
        are_callbacks(cb)
        cb = cb() if isinstance(cb, type) else cb
        if isinstance(cb, TrackerCallback):
            set_direction(cb, self.metrics)
        return super().add_cb(cb)

    def to_fp16(self, **kwargs) -> "MultiHeadLearner":
        "fastai's, on any device that has autocast; keywords go to `GradScaler`. Slow on a CPU, which is said once."
        warn_of_half(self.dls.device)
        return self.add_cb(DevicePrecision(AMPMode.FP16, **kwargs))

    def to_bf16(self) -> "MultiHeadLearner":
        "fastai's, on any device that has autocast."
        return self.add_cb(DevicePrecision(AMPMode.BF16))

    @property
    def y(self) -> Any:
        "The batch's target; several as one `Targets`, which can be measured and shuffled as a tensor is."
        return Targets(self.yb) if len(self.yb) > 1 else detuplify(self.yb)

    def create_opt(self) -> None:
        """fastai's, or the strategy's: with a group per learning rate where heads have an `lr_mult`, or one per head.
        Their steps are fused ones, unless `fused` is false."""
        opt_func = self.opt_func
        maker = self.strategy.opt_maker(opt_func)
        maker = fuse(maker) if self.fused else maker
        try:
            if self.strategy.own_opt or any(head.spec.lr_mult != 1 for head in self.heads.values()):
                maker = self._own_maker(maker)
            self.opt_func = maker
            super().create_opt()
        finally:
            self.opt_func = opt_func
        kept = get_model(self.model)[1].strategy
        for param in kept.parameters() if kept is not None else ():
            self.opt.state[param]["do_wd"] = False
        body = get_model(self.model)[0]
        held = set(body.held())
        for param in (p for p in body.parameters() if p not in held):  # `freeze` holds what is pretrained
            self.opt.state[param]["force_train"] = True

    def _own_maker(self, maker: Callable) -> Callable:
        if isinstance(maker, OptimWrapper):
            raise HeadsError(
                "`opt_func` is an optimizer that is made already, which cannot keep the heads' `lr_mult` or states: "
                "pass what makes one, such as `partial(OptimWrapper, opt=torch.optim.AdamW)`."
            )
        # a partial, as fastai takes the learner's rate from the keywords of one
        return partial(self._own_opt, maker, **getattr(self.opt_func, "keywords", {}))

    def _own_opt(self, opt_func: Callable, groups: list, lr: float | slice, **_keywords) -> _BaseOptimizer:
        return self.strategy.make_opt(opt_func, multiplied(groups, self.heads), self.heads, lr)

    def _renew_opt(self) -> None:
        "The optimizer starts anew, and what was frozen stays frozen."
        frozen, self.opt = getattr(self.opt, "frozen_idx", 0), None
        if frozen:
            self.freeze_to(frozen)

    def _check_strategy(self, strategy: Strategy, heads: BoundHeads) -> None:
        strategy.check(heads)
        strategy.check_model(self.model)

    def _bind_strategy(self) -> None:
        "What the strategy learns stands beside the heads, on their device."
        model = get_model(self.model)
        kept = self.strategy.module(self.heads)
        model[1].strategy = None if kept is None else kept.to(next(model.parameters()).device)

    def _do_one_batch(self) -> None:
        self.pred = self.strategy.predict(self) if self.training else self.model(*self.xb)
        self("after_pred")
        if len(self.yb):
            self.take_losses()
            self.loss_grad = self.strategy.objective(self) if self.training else self.loss.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()

    def take_losses(self) -> None:
        "Each head's loss of this batch, and their sum without a graph."
        self.head_losses = batch_losses(self.loss_func, self.pred, self.yb)
        self.loss = combined_loss(self.loss_func).total([loss.detach().float() for loss in self.head_losses])

    def _backward(self) -> None:
        self.strategy.backward(self)

    def set_dls(
        self,
        dls: DataLoaders,  # with the same targets and vocabularies
        statistics: bool = False,  # take the mean and deviation of regression targets anew from its labels
    ) -> None:
        "`learn.dls = dls`, which keeps the statistics of the first data, or with those of the new."
        self.dls = dls
        if statistics:
            for head in self.heads.values():
                restandardize(head, dls)

    # one head, other heads

    def head(
        self,
        name: str,  # of the head
    ) -> Learner:
        """A plain fastai `Learner` over the same weights with one head and one target: `ClassificationInterpretation`,
        `show_results`, hooks on its `model[0]`, `lr_find`, `export`, and `fit`, which trains that head and the body."""
        return head_learner(self, name)

    def add_head(
        self,
        name: str,  # of the new head, the last in the order
        head: HeadSpec,  # what it is
        target: str | int | None = None,  # what it predicts, by name or index; None: as the spec says, or `name`
    ) -> BoundHead:
        """One head more on a trained learner: body and other heads stay bit for bit, what was frozen stays frozen, the
        optimizer starts anew. Raises `HeadsError`, and nothing has changed, where the head does not fit."""
        spec, target = added_spec(self, name, head, target)
        network, place = get_model(self.model), len(self.heads)
        added = BoundHead(name, spec, target, network[1])
        self._check_strategy(self.strategy, BoundHeads({**self.heads, name: added}))
        add_module(network, name, spec)
        before = dict(self.heads)
        try:
            trial = self._trial_with(added)
            added.spec = trial.measured({name: (spec, target)})[name][0]
            trial.check([added])
            self._set_heads({**before, name: added})
            self.metrics = [*self.metrics, *check_metrics(self, trial, head_metrics(added, place))]
        except HeadsError:
            network[1].drop(name)
            self._set_heads(before)
            raise
        return added

    def _trial_with(self, added: BoundHead) -> Trial:
        "A few items through the network with one head more."
        heads = (*self.heads.values(), added)
        specs = {head.name: (head.spec, head.target) for head in heads}
        return run_trial(self.model, draw_sample(self.dls, self.data_targets).batch(), specs)

    def drop_head(
        self,
        name: str,  # of the head
    ) -> None:
        "One head less on a trained learner; body and other heads stay bit for bit."
        dropped = self.heads[name]
        if len(self.heads) == 1:
            raise HeadsError(f"`name`: {name!r} is the only head; a learner needs one.")
        heads = {n: h for n, h in self.heads.items() if h is not dropped}
        self._check_strategy(self.strategy, BoundHeads(heads))
        get_model(self.model)[1].drop(dropped.name)
        self._set_heads(heads)
        places = {n: place for place, n in enumerate(self.heads)}
        self.metrics = [_at(m, places) for m in self.metrics if getattr(m, "head", None) is not dropped]

    def _set_heads(self, heads: Mapping[str, BoundHead]) -> None:
        self.heads = BoundHeads(heads)
        self.loss_func.heads = self.heads
        self._bind_strategy()
        self._renew_opt()

    # looking and loading

    def summary(self) -> Summary:
        "What was removed from the pretrained network, what the body keeps, what each head adds."
        inputs = self._sample()
        with evaluate(self.model):
            return summarize(self, get_model(self.model)(*inputs) if inputs else None)

    def show_heads(self) -> Figure:
        "The network as a diagram: body, taps, trunks, heads, their shapes, parameters, losses, and what is frozen."
        return draw_heads(self, self._sample())

    def plot_conflict(self) -> Figure:
        "Cosines between the heads' gradients, norms and shares of the step, as a `ConflictRecorder` saw them in a fit."
        return draw_conflict(getattr(self, "conflict", None))

    def plot_weights(
        self,
        ax: Axes | None = None,  # to draw on; None: a new figure
    ) -> Axes:
        "The weight of each head after every step, as a `ConflictRecorder` saw them in a fit."
        return draw_weights(getattr(self, "conflict", None), ax)

    def _sample(self) -> tuple:
        "One item's inputs where the model is; none where `export` has left no item."
        if not len(self.dls.train_ds):
            return ()
        return draw_sample(self.dls, n=1).inputs(device=next(self.model.parameters()).device)

    def load(
        self,
        file: str | Path,  # what `learn.save` wrote: a name in `path/model_dir`, or a path
        device: Any = None,  # fastai's
        strict: bool = True,  # refuse a file that does not fit
        **kwargs,  # fastai's: `with_opt`
    ) -> "MultiHeadLearner":
        """fastai's `load`. Raises `HeadsError`, and nothing has changed, for weights of another arch or of other heads.
        With `strict=False` parts are loaded by name, and a `HeadsWarning` says which were left as they are."""
        check_load_arguments(file, strict, kwargs)
        distrib_barrier()  # the first rank may still be writing it
        if strict:
            check_state_fits(get_model(self.model), self._weights_file(file))
            if kwargs.get("with_opt"):
                check_optimizer_state(self._weights_file(file))
            return super().load(str(file).removesuffix(".pth"), device=device, **kwargs)
        left = load_what_fits(get_model(self.model), self._weights_file(file))
        if left:
            said = "; ".join(f"{part}: {why}" for part, why in left.items())
            warnings.warn(f"left as they are: {said}", HeadsWarning, stacklevel=2)
        return self

    def load_vision_weights(
        self,
        file: str | Path,  # what `vision_learner(...).save` wrote: a name in `path/model_dir`, or a path
        head: str | None = None,  # the head that takes the head's weights; None: the only one
    ) -> "MultiHeadLearner":
        "Load the weights of a fastai `vision_learner` of the same arch into the body and one head."
        load_vision_weights(get_model(self.model), self._weights_file(file), head)
        return self

    def _weights_file(self, file: str | Path) -> Path:
        "fastai's place for a name; a path, with its suffix or without, stays what it is."
        return join_path_file(str(file).removesuffix(".pth"), self.path / self.model_dir, ext=".pth")


def _at(metric: Metric, places: Mapping[str, int]) -> Metric:
    "A metric of a head at the head's place among the heads that are left."
    if isinstance(metric, HeadMetric):
        metric.place = places[metric.head.name]
    return metric
