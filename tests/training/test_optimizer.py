"""A learning rate per head: the steps are those of an optimizer whose groups were written by hand."""

import copy
import io
from functools import partial

import fastai.callback.schedule  # noqa: F401 - patches `fit_one_cycle` into `Learner`
import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD, Adam, Lamb, OptimWrapper, RMSProp
from fastai.torch_core import params, set_seed
from torch import nn

from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.training.optimizer import HeadsOptimizer, split_by_rate

OPTS = {
    "Adam": partial(Adam, wd=0.1),
    "SGD": partial(SGD, mom=0.9, wd=0.1),
    "RMSProp": partial(RMSProp, mom=0.9),
    "Lamb": Lamb,
    "AdamW": partial(OptimWrapper, opt=torch.optim.AdamW, weight_decay=0.1),
    "torch SGD": partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9),
}
MULTS = (1.0, 1.0, 1.0, 5.0, 0.0)  # two groups of the body, then trunks and heads


def parts(seed=0):
    "Five layers in a row."
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Linear(3, 3) for _ in MULTS)


def grouped(layers):
    "The first two layers are the body's groups; the others are one shown group, each with its multiplier."
    lists = [list(layer.parameters()) for layer in layers]
    return [[(lists[0], 1.0)], [(lists[1], 1.0)], [(p, m) for p, m in zip(lists[2:], MULTS[2:])]]


def step(layers, opt, seed):
    torch.manual_seed(seed)
    x = torch.randn(4, 3)
    for layer in layers:
        x = layer(x).sigmoid()
    x.square().sum().backward()
    opt.step()
    opt.zero_grad()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTS)
def test_steps_equal_those_of_groups_written_by_hand(name):
    ours, theirs, start = parts(), parts(), parts()
    opt = HeadsOptimizer(OPTS[name], grouped(ours), 0.1)
    hand = OPTS[name]([list(layer.parameters()) for layer in theirs], lr=0.1)
    rates = [0.1, 0.1, slice(0.2), slice(0.01, 0.1), [0.3, 0.2, 0.1], 0.05]
    by_hand = [[0.1] * 3, [0.1] * 3, [0.02, 0.02, 0.2], [0.01, 0.01**0.5 * 0.1**0.5, 0.1], [0.3, 0.2, 0.1], [0.05] * 3]
    for i, (rate, (early, late, top)) in enumerate(zip(rates, by_hand)):
        opt.set_hyper("lr", rate)
        hand.set_hyper("lr", [early, late, top, top * 5.0, top * 0.0])
        step(ours, opt, seed=i)
        step(theirs, hand, seed=i)
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours.parameters(), theirs.parameters()))
        if i in (0, 1):
            assert same(ours, theirs)
    assert same(ours[4:], start[4:]) and not same(ours[2:4], start[2:4])


def test_other_hyperparameters_reach_every_inner_group():
    layers = parts()
    opt = HeadsOptimizer(Adam, grouped(layers), 0.1)
    opt.set_hyper("mom", [0.1, 0.2, 0.3])
    opt.set_hypers(wd=0.5, eps=1e-3)
    step(layers, opt, seed=0)
    assert [h["mom"] for h in opt.opt.hypers] == [0.1, 0.2, 0.3, 0.3, 0.3]
    assert {h["wd"] for h in opt.opt.hypers} == {0.5} and {h["eps"] for h in opt.opt.hypers} == {1e-3}


def test_a_user_sees_the_bodys_groups_and_one_for_all_heads():
    layers = parts()
    opt = HeadsOptimizer(Adam, grouped(layers), 0.1)
    assert [len(group) for group in opt.param_lists] == [2, 2, 6] and len(opt.hypers) == 3
    assert [p for group in opt.param_lists for p in group] == list(layers.parameters())
    assert [h["lr"] for h in opt.hypers] == [0.1] * 3 and len(opt.param_groups) == 3
    opt.freeze()
    assert [p.requires_grad for p in layers.parameters()] == [False] * 4 + [True] * 6 and opt.frozen_idx == 2
    opt.freeze_to(1)
    assert [p.requires_grad for p in layers.parameters()] == [False] * 2 + [True] * 8
    opt.unfreeze()
    assert all(p.requires_grad for p in layers.parameters())
    with pytest.raises(AssertionError, match="3 parameter groups"):
        opt.set_hyper("lr", [0.1] * 5)


