"""Fused steps are fastai's own steps: on single optimizers, and in whole fits beside `fused=False`."""

import copy
import io
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, Lamb, OptimWrapper, RMSProp, ranger
from fastai.torch_core import set_seed
from fastcore.basics import risinstance
from torch import nn
from torchjd.scalarization import UW

from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.training import fused_optimizer
from fastai_heads.training.disjoint_optimizer import DisjointOptimizer
from fastai_heads.training.fused_optimizer import FusedAdam, FusedOptimizer, FusedSGD, fuse
from fastai_heads.training.optimizer import HeadsOptimizer
from fastai_heads.training.strategies.disjoint import Disjoint

from .strategies.conftest import BS, PLAIN, Cast, Still, apart, data, network, squared, weights

STEPS, LR = 20, 0.005
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}
OPTS = {
    "Adam": Adam,
    "Adam with keywords": partial(Adam, mom=0.5, sqr_mom=0.7, eps=1e-3, wd=0.2),
    "Adam with L2": partial(Adam, decouple_wd=False, wd=0.1),
    "Adam without decay": partial(Adam, wd=0.0),
    "SGD": partial(SGD, wd=0.1),
    "SGD with L2": partial(SGD, wd=0.1, decouple_wd=False),
    "SGD with momentum": partial(SGD, mom=0.9, wd=0.1),
    "SGD with momentum and L2": partial(SGD, mom=0.9, wd=0.1, decouple_wd=False),
}
ADAM_AND_MOMENTUM = {name: OPTS[name] for name in ("Adam", "SGD with momentum")}


def layers(dtype=torch.float32):
    "Weights, norms and biases, a number without a dimension and a parameter without a number."
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(37, 3)])
    net[1].odd, net[2].empty = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(0))
    return net.to(dtype)


def groups(net):
    return [list(layer.parameters()) for layer in net]


def pair(opt_func, dtype=torch.float32, change=lambda net: net):
    "Equal networks with fastai's optimizer, and with the fused one; norms do not decay."
    found = []
    for make in (opt_func, fuse(opt_func)):
        net = change(layers(dtype))
        opt = make(groups(net), lr=LR)
        for param in net[1].parameters():
            opt.state[param]["do_wd"] = False
        found.append((net, opt))
    return found


def give_grads(nets, step, skip=()):
    "Equal gradients to the parameters of each network."
    draw = torch.Generator().manual_seed(step)
    for i, params in enumerate(zip(*(net.parameters() for net in nets))):
        grad = torch.randn(params[0].shape, generator=draw)
        for param in params:
            param.grad = None if i in skip else grad.to(param.dtype, copy=True)


def walk(both, steps=STEPS, skips=lambda step: (), start=0):
    "Step both, with other hyperparameters each time."
    for step in range(start, start + steps):
        give_grads([net for net, _ in both], step, skips(step))
        for _, opt in both:
            opt.set_hyper("mom", [0.95 - 0.01 * step, 0.85, 0.9])
            opt.set_hyper("lr", slice(LR / 9, LR * (1 + step / 9)))
            opt.step()
            opt.zero_grad()


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(((p - q).abs().max().item() for p, q in pairs if p.numel()), default=0.0)


def assert_same(both, tolerance):
    (plain, theirs), (net, ours) = both
    assert distance(plain, net) <= tolerance and distance(net, layers(next(net.parameters()).dtype)) > 1e-3
    for p, q in zip(plain.parameters(), net.parameters()):
        before, after = theirs.state[p], ours.state[q]
        assert list(before) == list(after)
        for key, value in before.items():
            assert type(value) is type(after[key])
            torch.testing.assert_close(after[key], value, rtol=tolerance, atol=tolerance)


def seen(monkeypatch):
    "Count the calls of torch's fused steps."
    calls = []
    for name in ("adam", "sgd"):
        step = getattr(fused_optimizer, name)
        monkeypatch.setattr(fused_optimizer, name, lambda *a, f=step, **k: (calls.append(len(a[0])), f(*a, **k)))
    return calls


