"""Each of fastai's callbacks on a learner with five targets and with one."""

import csv
import importlib
import sys
import types

import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, FetchPredsCallback, GatherPredsCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.preds import MCDropoutCallback
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedLin
from fastai.callback.training import BnFreeze, GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import BoxHead, ClassificationHead
from fastai_heads.learner import multihead_learner

from .conftest import ALL

BOTH = pytest.mark.parametrize("targets", [ALL, ("digit",)], ids=["five", "one"])


def fit(learn, epochs=1, lr=1e-3, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lr, **kwargs)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    return learn


def weights(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


class Each(Callback):
    "Calls a function at an event, with the learner."

    def __init__(self, **events):
        for name, func in events.items():
            setattr(self, name, lambda func=func: func(self.learn))


# losses, gradients, rates


@BOTH
def test_label_smoothing(learner, targets):
    learn = fit(learner(targets, {"digit": ClassificationHead(loss=LabelSmoothingCrossEntropyFlat(eps=0.3))}))
    (preds, *_), (targs, *_), losses = learn.get_preds(with_loss=True, act=lambda pred: pred)
    wanted = nn.functional.cross_entropy(preds, targs, label_smoothing=0.3, reduction="none")
    found = losses.digit if len(targets) > 1 else losses
    torch.testing.assert_close(found.as_subclass(torch.Tensor), wanted)


@BOTH
def test_gradient_accumulation_steps_when_enough_items_are_seen(learner, targets):
    learn, moved = learner(targets, opt_func=SGD), []
    before = weights(learn)

    def changed(learn):
        if learn.training:
            moved.append(not torch.equal(before[-1], weights(learn)[-1]))
            before[:] = weights(learn)

    fit(learn, cbs=[GradientAccumulation(n_acc=24), Each(after_batch=changed)])
    assert moved == [False, True, False, True]
    assert len(learn.recorder.losses_by_head["digit"]) == 4


@BOTH
def test_the_gradients_of_all_heads_are_clipped_together(learner, targets):
    norms = []

    class Norms(Callback):
        order = GradientClip.order + 1

        def before_step(self):
            norms.append(torch.stack([p.grad.norm() for p in self.learn.model.parameters()]).norm().item())

    fit(learner(targets), cbs=[GradientClip(0.01), Norms()])
    assert len(norms) == 4 and all(n == pytest.approx(0.01, rel=1e-3) for n in norms)


@pytest.mark.parametrize("heads", [None, {"digit": ClassificationHead(lr_mult=2.0), "box": BoxHead()}])
def test_rates_by_group(learner, heads):
    learn = learner(("digit", "box"), heads)
    learn.create_opt()
    groups = len(learn.opt.hypers)
    seen = []
    scheds = {"lr": lambda share: [SchedLin(i, 0)(share) for i in range(1, groups + 1)], "mom": SchedCos(0.9, 0.8)}
    watch = Each(after_batch=lambda learn: seen.append([h["lr"] for h in learn.opt.hypers]))
    fit(learn, cbs=[ParamScheduler(scheds), watch])
    assert seen[0] == list(range(1, groups + 1)) and seen[2] == [i / 2 for i in range(1, groups + 1)]
    assert len(learn.recorder.hps["mom"]) == 4


@BOTH
def test_batch_norm_and_short_epochs(learner, targets):
    learn = fit(learner(targets), cbs=[BnFreeze(), ShortEpochCallback(0.4)])
    assert len(learn.recorder.losses) < 4


# precision and memory


@BOTH
@pytest.mark.filterwarnings("ignore:.to_fp16. on a CPU")
@pytest.mark.parametrize(("mode", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_is_on_where_the_model_is(learner, targets, mode, dtype):
    learn, inside, scaled = learner(targets, {"digit": ClassificationHead(lr_mult=2.0)}), set(), set()
    hook = learn.model[1]["digit"].register_forward_hook(lambda m, i, o: inside.add(o.dtype))
    assert getattr(learn, f"to_{mode}")() is learn and learn.mixed_precision in learn.cbs
    watch = Each(
        after_backward=lambda learn: scaled.add(learn.scaler.get_scale()),
    )
    fit(learn, cbs=watch)
    hook.remove()
    assert inside == {dtype}
    assert scaled == {1.0} if mode == "bf16" else max(scaled) == 65536.0  # it falls where gradients overflow
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert all(pred.dtype == torch.float32 for pred in learn.get_preds()[0])
    learn.to_fp32()
    assert not hasattr(learn, "mixed_precision") and not learn._grab_cbs(MixedPrecision)
    fit(learn)


def test_fp16_on_a_cpu_is_said_to_be_slow(learner):
    learn = learner(("digit",))
    with pytest.warns(HeadsWarning, match=r"`to_fp16` on a CPU .*twenty times slower.*`learn.to_bf16\(\)`") as said:
        learn.to_fp16()
    assert len(said) == 1 and said[0].filename == __file__
    learn.to_bf16()


def test_bf16_trains_as_float32_to_its_precision(learner):
    table = []
    for half in (False, True):
        torch.manual_seed(0)
        learn = learner(opt_func=SGD)
        learn.dls.train.rng.seed(0)
        torch.manual_seed(1)
        table.append([float(loss) for loss in fit(learn.to_bf16() if half else learn).recorder.losses])
    assert table[0] != table[1] and table[0] == pytest.approx(table[1], rel=0.1)


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_fastais_own_mixed_precision_is_refused_on_a_cpu(learner, mode):
    with pytest.raises(
        HeadsError, match=rf"knows CUDA only and would train in float32 on 'cpu'\. Use `learn.to_{mode}"
    ):
        learner(("digit",)).fit(1, cbs=MixedPrecision(mode))


@BOTH
def test_channels_last(learner, targets):
    learn = fit(learner(targets), cbs=ChannelsLast())
    assert any(
        p.ndim == 4 and p.shape[1] > 1 and p.is_contiguous(memory_format=torch.channels_last)
        for p in learn.model.parameters()
    )
    assert learn.to_channelslast(use_amp=False).to_contiguous() is learn


# records and pictures


@BOTH
def test_the_log_has_every_column(learner, tmp_path, targets):
    learn = learner(targets, path=tmp_path)
    learn.logger = lambda row: None
    with learn.no_bar():
        learn.fit(2, cbs=CSVLogger())
    header, *rows = csv.reader((tmp_path / "history.csv").read_text().splitlines())
    assert header == list(learn.recorder.metric_names) and [len(row) for row in rows] == [len(header)] * 2
    assert float(rows[1][1]) == pytest.approx(learn.recorder.values[1][0])


@BOTH
def test_the_graph_shows_total_training_and_validation_loss(load, targets, monkeypatch):
    learn, drawn = multihead_learner(load(targets), "test_resnet", pretrained=False), []

    def watch(learn):
        monkeypatch.setattr(learn.progress.mbar, "update_graph", lambda *args: drawn.append(args), raising=False)

    with learn.no_logging():
        learn.fit(2, cbs=[ShowGraphCallback(), Each(before_train=watch)])
    (train, (steps, valid)), *_ = drawn[-1]
    assert steps == [4, 8] and len(train[1]) == 8
    at = learn.recorder.metric_names.index("valid_loss") - 1
    assert valid == [row[at] for row in learn.recorder.values]


@pytest.mark.filterwarnings("ignore:.*You are shadowing an attribute .modules.:UserWarning")  # fastai's own
@BOTH
def test_activation_stats(learner, targets):
    learn, stats = learner(targets), ActivationStats(with_hist=True)
    fit(learn, cbs=stats)
    assert len(stats.stats) == 4 and len(stats.stats[0]) > 10
    stats.plot_layer_stats(-1)
    stats.color_dim(0)


def test_tensorboard_is_named_where_it_is_missing():
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match="tensorboard"):
            importlib.import_module("fastai.callback.tensorboard")


@BOTH
def test_tensorboard_draws_samples_of_one_target_only(learner, targets):
    class TensorBoardCallback(Callback):  # stands for fastai's
        log_preds = True

    cb = TensorBoardCallback()
    if len(targets) > 1:
        with pytest.raises(HeadsError, match="pass `log_preds=False`"):
            learner(targets).fit(1, cbs=cb)
        cb.log_preds = False
    fit(learner(targets), cbs=cb)


@BOTH
def test_the_arguments_that_wandb_logs(learner, targets, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    importlib.import_module("fastai.callback.wandb")
    learn = learner(targets)
    learn.create_opt()
    found = learn.gather_args()
    assert found["n_inp"] == 1 and found["batch size"] == 12 and found["frozen"] is False
    assert found["input 1 dim 2"] == 3 and found["model parameters"] == sum(p.numel() for p in weights(learn))
    assert found["Learner"] is learn and found["HeadsMonitor"] and "frozen idx" in found


# predictions while training


@BOTH
def test_predictions_are_fetched_while_training(learner, targets):
    learn, seen, fetch = learner(targets), [], FetchPredsCallback(with_decoded=True)
    fit(learn, 2, cbs=[fetch, Each(after_epoch=lambda learn: seen.append(fetch.preds))])
    assert len(seen) == 2 and learn.recorder in learn.cbs and len(learn.recorder.values) == 2
    preds, targs, decoded = seen[-1]
    wanted = learn.get_preds(with_decoded=True)
    for found, right in zip((preds, targs, decoded), wanted):
        assert found.names == right.names == tuple(targets)
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


@BOTH
def test_predictions_are_gathered_in_validation(learner, targets):
    class Gather(GatherPredsCallback):
        run_train = False  # with fastai's own the first training batch finds no list to add to

    learn, gather = learner(targets), Gather()
    fit(learn, cbs=gather)
    preds = gather.preds if len(targets) > 1 else (gather.preds,)
    assert [len(p) for p in preds] == [len(learn.dls.valid_ds)] * len(targets)


@BOTH
def test_dropout_in_predictions(learner, targets):
    learn = learner(targets)
    first, second = (learn.get_preds(cbs=MCDropoutCallback())[0] for _ in range(2))
    assert all(not torch.equal(a, b) for a, b in zip(first, second))
    still, again = (learn.get_preds()[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(still, again))


# averages, workers


class Average(Callback):
    "A moving average of the weights, as users of torch write it: fastai has none."

    def before_fit(self):
        self.ema = AveragedModel(self.learn.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)

    def after_step(self):
        self.ema.update_parameters(self.learn.model)


@BOTH
def test_a_moving_average_of_the_weights(learner, targets):
    learn, average = learner(targets), Average()
    fit(learn, cbs=average)
    assert average.ema.n_averaged == 4
    learn.model.load_state_dict(average.ema.module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(learn.model.parameters(), average.ema.module.parameters()))
    assert len(learn.get_preds()[0]) == len(targets)


@BOTH
def test_workers_load_the_batches(learner, targets):
    learn = learner(targets)
    for dl in learn.dls.loaders:
        dl.fake_l.num_workers = 1
    fit(learn)
    preds, targs = learn.get_preds()
    assert len(preds) == len(targs) == len(targets)
