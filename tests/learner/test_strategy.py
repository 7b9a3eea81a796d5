"""`strategy=` in the whole of a learner: set, changed, saved, exported, and refused before anything is lost."""

import warnings

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.learner import load_learner
from matplotlib.text import Text
from torchjd.aggregation import UPGrad
from torchjd.scalarization import DWA, FAMO, UW, GeometricMean

from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.disjoint import Disjoint

STRATEGIES = {
    "sum": lambda: None,
    "UW": lambda: UW,
    "DWA": lambda: DWA(),
    "FAMO": lambda: FAMO,
    "UPGrad": lambda: UPGrad(),
    "UPGrad over taps": lambda: Balance(UPGrad(), over="taps"),
    "disjoint": lambda: Disjoint(lrs={"ink": 0.5}),
}
every = pytest.mark.parametrize("name", STRATEGIES)


def weights(learn):
    return {name: p.detach().clone() for name, p in learn.model.named_parameters()}


@every
def test_training_predicting_and_exporting(make_learner, tmp_path, name):
    learn = make_learner("digit", "ink", strategy=STRATEGIES[name](), path=tmp_path)
    before = weights(learn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also of heads that send no gradient to the body
        learn.fine_tune(1, 1e-3)
    assert all(not torch.equal(before[n], p) for n, p in learn.model.named_parameters() if p.requires_grad)
    assert len(learn.rows[-1]) == len(learn.recorder.metric_names)
    preds, _ = learn.get_preds()
    learn.export("whole.pkl")
    again = load_learner(tmp_path / "whole.pkl")
    there = again.get_preds(dl=again.dls.test_dl(learn.dls.valid_ds.items))[0]
    assert torch.allclose(there.ink, preds.ink, atol=1e-5)
    assert repr(again.strategy) == repr(learn.strategy)


@every
def test_the_rate_is_found_and_nothing_is_left_of_it(make_learner, name):
    learn = make_learner("digit", "ink", strategy=STRATEGIES[name]())
    before = weights(learn)
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=())
    assert all(torch.equal(before[n], p) for n, p in learn.model.named_parameters())


@every
def test_it_may_be_set_on_a_trained_learner(make_learner, name):
    learn = make_learner("digit", "ink")
    learn.fit(1, 1e-3)
    learn.freeze()
    before, strategy = weights(learn), STRATEGIES[name]()
    learn.strategy = strategy
    assert all(torch.equal(before[n], p) for n, p in learn.model.named_parameters() if "strategy" not in n)
    assert learn.opt.frozen_idx == 2
    learn.fit(1, 1e-3)
    assert set(learn.strategy.weights) == {"digit", "ink"}
    learn.strategy = None
    assert not [n for n, _ in learn.model.named_parameters() if "strategy" in n]
    learn.fit(1, 1e-3)


@every
def test_blended_images_train(make_learner, name):
    learn = make_learner("digit", "ink", strategy=STRATEGIES[name]())
    learn.fit(1, 1e-3, cbs=MixUp())
    assert learn.recorder.losses[-1].isfinite()


@every
def test_forty_heads(make_learner, name):
    more = {f"again_{i}": RegressionHead(target="ink", train_only=True, lin_ftrs=[]) for i in range(38)}
    strategy = Disjoint() if name == "disjoint" else STRATEGIES[name]()
    learn = make_learner("digit", "ink", heads=more, strategy=strategy)
    learn.fit(1, 1e-4)
    assert len(learn.strategy.weights) == 40 and learn.recorder.losses[-1].isfinite()


LABELS = {
    "sum": ("weighted sum", "Adam"),
    "UW": ("UW", "Adam"),
    "UPGrad over taps": ("UPGrad over taps", "Adam"),
    "disjoint": ("disjoint", "Adam, one for each head"),
}


@pytest.mark.parametrize("name", LABELS)
def test_summary_and_diagram_say_which_it_is(make_learner, name):
    learn, (strategy, opt) = make_learner("digit", "ink", strategy=STRATEGIES[name]()), LABELS[name]
    assert {f"Strategy: {strategy}", f"Optimizer: {opt}"} <= set(learn.summary().last)
    assert learn.summary().first == make_learner("digit", "ink").summary().first
    words = [text.get_text() for text in learn.show_heads().findobj(Text)]
    assert any(strategy in word for word in words) and any(opt in word for word in words)