# single optimizers


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", OPTS)
def test_steps_and_states_are_fastais(name, dtype, monkeypatch):
    calls, both = seen(monkeypatch), pair(OPTS[name], dtype)
    walk(both)
    assert_same(both, EXACT[dtype])
    assert len(calls) == 3 * STEPS and sum(calls) == STEPS * len(list(layers().parameters()))


@pytest.mark.parametrize("name", OPTS)
def test_parameters_have_counts_of_their_own_and_none_without_a_gradient_moves(name):
    both = pair(OPTS[name], torch.float64)
    walk(both, skips=lambda step: {0: (0, 1), 1: (), 2: (0, 3, 5)}[step % 3])
    assert_same(both, 1e-12)
    before = copy.deepcopy(both[1][0])
    both[1][1].step()  # `zero_grad` has left zeros, with which fastai goes on
    both[0][1].step()
    assert_same(both, 1e-12)
    for param in both[1][0].parameters():
        param.grad = None
    before = copy.deepcopy(both[1][0])
    both[1][1].step()
    assert distance(before, both[1][0]) == 0


@pytest.mark.parametrize("name", OPTS)
def test_dropped_gradients_are_the_zeros_that_fastai_leaves(name):
    both = pair(OPTS[name], torch.float64)
    (plain, theirs), (net, ours) = both
    for step in range(STEPS):
        reached = {0: {3}, 1: {0, 1, 2, 3, 4, 5}, 2: {1, 5}}[step % 3]
        for i, (p, q) in enumerate(zip(plain.parameters(), net.parameters())):
            if i in reached:
                grad = torch.randn_like(p)
                p.grad = grad.clone() if p.grad is None else p.grad.add_(grad)  # as autograd does
                assert q.grad is None
                q.grad = grad
        theirs.step()
        ours.step()
        theirs.zero_grad()
        ours.drop_grads()
        assert_same(both, 1e-12)
    assert copy.deepcopy(ours)._dropped == set()


@pytest.mark.parametrize("name", ADAM_AND_MOMENTUM)
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "with gaps"])
def test_numbers_may_lie_in_any_order(name, layout):
    def change(net):
        if layout == "channels_last":
            return net.to(memory_format=torch.channels_last)
        weight = net[2].weight.detach()
        data = weight.t().contiguous().t() if layout == "transposed" else torch.stack([weight, weight], -1)[..., 0]
        net[2].weight = nn.Parameter(data)
        return net

    both = pair(OPTS[name], torch.float64, change)
    walk(both)
    assert_same(both, 1e-12)


@pytest.mark.parametrize("name", ADAM_AND_MOMENTUM)
def test_the_order_may_change_between_steps(name):
    both = pair(OPTS[name], torch.float64)
    walk(both, 5)
    for net, _ in both:
        net.to(memory_format=torch.channels_last)
    walk(both, 5, start=5)
    assert_same(both, 1e-12)
    weight = both[1][0][0].weight
    assert both[1][1].state[weight]["grad_avg"].stride() == weight.stride()
    for net, opt in both:  # a gradient of one number, as the sum's is
        for param in net.parameters():
            param.grad = torch.ones((), dtype=param.dtype).expand(param.shape)
        opt.step()
    assert_same(both, 1e-12)


@pytest.mark.parametrize("name", OPTS)
def test_where_there_is_no_kernel_the_steps_are_fastais_bit_for_bit(name, monkeypatch):
    calls, both = seen(monkeypatch), pair(OPTS[name], torch.bfloat16)
    walk(both, 5)
    assert_same(both, 0.0)
    monkeypatch.setattr(fused_optimizer, "_has_kernel", lambda *_: False)
    both = pair(OPTS[name])
    walk(both)
    assert_same(both, 0.0)
    assert not calls


def test_a_device_without_kernels_is_found_out(monkeypatch):
    class Refuses(torch.optim.SGD):
        def __init__(self, *args, **kwargs):
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")

    class Lacks(torch.optim.SGD):
        def step(self, closure=None):
            raise NotImplementedError("Could not run 'aten::_fused_sgd_'")

    cpu = torch.device("cpu")
    for kind in (Refuses, Lacks):
        assert not fused_optimizer._has_kernel(kind, cpu, torch.float32)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        kernels = {d: fused_optimizer._has_kernel(kind, cpu, d) for d in (*EXACT, torch.float16, torch.complex64)}
        assert kernels == {torch.float32: True, torch.float64: True, torch.float16: False, torch.complex64: False}