def test_a_slice_as_default_rate_spreads_over_the_shown_groups():
    opt = HeadsOptimizer(Adam, grouped(parts()), slice(1e-4, 1e-2))
    assert [h["lr"] for h in opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])
    assert [h["lr"] for h in HeadsOptimizer(SGD, grouped(parts()), slice(1.0)).hypers] == [0.1, 0.1, 1.0]


def test_a_body_without_parameters_leaves_the_count_as_it_is():
    layers = parts()
    groups = [[([], 1.0)], *grouped(layers)[1:]]
    opt = HeadsOptimizer(SGD, groups, 0.1)
    opt.set_hyper("lr", [0.1, 0.2, 0.3])
    assert [len(g) for g in opt.param_lists] == [0, 2, 6] and [h["lr"] for h in opt.hypers] == [0.1, 0.2, 0.3]
    start = copy.deepcopy(layers)
    step(layers, opt, seed=0)
    assert same(layers[:1], start[:1]) and not same(layers[1:2], start[1:2])


@pytest.mark.parametrize("name", OPTS)
def test_the_state_goes_around(name):
    layers = parts()
    opt = HeadsOptimizer(OPTS[name], grouped(layers), 0.1)
    for i in range(3):
        opt.set_hyper("lr", [0.1, 0.2, 0.1 / (i + 1)])
        step(layers, opt, seed=i)
    kept = io.BytesIO()
    torch.save(opt.state_dict(), kept)
    again = copy.deepcopy(layers)
    other = HeadsOptimizer(OPTS[name], grouped(again), 7.0)
    other.load_state_dict(torch.load(io.BytesIO(kept.getvalue()), weights_only=False))
    assert [h["lr"] for h in other.hypers] == [h["lr"] for h in opt.hypers]
    step(layers, opt, seed=9)
    step(again, other, seed=9)
    assert same(layers, again)
    opt.set_hyper("lr", 0.5)
    assert [h["lr"] for h in other.hypers] == [0.1, 0.2, 0.1 / 3], "the two share nothing"


def test_clearing_the_state_starts_anew():
    layers = parts()
    opt = HeadsOptimizer(Adam, grouped(layers), 0.1)
    step(layers, opt, seed=0)
    first = layers[3].weight
    assert opt.state[first]["step"] == 1
    opt.state[first]["do_wd"] = False
    opt.clear_state()
    assert dict(opt.state[first]) == {"do_wd": False}


def test_only_unlike_rates_split_the_heads(three):
    heads = three(breed={"lr_mult": 2.0}, tags={"lr_mult": 2}, age={"lr_mult": 1.0})
    body, trunk = nn.Linear(2, 2), nn.Linear(2, 2)
    own = {name: list(h.parameters()) for name, h in heads.items()}
    last = [*trunk.parameters(), *own["breed"], *own["tags"], *own["age"]]
    found = split_by_rate([list(body.parameters()), last], heads)
    assert found[0] == [(list(body.parameters()), 1.0)]
    assert found[1] == [([*trunk.parameters(), *own["age"]], 1.0), ([*own["breed"], *own["tags"]], 2.0)]


def test_what_two_heads_share_keeps_the_groups_own_rate(three):
    heads = three(breed={"lr_mult": 2.0}, tags={"lr_mult": 3.0}, age={"lr_mult": 3.0})
    heads.tags.module.weight = heads.breed.module.weight  # of unlike rates
    heads.age.module.bias = nn.Parameter(torch.zeros(3))
    heads.tags.module.bias = heads.age.module.bias  # of the same rate
    last = list(dict.fromkeys(p for h in heads.values() for p in h.parameters()))
    ((rest,), split) = split_by_rate([[nn.Parameter(torch.zeros(1))], last], heads)
    assert rest[1] == 1.0
    of = {param: mult for group, mult in split for param in group}
    assert len(of) == len(last) == 4
    assert of[heads.breed.module.weight] == 1.0 and of[heads.breed.module.bias] == 2.0
    assert of[heads.tags.module.bias] == 3.0 and of[heads.age.module.weight] == 3.0


