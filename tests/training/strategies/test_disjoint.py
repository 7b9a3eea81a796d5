"""Disjoint training is a loop with an optimizer for each loss."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from fastai.callback.fp16 import AMPMode
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import SGD, Adam, Lamb, Larc, Lookahead, OptimWrapper, QHAdam, RAdam, RMSProp, ranger
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.training.precision import DevicePrecision
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.trunks import Trunk

from .conftest import apart, losses_of, one_step, weights

LR, WD = 0.02, 0.1
FASTAI = {
    "SGD": partial(SGD, mom=0.9),
    "Adam": partial(Adam, eps=1e-8),
    "Adam with L2": partial(Adam, eps=1e-8, decouple_wd=False),
    "SGD with L2": partial(SGD, mom=0.9, decouple_wd=False),
    "RMSProp": RMSProp,
    "RAdam": RAdam,
    "QHAdam": QHAdam,
    "Lamb": Lamb,
    "Larc": partial(Larc, mom=0.9),
}
TORCH = {
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
    "RMSprop": torch.optim.RMSprop,
    "Adafactor": torch.optim.Adafactor,
}
LRS = {"kind": 0.5, "level": 3.0}


def rate(name):
    "Of RMSProp a small one: its first steps are large, and magnify how numbers are rounded."
    return LR / 20 if name.startswith("RMS") else LR


DECOUPLED = {"AdamW", "AdamW, fused", "Adafactor"}


def batches(learn, n):
    "As many batches as steps."
    every = list(learn.dls.train)
    return [every[i % len(every)] for i in range(n)]


def by_hand(learn, make, n, lrs, wd=0.0, decoupled=True, lr=LR):
    """A loop of K optimizers, each after its own loss's backward pass, all from the same place; decay once, at the
    scheduled rate, or in every gradient."""
    params = [p for p in learn.model.parameters() if p.requires_grad]
    own = {id(p): name for name, head in learn.heads.items() for p in head.parameters()}
    ours = {n: [p for p in params if own.get(id(p), n) == n] for n in learn.heads}
    opts = {n: make(group, lr=lr * lrs.get(n, 1.0)) for n, group in ours.items()}
    for batch in batches(learn, n):
        losses = losses_of(learn, batch)
        grads = {k: torch.autograd.grad(v, params, retain_graph=True, allow_unused=True) for k, v in losses.items()}
        with torch.no_grad():
            start = [p.clone() for p in params]
            if decoupled and wd:
                start = [p * (1 - lr * lrs.get(own.get(id(q)), 1.0) * wd) for p, q in zip(start, params)]
            moved = [torch.zeros_like(p) for p in params]
            for name, opt in opts.items():
                for p, at, grad in zip(params, start, grads[name]):
                    p.copy_(at)
                    p.grad = None if grad is None else grad + (0 if decoupled else wd * at)
                opt.step()
                for p, at, move in zip(params, start, moved):
                    move += p - at
            for p, at, move in zip(params, start, moved):
                p.copy_(at + move)


def same(learn, hand, tolerance=1e-10):
    assert apart(weights(learn), weights(hand)) <= tolerance


@pytest.mark.parametrize("wd", [0.0, WD])
@pytest.mark.parametrize("lrs", [{}, LRS], ids=["one rate", "rates by head"])
@pytest.mark.parametrize("name", FASTAI)
def test_it_equals_a_loop_of_fastai_optimizers(small, name, lrs, wd):
    learn, hand = small(Disjoint(FASTAI[name], lrs), wd=wd, wd_bn_bias=True), small()
    learn.fit(5, rate(name))
    by_hand(hand, partial(FASTAI[name], wd=0.0), 20, lrs, wd, "L2" not in name, rate(name))
    same(learn, hand)
    assert apart(weights(learn), weights(small())) > 1e-3


@pytest.mark.parametrize("wd", [0.0, WD])
@pytest.mark.parametrize("lrs", [{}, LRS], ids=["one rate", "rates by head"])
@pytest.mark.parametrize("name", TORCH)
def test_it_equals_a_loop_of_torch_optimizers(small, name, lrs, wd):
    learn, hand = small(Disjoint(partial(OptimWrapper, opt=TORCH[name]), lrs), wd=wd), small()
    learn.fit(5, rate(name))
    by_hand(hand, partial(TORCH[name], weight_decay=0.0), 20, lrs, wd, name in DECOUPLED, rate(name))
    same(learn, hand)


def test_batch_norms_and_biases_do_not_decay_in_fastai(small):
    learns = [small(Disjoint(), norm=True, wd=wd, opt_func=Adam) for wd in (0.0, 0.5)]
    before = dict(small(norm=True).model.named_parameters())
    for learn in learns:
        learn.fit(1, LR)
    assert apart(learns[0].model[0].net.one[0].weight, learns[1].model[0].net.one[0].weight) > 1e-5
    for name in ("0.net.one.1.bias", "0.net.one.1.weight"):
        moves = [dict(learn.model.named_parameters())[name] - before[name] for learn in learns]
        assert moves[0].abs().max() > 1e-4 and apart(*moves) < 0.3 * moves[0].abs().max().item(), name


def neck(n_in):
    return nn.Sequential(nn.Conv2d(n_in, 4, 1), nn.Tanh())


SITUATIONS = {
    "a trunk": {
        "trunk": {"neck": Trunk(neck)},
        "heads": lambda ours: {n: replace(s, tap="neck") if n != "value" else s for n, s in ours.items()},
    },
    "three nested taps": {"heads": lambda ours: {**ours, "level": replace(ours["level"], tap="one")}},
    "one head": {"heads": lambda ours: {"kind": ours["kind"], "value": None, "level": None}},
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_it_equals_the_loop_with(small, situation):
    learn, hand = small(Disjoint(Adam), **SITUATIONS[situation]), small(**SITUATIONS[situation])
    learn.fit(5, LR)
    by_hand(hand, partial(Adam, wd=0.0), 20, {})
    same(learn, hand)


def test_one_head_is_plain_training(small):
    alone = SITUATIONS["one head"] | {"opt_func": partial(Adam, sqr_mom=0.9), "wd": WD}
    learns = [small(Disjoint(), **alone), small(**alone)]
    for learn in learns:
        learn.fit_one_cycle(3, LR)
    same(*learns)


def test_rates_by_head_multiply_the_schedule_and_the_heads_own(small):
    heads = {"heads": lambda ours: {**ours, "value": replace(ours["value"], lr_mult=4.0)}}
    plain = SITUATIONS["one head"]
    learns = [small(Disjoint(SGD, {"kind": 0.5}), **plain), small(opt_func=SGD, **plain)]
    learns[0].fit(2, slice(LR / 5, LR))
    learns[1].fit(2, slice(LR / 10, LR / 2))
    same(*learns)
    faster, base = small(Disjoint(SGD), **heads), small(Disjoint(SGD))
    moves = []
    for learn in (faster, base):
        before = learn.heads.value.module.layers[0].weight.detach().clone()
        learn.fit(1, 1e-6)
        moves.append((learn.heads.value.module.layers[0].weight.detach() - before).norm().item())
    assert moves[0] == pytest.approx(4 * moves[1], rel=1e-3)


def test_a_frozen_body_stays_and_its_batch_norms_train(small):
    learn, hand = small(Disjoint(Adam), norm=True), small(norm=True)
    for one in (learn, hand):
        one.freeze()
    learn.fit(5, LR)
    by_hand(hand, partial(Adam, wd=0.0), 20, {})
    same(learn, hand)
    fresh = small(norm=True)
    assert torch.equal(learn.model[0].net.one[0].weight, fresh.model[0].net.one[0].weight)
    assert not torch.equal(learn.model[0].net.one[1].weight, fresh.model[0].net.one[1].weight)


def test_an_absent_head_takes_no_step(small):
    missing = {"value": [0, 1, 2, 3]}
    learn, hand = small(Disjoint(Adam), missing=missing), small(missing=missing)
    before = learn.heads.value.module.layers[0].weight.detach().clone()
    grads = one_step(learn)
    assert grads["1.heads.head_value.layers.0.weight"] is None
    assert torch.equal(before, learn.heads.value.module.layers[0].weight)
    learn = small(Disjoint(Adam), missing=missing)
    learn.fit(1, LR)
    with_gap(hand)
    same(learn, hand)


def with_gap(learn):
    "By hand: three optimizers, of which one begins with the second batch."
    params = list(learn.model.parameters())
    own = {id(p): name for name, head in learn.heads.items() for p in head.parameters()}
    opts = {n: Adam([p for p in params if own.get(id(p), n) == n], lr=LR, wd=0.0) for n in learn.heads}
    for i, batch in enumerate(learn.dls.train):
        losses = losses_of(learn, batch)
        grads = {k: torch.autograd.grad(v, params, retain_graph=True, allow_unused=True) for k, v in losses.items()}
        for name, opt in opts.items():
            if name == "value" and i == 0:
                continue
            for p, grad in zip(params, grads[name]):
                p.grad = grad
            opt.step()


def test_no_label_at_all_steps_nowhere(small):
    first = [0, 1, 2, 3]
    learn = small(Disjoint(SGD), missing={"kind": first, "value": first, "level": first})
    grads = one_step(learn)
    assert not any(grad.any() for grad in grads.values() if grad is not None)


def test_accumulated_batches_are_one_large_batch(small):
    learns = [small(Disjoint(Adam), bs=8), small(Disjoint(Adam), bs=4)]
    learns[0].fit(3, LR)
    learns[1].fit(3, LR, cbs=GradientAccumulation(8))
    same(*learns)


def test_every_loss_is_clipped_by_itself(small):
    norm = 0.05
    learn, hand = small(Disjoint(SGD)), small()
    learn.fit(1, LR, cbs=GradientClip(norm))
    params = list(hand.model.parameters())
    for batch in hand.dls.train:
        losses = losses_of(hand, batch)
        grads = {k: torch.autograd.grad(v, params, retain_graph=True, allow_unused=True) for k, v in losses.items()}
        with torch.no_grad():
            for row in grads.values():
                size = torch.cat([g.flatten() for g in row if g is not None]).norm()
                for p, grad in zip(params, row):
                    if grad is not None:
                        p -= LR * grad * (norm / (size + 1e-6)).clamp(max=1)
    same(learn, hand)


def test_the_loss_scale_is_taken_out(small):
    learns = [small(Disjoint(SGD), dtype=torch.float32) for _ in range(2)]
    for learn, scale in zip(learns, (1.0, 2.0**12)):
        learn.fit(1, LR, cbs=DevicePrecision(AMPMode.FP16, init_scale=scale))
    moved = weights(learns[0]) - weights(small(dtype=torch.float32))
    assert apart(*map(weights, learns)) < 0.05 * moved.abs().max().item()


@pytest.mark.filterwarnings("ignore:.to_fp16. on a CPU")
def test_an_overflow_skips_the_step_and_training_goes_on(small):
    learn = small(Disjoint(Adam), dtype=torch.float32)
    before = weights(learn)
    learn.to_fp16(init_scale=2.0**60, growth_interval=1000)
    learn.fit(1, LR)
    assert torch.equal(before, weights(learn))
    learn = small(Disjoint(Adam), dtype=torch.float32)
    learn.to_fp16(init_scale=2.0**17, backoff_factor=2.0**-8)
    learn.fit(2, LR)
    assert not torch.equal(before, weights(learn)) and weights(learn).isfinite().all()


def test_in_bfloat16_it_trains_as_in_float32(small):
    learns = [small(Disjoint(SGD), dtype=torch.float32) for _ in range(2)]
    learns[0].fit(1, LR)
    learns[1].to_bf16().fit(1, LR)
    moved = weights(learns[0]) - weights(small(dtype=torch.float32))
    assert 0 < apart(*map(weights, learns)) < 0.1 * moved.abs().max().item()


def test_a_task_scaled_by_1000_changes_nothing_and_takes_over_under_the_sum(small):
    adam = partial(Adam, eps=1e-14)

    def moved(strategy, **weight):
        learn = small(
            strategy, opt_func=adam, heads=lambda ours: {n: replace(s, **weight.get(n, {})) for n, s in ours.items()}
        )
        before = learn.model[0].net.one[0].weight.detach().clone()
        learn.fit(3, 1e-3)
        return learn.model[0].net.one[0].weight.detach() - before

    loud, alone = {"value": {"loss_weight": 1000.0}}, {n: {"loss_weight": 0.0} for n in ("kind", "level")}
    assert apart(moved(Disjoint(), **loud), moved(Disjoint())) < 1e-9
    assert apart(moved(None, **loud), moved(None)) > 1e-4
    taken_over = nn.functional.cosine_similarity(moved(None, **loud).flatten(), moved(None, **alone).flatten(), dim=0)
    shared = nn.functional.cosine_similarity(moved(None).flatten(), moved(None, **alone).flatten(), dim=0)
    assert taken_over > 0.99 > shared


def test_it_is_saved_and_goes_on_where_it_was(small):
    for make in (Adam, partial(OptimWrapper, opt=torch.optim.AdamW)):
        whole, first, second = (small(Disjoint(make, LRS)) for _ in range(3))
        for _ in range(2):
            whole.fit(2, LR)
        first.fit(2, LR)
        first.save("half", with_opt=True)
        second.create_opt()
        second.load("half", with_opt=True)
        second.fit(2, LR)
        assert torch.equal(weights(whole), weights(second))


def test_reset_opt_and_freezing_work_as_ever(small):
    learn = small(Disjoint(Adam), norm=True)
    learn.fit(1, LR)
    learn.freeze()
    assert learn.opt.frozen_idx == len(learn.opt.hypers) - 1
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.fit(1, LR, reset_opt=True)
    learn.opt.clear_state()
    learn.fit_one_cycle(1, slice(1e-4, 1e-2))
    assert [h["lr"] for h in learn.opt.hypers] != [LR] * len(learn.opt.hypers)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Disjoint(lrs={"kin": 0.1}), "`lrs` of Disjoint: there is no head 'kin'.*Did you mean 'kind'"),
        (
            lambda: Disjoint(lrs={"kind": -1}),
            "`lrs\\['kind'\\]` of Disjoint is a finite number of at least 0, found -1",
        ),
        (lambda: Disjoint(lrs=[0.1, 0.2]), "`lrs` of Disjoint is a dict of head to a number, .* found \\[0.1, 0.2\\]"),
        (lambda: Disjoint("Adam"), "`opt_func` of Disjoint is a function that makes an optimizer, found 'Adam'"),
        (lambda: Disjoint(OptimWrapper(opt=torch.optim.SGD(nn.Linear(1, 1).parameters()))), "made already"),
    ],
)
def test_what_does_not_fit_is_refused(small, make, said):
    with pytest.raises(HeadsError, match=said):
        small(make())


@pytest.mark.parametrize("opt_func", [ranger, lambda params, lr: Lookahead(Adam(params, lr=lr))])
def test_optimizers_that_average_the_parameters_are_refused(small, opt_func):
    learn = small(Disjoint(opt_func))
    before = weights(learn)
    with pytest.raises(HeadsError, match="Lookahead"):
        learn.fit(1, LR)
    assert torch.equal(before, weights(learn))


def test_its_optimizer_does_not_step_elsewhere(small):
    learn = small(Disjoint(Adam))
    learn.create_opt()
    with pytest.raises(HeadsError, match="steps within its learner's training"):
        learn.opt.step()