@pytest.mark.parametrize("name", ADAM_AND_MOMENTUM)
def test_mixed_types_and_a_parameter_that_stands_twice(name):
    def change(net):
        net[2].float()
        net[1].bfloat16()
        return net

    both = pair(OPTS[name], torch.float64, change)
    walk(both)
    assert distance(both[0][0], both[1][0]) <= 1e-6
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    opts = [make([[w, w]], lr=LR) for make, w in zip((OPTS[name], fuse(OPTS[name])), weights)]
    for opt, weight in zip(opts, weights):
        for _ in range(3):
            weight.grad = torch.tensor([1.0, 2.0, -3.0])
            opt.step()
    assert torch.equal(*weights) and opts[0].state[weights[0]].keys() == opts[1].state[weights[1]].keys()


def test_a_momentum_of_zero_is_an_average_too():
    for name in ADAM_AND_MOMENTUM:
        both = pair(OPTS[name], torch.float64)
        for step, mom in enumerate([0.9, 0.0, 0.0, 0.5]):
            give_grads([net for net, _ in both], step)
            for _, opt in both:
                opt.set_hyper("mom", mom)
                opt.step()
        assert_same(both, 1e-12)


def test_a_momentum_of_one_is_refused_as_by_fastai():
    net, opt = pair(Adam)[1]
    give_grads([net], 0)
    opt.set_hyper("mom", 1)
    with pytest.raises(ZeroDivisionError):
        opt.step()
    with pytest.raises(NotImplementedError, match="closure"):
        opt.step(lambda: 0)


@pytest.mark.parametrize("name", OPTS)
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_state_goes_from_either_to_the_other(name, ours_first):
    (_, theirs), (_, ours) = both = pair(OPTS[name], torch.float64)
    walk(both, 7)
    kept = [io.BytesIO(), io.BytesIO()]
    for (_, opt), file in zip(both, kept):
        torch.save(opt.state_dict(), file)
    source, target = (ours, theirs) if ours_first else (theirs, ours)
    saved = kept[1] if ours_first else kept[0]
    target.clear_state()
    target.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=False))
    assert [dict(h) for h in target.hypers] == [dict(h) for h in source.hypers]
    walk(both, 7, start=7)
    assert_same(both, 1e-12)


def test_it_is_copied_and_pickled_whole():
    both = pair(Adam, torch.float64)
    walk(both, 3)
    net, opt = both[1]
    for again in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy):
        other_net, other = again((net, opt))
        assert type(other) is FusedAdam
        other_pair = [copy.deepcopy((net, opt)), (other_net, other)]
        walk(other_pair, 3, start=3)
        assert distance(other_pair[0][0], other_net) == 0 < distance(net, other_net)


def own(params, lr):
    return Adam(params, lr=lr)


@pytest.mark.parametrize("make", [RMSProp, Lamb, ranger, own, partial(OptimWrapper, opt=torch.optim.AdamW), None, "x"])
def test_other_optimizers_are_left_alone(make):
    assert fuse(make) is make


def test_fastais_are_told_by_what_they_are():
    for make, kind in ((Adam, FusedAdam), (SGD, FusedSGD), (partial(partial(SGD, mom=0.9), lr=3.0), FusedSGD)):
        opt = fuse(make)([[nn.Parameter(torch.zeros(1))]], lr=0.1)
        assert type(opt) is kind and opt.hypers[0]["lr"] == 0.1
    assert fuse(partial(Adam, lr=3.0, mom=0.5)).keywords == {"lr": 3.0, "mom": 0.5}


# whole fits


@pytest.fixture
def twins(tmp_path):
    "A function: what `multihead_learner` takes → its learner with fastai's own steps, and with fused ones."

    def make(dtype=torch.float64, change=lambda ours: ours, norm=True, missing=None, bs=BS, **kwargs):
        return [one(tmp_path, dtype, change, norm, missing, bs, **kwargs, fused=fused) for fused in (False, True)]

    return make