HEADS = {"digit": ClassificationHead(lr_mult=3.0), "ink": RegressionHead(lr_mult=0.0)}
TARGETS = ("digit", "ink", "box")


class Rates(Callback):
    "Keeps the rates of every inner group, and those that a user sees, after each step."

    def __init__(self):
        self.seen = []

    def after_step(self):
        inner = getattr(self.opt, "opt", self.opt)
        self.seen.append(([h["lr"] for h in inner.hypers], [h["lr"] for h in self.opt.hypers]))


def in_order(learn):
    "The same batches every time."
    learn.dls.loaders[0] = learn.dls.train.new(shuffle=False, drop_last=True)
    return learn


@pytest.mark.parametrize("opt_func", [Adam, OPTS["AdamW"]], ids=["Adam", "AdamW"])
def test_a_learner_trains_as_one_with_groups_written_by_hand(learner, opt_func):
    ours = in_order(learner(TARGETS, HEADS, opt_func=opt_func))
    hand = in_order(learner(TARGETS, opt_func=opt_func))
    hand.model.load_state_dict(ours.model.state_dict())
    start = copy.deepcopy(ours.model.state_dict())
    hand.splitter = lambda model: [*model[0].groups(), *(params(model[1][n]) for n in ("digit", "ink", "box"))]
    for learn, rate in ((ours, slice(1e-4, 1e-2)), (hand, [1e-4, 1e-3, 3e-2, 0.0, 1e-2])):
        set_seed(5)
        with learn.no_logging():
            learn.fit(2, rate)
    assert isinstance(ours.opt, HeadsOptimizer) and not isinstance(hand.opt, HeadsOptimizer)
    for key, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, hand.model.state_dict()[key], rtol=1e-5, atol=1e-6)
    moved = {}
    for name in TARGETS:
        now = ours.model[1][name].named_parameters()
        moved[name] = any(not torch.equal(p, start[f"1.heads.head_{name}.{key}"]) for key, p in now)
    assert moved == {"digit": True, "ink": False, "box": True}
    torch.testing.assert_close(ours.recorder.losses, hand.recorder.losses, rtol=1e-5, atol=1e-6)


def test_schedules_move_every_head_by_its_multiple(learner):
    learn, rates = learner(TARGETS, HEADS), Rates()
    with learn.no_logging():
        learn.fit_one_cycle(2, slice(1e-4, 1e-2), cbs=rates)
    assert len(rates.seen) == 8 and len({shown[-1] for _, shown in rates.seen}) == 8
    for inner, (early, late, top) in rates.seen:
        assert inner[:2] == [early, late]
        assert sorted(inner[2:]) == sorted([top, top * 3.0, 0.0])
    assert learn.recorder.lrs == [shown[-1] for _, shown in rates.seen]


def test_freezing_a_learner_leaves_every_head_to_train(learner):
    learn = learner(TARGETS, HEADS)
    learn.freeze()
    body, heads = learn.model
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(p.requires_grad for p in heads.parameters()) and norms
    free = {p for p in body.parameters() if p.requires_grad}
    assert free == {p for m in norms for p in m.parameters()}, "fastai's train_bn"
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_learner_saves_and_loads_the_state(learner, tmp_path):
    learn = learner(TARGETS, HEADS, path=tmp_path)
    with learn.no_logging():
        learn.fit(1, 1e-2)
    learn.save("half")
    other = learner(TARGETS, HEADS, path=tmp_path).load("half", with_opt=True)
    first = learn.model[1]["digit"].layers[2].weight
    again = other.model[1]["digit"].layers[2].weight
    assert torch.equal(first, again)
    assert torch.equal(learn.opt.state[first]["grad_avg"], other.opt.state[again]["grad_avg"])
    assert [h["lr"] for h in other.opt.hypers] == [1e-2] * 3
