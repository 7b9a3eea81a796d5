"""A run that was killed and goes on from its last checkpoint ends where an uninterrupted one does."""

from random import Random

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.torch_core import set_seed

from fastai_heads.heads import BoxHead, ClassificationHead
from fastai_heads.training.schedule import LossWeightScheduler

from .conftest import ALL


class SameBatches(Callback):
    "Every epoch's shuffling and dropout from a seed of its own."

    order = 80  # after what skips epochs

    def before_epoch(self):
        set_seed(self.epoch)
        self.dls.train.rng = Random(self.epoch)


class Killed(Callback):
    def after_step(self):
        if self.epoch == 2 and self.iter == 2:
            raise KeyboardInterrupt


def rates(scale):
    return {"digit": ClassificationHead(lr_mult=scale), "box": BoxHead(lr_mult=1 / scale)}


@pytest.mark.parametrize("heads", [None, rates(2.0)], ids=["one rate", "lr_mult"])
@pytest.mark.parametrize("targets", [ALL, ("digit", "box")], ids=["five", "two"])
def test_a_killed_run_goes_on_with_the_optimizer_of_every_head(learner, tmp_path, targets, heads):
    def start():
        set_seed(7)
        learn = learner(targets, heads, path=tmp_path)
        saving = SaveModelCallback(every_epoch=True, with_opt=True)
        weights = LossWeightScheduler({"digit": lambda share: 1 - share / 2})
        return learn, {"cbs": [SameBatches(), saving, weights], "lr_max": 3e-3}

    def end(learn, kwargs, start_epoch=0):
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(4, start_epoch=start_epoch, **kwargs)
        return [*learn.model.state_dict().values()], [dict(learn.opt.state[p]) for p in learn.model.parameters()]

    whole, states = end(*start())
    learn, kwargs = start()
    with pytest.raises(KeyboardInterrupt):
        end(learn, {**kwargs, "cbs": [*kwargs["cbs"], Killed()]})
    learn, kwargs = start()
    learn.load("model_1", with_opt=True)
    resumed, resumed_states = end(learn, kwargs, start_epoch=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    for before, after in zip(states, resumed_states, strict=True):
        assert before.keys() == after.keys() and "sqr_avg" in before
        assert all(torch.equal(torch.as_tensor(before[k]), torch.as_tensor(after[k])) for k in before)
