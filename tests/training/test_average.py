"""The moving average of weights: torch's `AveragedModel` by hand, a fit that goes on, and what leaves with it."""

from random import Random

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import load_bundle
from fastai_heads.heads import ClassificationHead
from fastai_heads.training.average import EMACallback, averaged
from fastai_heads.training.strategies.disjoint import Disjoint

TWO = ("digit", "ink")


class SameBatches(Callback):
    "Every epoch's shuffling and dropout from a seed of its own."

    order = 80

    def before_epoch(self):
        set_seed(self.epoch)
        self.dls.train.rng = Random(self.epoch)


class ByHand(Callback):
    "torch's own average of the same weights."

    order = 70

    def __init__(self, decay):
        self.decay = decay

    def before_fit(self):
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)

    def after_step(self):
        self.average.update_parameters(self.model)


def weights(model):
    return {name: tensor.clone() for name, tensor in averaged(model)}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit(learn, epochs=2, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 3e-3, **kwargs)
    return learn


@pytest.fixture
def start(learner, tmp_path):
    "Give a function that makes a learner of the same first weights and batches."

    def make(*cbs, **kwargs):
        set_seed(7)
        return learner(TWO, path=tmp_path, cbs=[SameBatches(), *cbs], **kwargs)

    return make


@pytest.mark.parametrize("strategy", [None, Disjoint()], ids=["sum", "Disjoint"])
def test_it_is_torchs_average(start, strategy):
    hand = ByHand(0.9)
    learn = fit(start(EMACallback(0.9, warmup=False), hand, strategy=strategy))
    theirs = dict(averaged(hand.average.module))
    assert equal(weights(learn.model), theirs)


def test_the_decay_grows_at_first(start):
    seen = []

    class Look(Callback):
        order = 70

        def after_step(self):
            seen.append({n: t.clone() for n, t in averaged(self.model) if t.is_floating_point()})

    learn = fit(start(EMACallback(0.5), Look()), 1)
    mean = dict(seen[0])
    for step, now in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {n: torch.lerp(mean[n], now[n], 1 - decay) for n in mean}
    found = weights(learn.model)
    assert len(seen) > 3
    for name, tensor in mean.items():
        torch.testing.assert_close(found[name], tensor)


def test_training_is_what_it_is_without(start):
    plain, learn = fit(start()), fit(start(EMACallback(0.9)))
    average = learn.model[1].average
    measured = weights(learn.model)
    average.swap(learn.model)
    assert equal(weights(learn.model), weights(plain.model)) and not equal(measured, weights(plain.model))


def test_validation_is_on_the_average(start):
    learn = fit(start(EMACallback(0.9)))
    names = [n.removeprefix("valid_") for n in learn.recorder.metric_names[1:]]
    row = dict(zip(names, learn.recorder.values[-1]))
    with learn.no_bar():
        assert learn.validate()[0] == pytest.approx(row["loss"], rel=1e-6)


def test_a_fit_goes_on_to_the_bit(start):
    def run(start_epoch=0, epochs=4, learn=None):
        learn = learn or start(EMACallback(0.9))
        return fit(learn, epochs, start_epoch=start_epoch, cbs=SaveModelCallback(every_epoch=True, with_opt=True))

    whole = run()
    learn = start(EMACallback(0.9))
    learn.load("model_1", with_opt=True)
    resumed = run(start_epoch=2, learn=learn)
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert any("average" in name for name in ours) and equal(ours, theirs)


def test_a_second_fit_trains_what_trained(start):
    learn, plain = start(EMACallback(0.9)), start()
    for one in (learn, plain):
        fit(fit(one, 1), 1)
    learn.model[1].average.swap(learn.model)
    assert equal(weights(learn.model), weights(plain.model))


def test_its_file_is_the_average_elsewhere(start):
    learn, plain = fit(start(EMACallback(0.9))), start()
    learn.save("both")
    plain.load("both")
    assert equal(weights(plain.model), weights(learn.model)) and plain.model[1].average is None


def test_another_file_starts_anew(start):
    plain, learn = fit(start()), fit(start(EMACallback(0.9)))
    plain.save("plain")
    learn.load("plain")
    assert equal(weights(plain.model), weights(learn.model)) and learn.model[1].average.steps == 0
    fit(learn, 1)
    assert learn.model[1].average.in_use


def test_it_leaves_as_the_average(start, tmp_path):
    learn = fit(start(EMACallback(0.9)))
    learn.export("l.pkl")
    assert equal(weights(load_learner(tmp_path / "l.pkl").model), weights(learn.model))
    learn.save_bundle(tmp_path / "bundle")
    found = load_bundle(tmp_path / "bundle").network.network.state_dict()
    ours = weights(learn.model)
    assert found.keys() == ours.keys() and equal({n: found[n] for n in ours}, ours)


def test_heads_come_and_go(start):
    learn = fit(start(EMACallback(0.9)), 1)
    learn.drop_head("ink")
    fit(learn, 1)
    assert learn.model[1].average.fits(learn.model) and learn.model[1].average.in_use
    learn.add_head("more", ClassificationHead(target="digit", train_only=True))
    fit(learn, 1)
    assert learn.model[1].average.fits(learn.model)


def test_of_one_fit_it_leaves_the_average(start):
    whole = fit(start(EMACallback(0.9)))
    learn = fit(start(), cbs=EMACallback(0.9))
    assert learn.model[1].average is None and equal(weights(learn.model), weights(whole.model))


def test_a_rate_is_sought_without_a_trace(start):
    learn = fit(start(EMACallback(0.9)), 1)
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=4, show_plot=False)
    assert equal(before, learn.model.state_dict())


def test_on_stored_taps(start):
    learn = start(EMACallback(0.5))
    for param in learn.model[0].parameters():
        param.requires_grad_(True)
    with learn.no_bar(), learn.no_logging():
        learn.fit_heads(2, 1e-2)
        assert learn.model[1].average.in_use
        learn.unfreeze()
        learn.fit(1, 1e-2)
        with pytest.raises(HeadsError, match="EMACallback"):
            learn.fit_heads(1, 1e-2)
        learn.remove_cb(EMACallback)
        learn.fit_heads(1, 1e-2)


def test_one_average_is_kept(start):
    learn = fit(start(EMACallback(0.9)), 1)
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    with pytest.raises(HeadsError, match="EMACallback already"):
        fit(learn, 1, cbs=EMACallback(0.5))
    assert equal(before, learn.model.state_dict()) and learn.model[1].average.in_use


@pytest.mark.parametrize("given", [{"decay": 1}, {"decay": -0.1}, {"decay": "0.9"}, {"decay": True}, {"warmup": 1}])
def test_what_is_no_average_is_refused(given):
    with pytest.raises(HeadsError, match=next(iter(given))):
        EMACallback(**given)
