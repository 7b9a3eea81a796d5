"""Heads that do not learn are named, once, with the likely cause; healthy ones are left alone."""

import math
import warnings

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import TerminateOnNaNCallback
from torch import nn

from fastai_heads.errors import HeadsWarning
from fastai_heads.heads import ClassificationHead, CustomHead, RegressionHead
from fastai_heads.training.monitors import HeadsMonitor, reaches
from fastai_heads.trunks import Trunk

TWO = ("digit", "ink")


class Detached(nn.Module):
    "A head that sends no gradient to the body, from an epoch on."

    def __init__(self, channels, n_out=10):
        super().__init__()
        self.linear, self.cut = nn.Linear(channels, n_out), True

    def forward(self, x):
        x = x.mean((2, 3))
        return self.linear(x.detach() if self.cut else x)


class Labels(Callback):
    "Takes the labels of one target away in training, or changes them."

    run_valid = False

    def __init__(self, place, value, steps=None):
        self.place, self.value, self.steps = place, value, steps

    def before_batch(self):
        if self.steps is None or self.learn.train_iter in self.steps:
            yb = list(self.yb)
            yb[self.place] = torch.full_like(yb[self.place], self.value)
            self.learn.yb = tuple(yb)


def said(learn, *args, epochs=1, **kwargs):
    "What a fit warns of."
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", HeadsWarning)
        learn.fit(epochs, 1e-3, *args, **kwargs)
    return [str(w.message) for w in seen if issubclass(w.category, HeadsWarning)]


def only(found, *words):
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found


def test_healthy_heads_are_not_named(learner):
    assert said(learner(), epochs=2) == []


def test_a_head_without_a_label_is_named_once(learner):
    learn = learner(TWO, missing=0.3)
    only(said(learn, epochs=2, cbs=Labels(1, math.nan)), "head 'ink' saw no label", "target 'ink'", "in epoch 0")
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert said(learn) == [], "and is well with labels"
    only(said(learn, cbs=Labels(0, -100)), "head 'digit' saw no label")


def test_labels_in_one_batch_are_enough(learner):
    assert said(learner(TWO, missing=0.3), cbs=Labels(1, math.nan, steps=range(3))) == []


def test_a_loss_of_zero_is_named(learner):
    heads = {"digit": ClassificationHead(loss=lambda pred, targ: (pred * 0).sum())}
    only(said(learner(TWO, heads), epochs=2), "head 'digit' had a loss of exactly 0 in every batch", "`ignore_index`")


def test_a_loss_that_is_not_finite_is_named_with_the_count(learner):
    found = said(learner(TWO), cbs=Labels(1, math.inf, steps=[3]))
    only(found, "head 'ink' had a loss that is NaN or infinite in 1 of 4 batches", "learning rate", "(in epoch 0)")


@pytest.mark.parametrize("train_only", [False, True])
def test_a_head_that_detaches_the_body_is_named(learner, train_only):
    heads = {"digit": ClassificationHead(), "aux": CustomHead(Detached, target="digit", train_only=train_only)}
    if not train_only:
        heads = {"digit": CustomHead(Detached)}
    learn, name = learner(TWO, heads), list(heads)[-1]
    only(said(learn, epochs=3), f"head {name!r} sent no gradient to the body", "`detach`", "in epoch 0")
    learn.heads[name].module.cut = False
    assert said(learn) == []
    learn.heads[name].module.cut = True
    only(said(learn), f"head {name!r} sent no gradient")


def test_a_loss_without_a_gradient_is_named(learner):
    def rounded(pred, targ):
        return (pred.argmax(1) != targ).float().mean() + 1

    learn = learner(TWO)
    learn.heads.digit.loss_func = rounded  # a spec with it is refused
    only(said(learn), "head 'digit' sent no gradient to the body")


def test_a_frozen_body_expects_no_gradient(learner):
    learn = learner(TWO, {"digit": CustomHead(Detached)})
    learn.freeze()
    assert said(learn) == []
    learn.unfreeze()
    learn.model[0].requires_grad_(False)
    assert said(learn) == []
    learn.model[0].requires_grad_(True)
    only(said(learn), "head 'digit' sent no gradient")


def test_the_gradient_may_go_through_a_trunk_and_any_of_several_taps(learner):
    trunk = {"neck": Trunk(lambda channels: nn.Conv2d(channels, 8, 1))}
    heads = {"digit": ClassificationHead(tap="neck"), "ink": RegressionHead(tap="layer2")}
    assert said(learner(TWO, heads, trunk=trunk)) == []
    cut = {"neck": Trunk(lambda channels: Stop())}
    only(said(learner(TWO, heads, trunk=cut)), "head 'digit' sent no gradient")


class Stop(nn.Module):
    def forward(self, x):
        return x.detach()


def test_terminate_on_nan_says_which_head(learner, capsys):
    learn = learner(TWO)
    found = said(learn, epochs=3, cbs=[Labels(1, math.nan, steps=[5]), TerminateOnNaNCallback()])
    only(found, "head 'ink' had a loss that is NaN or infinite in 1 of 2 batches", "in epoch 1, where training stopped")
    assert learn.train_iter == 6 or len(learn.recorder.losses) <= 6


def test_what_is_no_training_is_not_watched(learner):
    learn = learner(TWO, {"digit": CustomHead(Detached)})
    with learn.no_bar(), learn.no_logging():  # warnings are errors
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=6, show_plot=False)


def test_it_can_be_taken_off(learner):
    learn = learner(TWO, {"digit": CustomHead(Detached)})
    learn.remove_cb(HeadsMonitor)
    assert said(learn) == []
    assert not learner(TWO, default_cbs=False)._grab_cbs(HeadsMonitor)


def test_training_is_the_same_with_and_without(learner):
    found = []
    for watched in (True, False):
        torch.manual_seed(0)
        learn = learner(missing=0.3)
        learn.dls.train.rng.seed(0)
        if not watched:
            learn.remove_cb(HeadsMonitor)
        torch.manual_seed(1)
        said(learn)
        found.append(learn.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))


def test_a_healthy_head_is_asked_once_an_epoch(learner, monkeypatch):
    asked = []
    monkeypatch.setattr("fastai_heads.training.monitors.reaches", lambda *args: asked.append(1) or reaches(*args))
    learn = learner()
    said(learn, epochs=3)
    assert len(asked) == 3 * len(learn.heads)
    assert not learn.model[0]._forward_hooks


def test_whether_a_loss_reaches():
    x = torch.ones(3, requires_grad=True)
    y, z = x * 2, x * 3
    assert reaches(y.sum(), [y, z]) and reaches(y.sum(), [x]) and not reaches(y.sum(), [z])
    assert not reaches((y * 0).sum(), [y]) and not reaches(y.detach().sum(), [y])
    y.sum().backward()  # the graph is kept