def test_loss_weights_go_into_the_gradients(make_learner):
    heads = {"ink": RegressionHead(loss_weight=3.0)}
    for strategy in (None, UPGrad(), Disjoint()):
        learn = make_learner("digit", "ink", heads=heads, strategy=strategy)
        learn.fit(1, 1e-4)
        assert learn.strategy.weights["ink"] > 0
    assert learn.strategy.weights == {"digit": 1.0, "ink": 3.0}


def test_what_does_not_fit_changes_nothing(make_learner):
    learn = make_learner("digit", "ink", strategy=UW)
    learn.fit(1, 1e-3)
    before, strategy, opt = weights(learn), learn.strategy, learn.opt
    for wrong in (UW(3), Disjoint(lrs={"inc": 1.0}), "UV"):
        with pytest.raises(HeadsError, match=r"`strategy|`lrs` of Disjoint"):
            learn.strategy = wrong
    assert learn.strategy is strategy and learn.opt is opt
    assert all(torch.equal(before[n], p) for n, p in learn.model.named_parameters())


def test_a_head_more_or_less_has_to_fit_the_strategy(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": None}, strategy=UW)
    with pytest.raises(HeadsError, match="UW cannot be used with 2 heads"):
        learn.add_head("ink", RegressionHead())
    assert learn.heads.names == ("digit",) and learn.model[1].names == ("digit",)
    learn.strategy = GeometricMean()
    learn.add_head("ink", RegressionHead())
    learn.fit(1, 1e-3)
    learn.strategy = Disjoint(lrs={"ink": 0.1})
    with pytest.raises(HeadsError, match="there is no head 'ink'"):
        learn.drop_head("ink")
    learn.strategy = Disjoint()
    learn.drop_head("ink")
    learn.fit(1, 1e-3)
    assert set(learn.strategy.weights) == {"digit"}


@pytest.mark.parametrize("strategy", [Balance(UPGrad()), Balance(UPGrad(), "taps"), Disjoint()])
def test_a_compiled_network_is_refused(make_learner, strategy):
    learn = make_learner("digit", "ink")
    learn.model.compile(backend="eager")
    with pytest.raises(HeadsError, match=r"`strategy`: .* compiled by `torch.compile`"):
        learn.strategy = strategy
    learn.strategy = UW
    learn.fit(1, 1e-3)


def test_the_strategy_is_used_by_the_heads_own_rates(make_learner):
    heads = {"digit": ClassificationHead(lr_mult=2.0), "ink": RegressionHead(lr_mult=0.0)}
    learn = make_learner("digit", "ink", heads=heads, strategy=Disjoint())
    before = learn.heads.ink.module.layers[2].weight.detach().clone()
    learn.fit(1, 1e-3)
    assert torch.equal(before, learn.heads.ink.module.layers[2].weight)


class Pulled(Callback):
    "Adds to the loss what knows one parameter alone."

    def after_loss(self):
        if self.training:
            self.learn.loss_grad = self.loss_grad + 1e3 * next(self.model[0].parameters()).square().sum()


def test_what_callbacks_add_to_the_loss_is_no_heads_and_has_no_optimizer(make_learner):
    learn = make_learner("digit", "ink", strategy=Disjoint())
    before = weights(learn)
    with pytest.raises(HeadsError, match="a callback adds a term to the loss that belongs to no head"):
        learn.fit(1, 1e-3, cbs=Pulled())
    assert all(torch.equal(before[n], p) for n, p in learn.model.named_parameters())


def test_what_callbacks_add_to_the_loss_is_trained_too(make_learner):
    for strategy in (None, UPGrad(), Balance(UPGrad(), "taps"), UW):
        sizes = []
        for cbs in ([], [Pulled()]):
            learn = make_learner("digit", "ink", strategy=strategy)
            learn.fit(1, 1e-2, cbs=cbs)
            sizes.append(next(learn.model[0].parameters()).norm().item())
        assert sizes[1] < 0.9 * sizes[0], strategy
