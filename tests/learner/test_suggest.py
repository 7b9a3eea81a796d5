"""Suggested loss weights: what was measured by hand, and that nothing else has changed."""

import copy

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead, SegmentationHead

TARGETS = ("digit", "ink", "mask")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def learn(make_learner):
    heads = {
        "digit": ClassificationHead(tap="layer3", ps=0.0),
        "ink": RegressionHead(loss_weight=2, ps=0.0),
        "mask": SegmentationHead(decoder="dynamic_unet"),
    }
    return make_learner(*TARGETS, heads=heads)


def by_hand(learn, how):
    "The mean over two batches: of the losses, or of the norms over all taps but the image."
    dl, found = learn.dls.train.new(shuffle=False, drop_last=False), {name: [] for name in learn.heads}
    body, heads = copy.deepcopy(learn.model).train()
    for _, (x, *ys) in zip(range(2), dl):
        ys = [y.as_subclass(torch.Tensor) for y in ys]
        taps = {k: v.detach().requires_grad_() for k, v in body(x.as_subclass(torch.Tensor)).items()}
        losses = learn.loss_func.losses(heads(taps), tuple(ys))
        for name, loss in zip(learn.heads, losses):
            if how == "losses":
                found[name].append(loss.item())
                continue
            ends = [t for n, t in taps.items() if n != "input"]
            grads = torch.autograd.grad(loss, ends, retain_graph=True, allow_unused=True)
            found[name].append(torch.cat([g.flatten() for g in grads if g is not None]).norm().item())
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("how", ["gradients", "losses"])
def test_it_is_what_a_loop_by_hand_measures(learn, how, monkeypatch):
    monkeypatch.setattr("fastai_heads.probe.collect.spread", lambda rows, most: list(rows)[:most])
    found = learn.suggest_weights(how, batches=2)
    wanted = by_hand(learn, how)
    assert found.pulls == pytest.approx(wanted, rel=1e-4) and found.batches == 2
    weights = found.weights
    assert sum(weights.values()) / 3 == pytest.approx(1)
    assert weights["digit"] / weights["ink"] == pytest.approx(wanted["ink"] / wanted["digit"], rel=1e-4)


def test_nothing_changes_but_what_is_asked_for(learn):
    with learn.no_logging():
        learn.fit(1, 1e-3)
    learn.model.eval()
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    values, torch_state = copy.deepcopy(learn.recorder.values), torch.get_rng_state()
    order = learn.dls.train.rng.getstate()
    suggestion = learn.suggest_weights(batches=2)
    assert all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items())
    assert torch.equal(torch_state, torch.get_rng_state()) and learn.dls.train.rng.getstate() == order
    assert learn.recorder.values == values and not learn.model.training
    assert [h.loss_weight for h in learn.heads.values()] == [1, 2, 1]
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    learn.suggest_weights(batches=2, apply=True)
    assert {n: h.loss_weight for n, h in learn.heads.items()} == pytest.approx(suggestion.weights)


def test_under_the_suggested_weights_all_pull_alike(learn):
    weights, pulls = learn.suggest_weights(batches=2).weights, learn.suggest_weights(batches=2).pulls
    pulled = [weights[name] * pulls[name] for name in weights]
    assert max(pulled) == pytest.approx(min(pulled))


def test_it_draws_and_prints(learn):
    found = learn.suggest_weights(batches=1)
    assert len(plt.get_fignums()) == 1 and [ax.get_title() for ax in plt.gcf().axes][1] == "suggested loss weight"
    assert "suggested" in str(found) and found._repr_html_().count("<tr>") == 4
    learn.suggest_weights(batches=1, show_plot=False)
    assert len(plt.get_fignums()) == 1


def test_a_head_without_labels_or_weight_keeps_its_weight(make_learner, make_dls):
    dls = make_dls(*TARGETS, missing=0.5)
    learn = make_learner(dls=dls, heads={"ink": RegressionHead(loss_weight=0)})
    found = learn.suggest_weights(batches=1, apply=True)
    assert found.left_out == {"ink": "its loss weight is 0"} and learn.heads.ink.loss_weight == 0
    learn.heads.digit.loss_func = lambda pred, targ: pred.sum() * 0
    assert found.left_out | {"digit": "found 0"} == learn.suggest_weights(batches=1).left_out


def test_one_head_has_weight_one(make_learner):
    learn = make_learner("digit")
    assert learn.suggest_weights(batches=1).weights == {"digit": pytest.approx(1)}


def test_a_frozen_body_is_looked_at_too(learn):
    for p in learn.model.body.parameters():
        p.requires_grad_(False)
    assert all(v > 0 for v in learn.suggest_weights(batches=1).pulls.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"how": "gradient"}, "`how` is one of gradients, losses, found 'gradient'.*Did you mean 'gradients'"),
        ({"batches": 0}, "`batches` is a whole number of at least 1, found 0"),
        ({"batches": 1.5}, "`batches` is a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(learn, options, said):
    with pytest.raises(HeadsError, match=said):
        learn.suggest_weights(**options)


def test_nothing_to_measure_is_refused(make_learner):
    learn = make_learner("digit", heads={"digit": ClassificationHead(loss=nn.CrossEntropyLoss())})
    learn.heads.digit.loss_weight = 0
    with pytest.raises(HeadsError, match="found nothing: digit: its loss weight is 0"):
        learn.suggest_weights()
