"""fastai's `Learner` for a body with several heads."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

from fastai.callback.core import Callback, CancelBackwardException, CancelStepException
from fastai.callback.fp16 import AMPMode
from fastai.callback.tracker import TrackerCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Recorder
from fastai.torch_core import distrib_barrier, get_model
from fastcore.basics import detuplify
from fastcore.foundation import L
from fastcore.xtras import join_path_file
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from fastai_heads.data.loaders import with_test_dl
from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, HeadsWarning, writing
from fastai_heads.export.bundle import save_bundle
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner import editing, frozen, items, predictions, ranks, settings
from fastai_heads.learner.arguments import SETTINGS, check_arguments, check_settings
from fastai_heads.learner.compiled import compile_learner
from fastai_heads.learner.export import export
from fastai_heads.learner.folder import predict_folder
from fastai_heads.learner.guards import check_batches
from fastai_heads.learner.head_view import head_learner
from fastai_heads.learner.suggest import suggest_weights
from fastai_heads.learner.weights import (
    check_file_name,
    check_load_arguments,
    check_optimizer_state,
    check_state_fits,
    load_vision_weights,
    load_what_fits,
    save_whole,
)
from fastai_heads.model import body_and_heads
from fastai_heads.modes import compile_in_place, evaluate
from fastai_heads.training.average import EMACallback
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.callbacks import are_callbacks, check_callbacks
from fastai_heads.training.conflict_record import ConflictRecord
from fastai_heads.training.mixing import Targets
from fastai_heads.training.monitors import HeadsMonitor
from fastai_heads.training.optimizer import create_opt
from fastai_heads.training.precision import DevicePrecision, check_scaler, warn_of_half
from fastai_heads.training.step import CombinedLoss, combined_loss, run_batch
from fastai_heads.training.strategies.base import Strategy, StrategyCallback
from fastai_heads.training.strategies.choose import as_strategy
from fastai_heads.training.trackers import set_direction
from fastai_heads.values import check_value, is_device
from fastai_heads.view.conflict_charts import draw_affinity, draw_conflict, draw_weights
from fastai_heads.view.diagram import draw_heads, write_heads
from fastai_heads.view.losses import DrawnRecorder
from fastai_heads.view.summary import Summary, summarize

__all__ = ["MultiHeadLearner"]


class MultiHeadLearner(Learner):
    """fastai's `Learner` over a `MultiHeadModel`: every head trained, measured, predicted and shown.

    Made by `multihead_learner`. `learn.heads` holds the heads, by name and by attribute. A method that is not written
    out here is a function of the learner, in the module that bears its name."""

    conflict: ConflictRecord | None = None  # what a `ConflictRecorder` saw of the last fit
    stored_taps: frozen.StoredTaps | None = None  # what `fit_heads` stored; None frees its memory
    tap_report: Any = None  # the `TapReport` by which probes chose taps, where they did

    fit_one_cycle = settings.checked(Learner.fit_one_cycle)
    fit_flat_cos = settings.checked(Learner.fit_flat_cos)
    fit_sgdr = settings.checked(Learner.fit_sgdr)
    lr_find = settings.checked(Learner.lr_find)
    freeze_to = settings.checked(Learner.freeze_to)
    fine_tune = frozen.fine_tune
    fit_heads = frozen.fit_heads
    suggest_weights = suggest_weights

    validation_context = predictions.validation_context
    test_dl = predictions.test_dl
    get_preds = predictions.get_preds
    predict = items.predict
    predict_many = items.predict_many
    validate = predictions.validate
    tta = predictions.tta
    show_batch = predictions.show_batch
    show_results = predictions.show_results

    distrib_ctx = ranks.distrib_ctx
    to_distributed = ranks.to_distributed
    detach_distributed = ranks.detach_distributed
    to_detach = ranks.to_detach

    head = head_learner
    set_dls = editing.set_dls
    add_head = editing.add_head
    drop_head = editing.drop_head
    predict_folder = predict_folder
    compile = compile_learner
    export = export
    save_bundle = save_bundle

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
        self.tried_dls: ref[DataLoaders] | None = ref(dls)
        super().__init__(
            dls,
            model,
            loss_func=CombinedLoss(self.heads),
            splitter=body_and_heads,
            metrics=settings.own_metrics(self.heads),
            **learner_kwargs,
        )
        recorders = self._grab_cbs(Recorder)
        for recorder in recorders:
            self.remove_cb(recorder)
            self.add_cb(DrawnRecorder(recorder.add_time, recorder.train_metrics, recorder.valid_metrics))
        if recorders:  # none where fastai's `default_cbs` is false
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
        settings.check_strategy(self, strategy, self.heads)
        self._strategy = strategy
        settings.bind_strategy(self)

    @property
    def model(self) -> nn.Module:
        "The network, (body, heads). One that `torch.compile` has wrapped is compiled in place."
        return self.__dict__.get("_model")  # fastai looks for what is not there yet in the model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = settings.check_model(compile_in_place(model))

    @property
    def loss_func(self) -> CombinedLoss:
        "The sum of the heads' losses, which are those of their specs."
        return self._loss_func

    @loss_func.setter
    def loss_func(self, value: Callable) -> None:
        self._loss_func = settings.check_loss(value)

    @property
    def metrics(self) -> L:
        """The metrics of every head. It may be set: as with `metrics=` of `multihead_learner`, each of the metrics goes
        to every head that can take it and whose spec names none. Those of `learn.metrics` itself stay as they are."""
        return self._metrics

    @metrics.setter
    def metrics(self, value: Any) -> None:
        self._metrics = settings.spread_metrics(self, value)

    @property
    def dls(self) -> DataLoaders:
        """The data. New data must have the same targets and vocabularies, and a few of its items are tried in the
        network and in every head's loss. Where they do not fit, a `HeadsError` is raised and nothing has changed."""
        return self._dls

    @dls.setter
    def dls(self, dls: DataLoaders) -> None:
        self._dls = with_test_dl(settings.exchange_data(self, dls) if hasattr(self, "_dls") else dls)

    @property
    def ranks(self) -> int:
        "How many processes train together: those of `distrib_ctx`, or one."
        trainer = getattr(self, "distributed_trainer", None)
        return 1 if trainer is None else trainer.accelerator.num_processes

    @property
    def y(self) -> Any:
        "The batch's target; several as one `Targets`, which can be measured and shuffled as a tensor is."
        return Targets(self.yb) if len(self.yb) > 1 else detuplify(self.yb)

    def __setattr__(self, name: str, value: Any) -> None:
        "Refuse a setting with which a fit would fail."
        if name in SETTINGS and not hasattr(type(self), name):  # a property checks its own
            check_settings({name: value})
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        "Leave out what points to the data that was tried, and what is stored of it."
        return {**super().__getstate__(), "tried_dls": None, "stored_taps": None}

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
        "Train. Raises `HeadsError` before the first step where an argument, a batch or a callback would not work."
        given = {"n_epoch": n_epoch, "lr": lr, "wd": wd, "cbs": cbs, "reset_opt": reset_opt, "start_epoch": start_epoch}
        check_arguments("fit", given)
        settings.check_groups(self, given)
        check_batches(self.dls, self.model, self.ranks)
        check_callbacks(self, L(cbs))
        settings.check_strategy(self, self.strategy, self.heads)
        try:
            super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            self.loss_func = combined_loss(self.loss_func)  # `MixUp` leaves its own there after an error

    def add_cb(self, cb: Callback | type) -> "MultiHeadLearner":
        "Add a callback. A tracker (`SaveModelCallback`, …) learns which way its metric is better."
        are_callbacks([cb])
        cb = cb() if isinstance(cb, type) else cb
        if isinstance(cb, TrackerCallback):
            set_direction(cb, self.metrics)
        if isinstance(cb, EMACallback) and any(isinstance(other, EMACallback) for other in self.cbs):
            raise HeadsError("`cbs`: the learner has an EMACallback already, and one average is kept. Leave one out.")
        super().add_cb(cb)
        if isinstance(cb, EMACallback):
            cb.begin()
        return self

    def remove_cb(self, cb: Callback | type) -> "MultiHeadLearner":
        "Remove a callback, or all of a class."
        are_callbacks([cb])
        for found in self.cbs:
            if isinstance(found, EMACallback) and cb in (found, type(found)):
                found.leave()
        return super().remove_cb(cb)

    def to_fp16(self, **kwargs) -> "MultiHeadLearner":
        "Train in float16, on any device that has autocast. Keywords go to `GradScaler`. On a CPU it is slow."
        warn_of_half(self.dls.device)
        return self.add_cb(DevicePrecision(AMPMode.FP16, **check_scaler(kwargs)))

    def to_bf16(self) -> "MultiHeadLearner":
        "Train in bfloat16, on any device that has autocast."
        return self.add_cb(DevicePrecision(AMPMode.BF16))

    def create_opt(self) -> None:
        "Make the optimizer: fastai's, one with a learning rate for every head, or the strategy's own."
        self.opt = create_opt(self)
        if not self.wd_bn_bias:
            for state in self._bn_bias_state(True):
                state["do_wd"] = False
        if self.train_bn:
            for state in self._bn_bias_state(False):
                state["force_train"] = True
        body = get_model(self.model)[0]
        held = set(body.held())
        for param in (p for p in body.parameters() if p not in held):  # `freeze` holds what is pretrained
            self.opt.state[param]["force_train"] = True

    def _do_one_batch(self) -> None:
        run_batch(self)

    def _do_grad_opt(self) -> None:
        self._with_events(self._backward, "backward", CancelBackwardException)
        self._with_events(self._step, "step", CancelStepException)
        self.strategy.clear(self)

    def _backward(self) -> None:
        self.strategy.backward(self)

    # looking and loading

    def summary(self) -> Summary:
        "Tell what was removed from the pretrained network, what the body keeps, and what each head adds."
        inputs = self._sample()
        with evaluate(self.model):
            return summarize(self, get_model(self.model)(*inputs) if inputs else None)

    def show_heads(
        self,
        format: str = "figure",  # or 'mermaid': text for a README, which GitHub draws
    ) -> Figure | str:
        """Draw the network: body, taps, trunks, heads, their shapes, parameters, losses, and what is frozen.
        `learn.show_heads().savefig("heads.svg")` saves it as SVG."""
        if format not in ("figure", "mermaid"):
            raise HeadsError(f"`format` of `show_heads` is 'figure' or 'mermaid', found {format!r}.")
        return (draw_heads if format == "figure" else write_heads)(self, self._sample())

    def plot_conflict(self) -> Figure:
        "Draw what a `ConflictRecorder` saw: cosines between the heads' gradients, their norms, and shares of the step."
        return draw_conflict(self.conflict)

    def plot_affinity(
        self,
        ax: Axes | None = None,  # to draw on; None: a new figure
    ) -> Axes:
        "Draw which head's steps help or harm which other's loss, as a `ConflictRecorder` saw it, and suggested groups."
        return draw_affinity(self.conflict, ax)

    def plot_weights(
        self,
        ax: Axes | None = None,  # to draw on; None: a new figure
    ) -> Axes:
        "Draw the weight of each head after every step, as a `ConflictRecorder` saw them in a fit."
        return draw_weights(self.conflict, ax)

    def _sample(self) -> tuple:
        "Give one item's inputs, where the model is. There is none where `export` has left no item."
        if not len(self.dls.train_ds):
            return ()
        return draw_sample(self.dls, n=1).inputs(device=next(self.model.parameters()).device)

    def save(
        self,
        file: str | Path,  # a name in `path/model_dir`, or a path
        **kwargs,  # fastai's: `with_opt`, `pickle_protocol`
    ) -> Path:  # the file
        "Save the weights and the optimizer's state. After an error the file is the old one, whole."
        check_file_name(file)
        with writing(self.path / self.model_dir, (OSError,)):  # which is made
            file = self._weights_file(file)
        return save_whole(self, file, **kwargs)

    def load(
        self,
        file: str | Path,  # what `learn.save` wrote: a name in `path/model_dir`, or a path
        device: Any = None,  # fastai's
        strict: bool = True,  # refuse a file that does not fit
        **kwargs,  # fastai's: `with_opt`
    ) -> "MultiHeadLearner":
        """Load weights. Raises `HeadsError`, and nothing has changed, for those of another arch or of other heads.
        With `strict=False` parts are loaded by name, and a `HeadsWarning` says which were left as they are. No code of
        the file runs, also with `weights_only=False`, which fastai's `SaveModelCallback` passes."""
        check_load_arguments(file, strict, kwargs)
        fits = device is None or is_device(device)
        check_value("device", "`load`", device, fits, "a device of torch that is there, such as 'cpu'")
        kwargs["weights_only"] = True
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
        check_file_name(file)
        model = get_model(self.model)
        load_vision_weights(model, self._weights_file(file), head)
        if (average := getattr(model[1], "average", None)) is not None:
            average.restart()
        return self

    def _weights_file(self, file: str | Path) -> Path:
        "Find fastai's place for a name. A path, with its suffix or without, stays what it is."
        return join_path_file(str(file).removesuffix(".pth"), self.path / self.model_dir, ext=".pth")