def one(path, dtype, change, norm, missing, bs, **kwargs):
    set_seed(3)
    heads = {
        "kind": ClassificationHead(target=0, loss=nn.CrossEntropyLoss(), **PLAIN),
        "value": RegressionHead(target=1, tap="two", loss=squared, standardize=False, **PLAIN),
        "level": RegressionHead(target=2, loss=squared, standardize=False, loss_weight=0.5, **PLAIN),
    }
    options = {"path": path, "wd": 0.1} | kwargs
    learn = multihead_learner(data(missing, bs), network(norm), change(heads), **options)
    learn.model.to(dtype)
    learn.dls.add_tfms([Cast(dtype)], "after_batch")
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "heads_monitor")])
    learn.logger = lambda row: None
    learn.add_cb(Still())
    return learn


def frozen(learn):
    learn.freeze()
    learn.fit(STEPS // 4, LR)


def frozen_again(learn):
    learn.fit(2, LR)
    learn.freeze_to(1)
    learn.fit(3, LR)


WAYS = {
    "fit": lambda learn: learn.fit(STEPS // 4, LR / 5),
    "one cycle": lambda learn: learn.fit_one_cycle(STEPS // 4, slice(LR / 9, LR)),
    "fine_tune": lambda learn: learn.fine_tune(STEPS // 4 - 2, LR, freeze_epochs=2),
    "frozen": frozen,
    "frozen again": frozen_again,
    "anew": lambda learn: (learn.fit(2, LR / 5), learn.fit(3, LR / 5, reset_opt=True, wd=0.3)),
}


def rates(heads):
    return {name: replace(spec, lr_mult=mult) for (name, spec), mult in zip(heads.items(), (5.0, 1.0, 0.0))}


SITUATIONS = {
    "Adam": {},
    "SGD": {"opt_func": partial(SGD, mom=0.9)},
    "Adam with keywords": {"opt_func": partial(Adam, eps=1e-3, decouple_wd=False, lr=0.5)},
    "every parameter decays": {"wd_bn_bias": True},
    "frozen norms stay": {"train_bn": False},
    "a rate by head": {"change": rates},
    "a rate by head, SGD": {"change": rates, "opt_func": partial(SGD, mom=0.9)},
    "Disjoint": {"strategy": Disjoint()},
    "Disjoint with its own": {"strategy": Disjoint(partial(SGD, mom=0.9), {"kind": 0.5}), "wd_bn_bias": True},
    "UW": {"strategy": UW},
    "UW, every parameter decays": {"strategy": UW, "wd_bn_bias": True},
    "labels missing": {"missing": {"value": [0, 1, 2, 3]}},
    "labels missing, UW": {"missing": {"value": [0, 1, 2, 3]}, "strategy": UW},
    "channels_last": {"cbs": [ChannelsLast]},
}


class Hypers(Callback):
    "Keeps the hyperparameters and the parameters that train of every step."

    def __init__(self):
        self.seen = []

    def after_step(self):
        trains = [p.requires_grad for p in self.model.parameters()]
        self.seen.append(([dict(h) for h in self.opt.hypers], trains))


def inner(opt):
    "The fastai optimizers that step."
    if isinstance(opt, DisjointOptimizer):
        return list(opt._opts.values())
    return [opt.opt if isinstance(opt, HeadsOptimizer) else opt]


def assert_twins(learns, way, tolerance=1e-12):
    before, histories = weights(learns[0]), []
    assert torch.equal(before, weights(learns[1]))
    for learn in learns:
        hypers = Hypers()
        learn.add_cb(hypers)
        set_seed(1)
        way(learn)
        learn.remove_cb(hypers)
        histories.append((hypers.seen, vars(learn.recorder).get("hps"), learn.recorder.lrs))
    assert apart(*map(weights, learns)) <= tolerance < 1e-4 < apart(before, weights(learns[1]))
    assert histories[0] == histories[1] and len(histories[0][0]) == STEPS
    assert [isinstance(o, FusedOptimizer) for learn in learns for o in inner(learn.opt)] == [
        fused for fused in (False, True) for _ in inner(learns[0].opt)
    ]


@pytest.mark.parametrize(
    ("way", "situation"),
    [
        *(("fine_tune", s) for s in SITUATIONS),
        *((w, s) for w in WAYS if w != "fine_tune" for s in ("Adam", "Disjoint")),
    ],
)
def test_a_fit_is_the_one_with_fastais_own_steps(twins, way, situation):
    assert_twins(twins(**SITUATIONS[situation]), WAYS[way])


@pytest.mark.parametrize("situation", ["Adam", "SGD", "a rate by head"])
def test_in_float32_a_fit_is_the_same_to_the_sixth_place(twins, situation):
    options = SITUATIONS[situation] | {"norm": False}  # a norm of four items makes more of a last bit
    assert_twins(twins(torch.float32, **options), WAYS["one cycle"], 1e-6)


@pytest.mark.parametrize("situation", ["Adam", "SGD", "a rate by head", "Disjoint"])
@pytest.mark.parametrize("cb", [partial(GradientAccumulation, 8), partial(GradientClip, 0.05)], ids=["sum", "clip"])
def test_callbacks_that_work_on_the_gradients(twins, situation, cb):
    learns = twins(**SITUATIONS[situation])
    for learn in learns:
        learn.fit(STEPS // 4, LR, cbs=cb())
    assert apart(*map(weights, learns)) <= 1e-12


@pytest.mark.filterwarnings("ignore:`to_fp16` on a CPU")
@pytest.mark.parametrize("half", ["to_fp16", "to_bf16"])
def test_mixed_precision(twins, half):
    learns = twins(torch.float32, norm=False)
    before = weights(learns[0])
    for learn in learns:
        getattr(learn, half)().fit(1, LR)
    assert 0 < apart(*map(weights, learns)) + 1e-9 < 1e-4 < apart(before, weights(learns[1]))


def test_parameters_of_a_strategy_do_not_decay(twins):
    learn = twins(strategy=UW)[1]
    learn.create_opt()
    assert all(learn.opt.state[p] == {"do_wd": False} for p in learn.model[1].strategy.parameters())


@pytest.mark.parametrize("situation", ["Adam", "SGD", "a rate by head", "Disjoint"])
@pytest.mark.parametrize("order", [(False, True), (True, False)], ids=["fastai to fused", "fused to fastai"])
def test_a_checkpoint_goes_on_with_either(twins, situation, order):
    whole = twins(**SITUATIONS[situation])[order[0]]
    whole.fit_one_cycle(4, LR, cbs=SaveModelCallback(every_epoch=True, with_opt=True))
    other = twins(**SITUATIONS[situation])[order[1]]
    other.create_opt()
    other.load("model_1", with_opt=True)
    other.fit_one_cycle(4, LR, start_epoch=2)
    assert apart(weights(whole), weights(other)) <= 1e-12
    assert isinstance(inner(other.opt)[0], FusedOptimizer) == order[1]


def test_an_exported_learner_trains_on(twins, tmp_path):
    learn = twins()[1]
    learn.fit(1, LR)
    learn.remove_cbs(learn.cbs.filter(risinstance(Still)))  # defined in a file of tests
    learn.dls.after_batch.fs.clear()
    learn.export("whole.pkl")
    assert isinstance(learn.opt, FusedOptimizer) and learn.opt_func is Adam
    again = load_learner(tmp_path / "whole.pkl")
    again.create_opt()
    assert isinstance(again.opt, FusedOptimizer) and torch.equal(weights(learn), weights(again))


def test_any_other_optimizer_is_left_alone(twins):
    for make in (RMSProp, own, partial(OptimWrapper, opt=torch.optim.SGD)):
        learn = twins(opt_func=make)[1]
        learn.create_opt()
        assert not isinstance(learn.opt, FusedOptimizer) and learn.opt_func is make


def test_it_is_on_unless_turned_off(twins):
    off, on = twins()
    for learn, kind in ((off, False), (on, True)):
        learn.create_opt()
        assert isinstance(learn.opt, FusedOptimizer) == kind
    on.fused = False
    on.fit(1, LR, reset_opt=True)
    assert not isinstance(on.opt, FusedOptimizer)
