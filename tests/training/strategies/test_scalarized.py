"""Learned and adapted weights are TorchJD's on the same losses; what they learn trains, is stepped and is saved."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torchjd.scalarization as jd
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn
from torchjd.scalarization import DWA, FAMO, STCH, UW, GeometricMean

from fastai_heads.errors import HeadsError
from fastai_heads.training.precision import DevicePrecision
from fastai_heads.training.strategies.bridge import scalarize
from fastai_heads.trunks import Trunk

from .conftest import apart, losses_of, one_step, weights

THREE = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
SCALARIZERS = {
    "COSMOS": lambda: jd.COSMOS(0.5, THREE),
    "Constant": lambda: jd.Constant(THREE),
    "DWA": lambda: jd.DWA(),
    "FAMO": lambda: jd.FAMO(3),
    "GeometricMean": lambda: jd.GeometricMean(),
    "IMTLL": lambda: jd.IMTLL(3),
    "Mean": lambda: jd.Mean(),
    "PBI": lambda: jd.PBI(1.0, THREE),
    "Random": lambda: jd.Random(),
    "STCH": lambda: jd.STCH(0.1, THREE),
    "Sum": lambda: jd.Sum(),
    "UW": lambda: jd.UW(3),
}
SOME = {name: make for name, make in SCALARIZERS.items() if name not in ("Mean", "Sum", "Random")}


def test_every_scalarizer_of_torchjd_is_tried():
    assert set(jd.__all__) - {"Scalarizer"} == set(SCALARIZERS)


def by_hand(learn, scalarizer, draws=11):
    "The gradient of the scalarizer on the losses of the first batch."
    losses = torch.stack(list(losses_of(learn).values()))
    torch.manual_seed(draws)
    params = dict(learn.model.named_parameters())
    grads = torch.autograd.grad(scalarizer(losses), list(params.values()), allow_unused=True)
    return dict(zip(params, grads))


def same(found, wanted, tolerance=1e-10):
    for name, grad in wanted.items():
        assert (grad is None) == (found[name] is None), name
        assert grad is None or apart(found[name], grad) <= tolerance, name
    assert max(grad.abs().max() for grad in wanted.values() if grad is not None) > 1e-3


@pytest.mark.parametrize("name", SCALARIZERS)
def test_it_equals_torchjd_by_hand(small, name):
    found = one_step(small(SCALARIZERS[name]().double()), 11)
    same({n: g for n, g in found.items() if "strategy" not in n}, by_hand(small(), SCALARIZERS[name]().double()))


def test_constant_weights_are_loss_weights(small):
    def weighted(ours):
        pairs = zip(ours.items(), (0.5, 1.0, 1.0))
        return {name: replace(spec, loss_weight=weight) for (name, spec), weight in pairs}

    learns = small(heads=weighted, opt_func=Adam), small(jd.Constant(THREE), opt_func=Adam)
    for learn in learns:
        learn.fit_one_cycle(2, 1e-2)
    assert apart(*map(weights, learns)) < 1e-10


@pytest.mark.parametrize("make", [lambda: jd.UW(3), lambda: jd.IMTLL(3)])
def test_what_it_learns_trains_with_the_heads_as_by_hand(small, make):
    learn, hand, scalarizer = small(make().double()), small(), make().double()
    opt = torch.optim.SGD([*hand.model.parameters(), *scalarizer.parameters()], lr=0.05)
    for _ in range(3):
        for batch in hand.dls.train:
            opt.zero_grad()
            scalarizer(torch.stack(list(losses_of(hand, batch).values()))).backward()
            opt.step()
    learn.fit(3, 0.05)
    ours, theirs = (torch.cat([p.detach() for p in s.parameters()]) for s in (learn.strategy.scalarizer, scalarizer))
    assert apart(ours, theirs) < 1e-12 and theirs.abs().min() > 1e-3
    assert apart(weights(learn)[: len(weights(hand))], weights(hand)) < 1e-12
    assert {"1.strategy.scalarizer.log_var", "1.strategy.scalarizer.log_scale"} & set(learn.model.state_dict())


def test_weight_decay_is_not_for_what_it_learns(small):
    learn = small(jd.UW(3), opt_func=Adam, wd=0.5)
    learn.create_opt()
    assert learn.opt.state[learn.strategy.scalarizer.log_var]["do_wd"] is False


def test_dwa_is_stepped_after_every_epoch_as_by_hand(small):
    learn, hand, dwa = small(DWA()), small(), DWA()
    opt = torch.optim.SGD(hand.model.parameters(), lr=0.05)
    for _ in range(4):
        for batch in hand.dls.train:
            opt.zero_grad()
            dwa(torch.stack(list(losses_of(hand, batch).values()))).backward()
            opt.step()
        dwa.step()
    learn.fit(4, 0.05)
    assert apart(weights(learn), weights(hand)) < 1e-12
    assert max(learn.strategy.weights.values()) > 1.001


def test_famo_is_stepped_after_every_step_as_by_hand(small):
    learn, hand, famo = small(FAMO(3).double()), small(), FAMO(3).double()
    opt = torch.optim.SGD(hand.model.parameters(), lr=0.05)
    for _ in range(3):
        for batch in hand.dls.train:
            opt.zero_grad()
            famo(torch.stack(list(losses_of(hand, batch).values()))).backward()
            opt.step()
            with torch.no_grad():
                famo.update(torch.stack(list(losses_of(hand, batch).values())))
    learn.fit(3, 0.05)
    assert apart(weights(learn), weights(hand)) < 1e-12
    assert apart(learn.strategy.scalarizer._w, famo._w) < 1e-12 and famo._w.abs().min() > 1e-3


def test_famo_moves_no_statistic_of_a_batch_norm_and_draws_nothing(small):
    class State(Callback):
        order = 100

        def __init__(self):
            self.seen = []

        def before_step(self):
            norm = self.model[0].net.one[1]
            self.seen.append((norm.running_mean.clone(), norm.num_batches_tracked.clone(), torch.get_rng_state()))

        def after_step(self):
            self.before_step()

    state = State()
    small(FAMO(3), norm=True).fit(1, 0.05, cbs=state)
    for before, after in zip(state.seen[::2], state.seen[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize("name", SOME)
def test_an_absent_loss_takes_no_part(small, name):
    missing = {"value": [0, 1, 2, 3]}
    learn = small(SCALARIZERS[name]().double(), missing=missing)
    found = one_step(learn)
    hand = small(missing=missing)
    two = torch.stack([loss for n, loss in losses_of(hand).items() if n != "value"])
    scalarizer = {
        "COSMOS": lambda: jd.COSMOS(0.5, THREE[[0, 2]]),
        "Constant": lambda: jd.Constant(THREE[[0, 2]]),
        "FAMO": lambda: jd.FAMO(2),
        "IMTLL": lambda: jd.IMTLL(2),
        "PBI": lambda: jd.PBI(1.0, THREE[[0, 2]]),
        "STCH": lambda: jd.STCH(0.1, THREE[[0, 2]]),
        "UW": lambda: jd.UW(2),
    }.get(name, SCALARIZERS[name])()
    params = dict(hand.model.named_parameters())
    grads = torch.autograd.grad(scalarizer.double()(two), list(params.values()), allow_unused=True)
    for param, grad in zip(params, grads):
        assert apart(found[param], torch.zeros_like(found[param]) if grad is None else grad) < 1e-10
    assert set(learn.strategy.weights) == {"kind", "level"}


def test_what_is_learned_of_an_absent_head_stays(small):
    first = [0, 1, 2, 3]
    for make in (lambda: jd.UW(3), lambda: jd.FAMO(3)):
        learn = small(make(), missing={"value": first}, bs=4)
        learned = learn.strategy.scalarizer
        before = next(learned.parameters()).detach().clone()

        class AfterOne(Callback):
            def after_batch(self):
                self.learn.learned = next(learned.parameters()).detach().clone()  # noqa: B023
                self.learn.stop = True

            def before_batch(self):
                if self.iter == 1 and self.training:
                    from fastai.callback.core import CancelFitException

                    raise CancelFitException

        learn.fit(1, 0.1, cbs=AfterOne())
        assert torch.equal(learn.learned[1], before[1])
        assert (learn.learned[[0, 2]] != before[[0, 2]]).all()


@pytest.mark.parametrize("name", SOME)
def test_labels_that_come_and_go_train(small, name):
    learn = small(SCALARIZERS[name]().double(), missing={"value": [0, 1, 2, 3, 9], "kind": [4, 5, 6, 7]})
    learn.fit(3, 0.01)
    assert weights(learn).isfinite().all()


@pytest.mark.parametrize("name", SOME)
def test_no_label_at_all_in_a_batch(small, name):
    first = [0, 1, 2, 3]
    grads = one_step(small(SCALARIZERS[name](), missing={"kind": first, "value": first, "level": first}))
    assert not any(grad.any() for grad in grads.values() if grad is not None)


def test_dwa_averages_over_the_batches_in_which_a_head_is_present(small):
    learn = small(DWA(), missing={"value": [0, 1, 2, 3]})
    seen = []

    class Noted(Callback):
        def after_loss(self):
            if self.training:
                seen.append([loss.item() for loss in self.head_losses])

    learn.fit(2, 0.05, cbs=Noted())
    means = torch.tensor(seen[4:], dtype=torch.float64)
    level = means[:, 2].mean() * 0.5
    newer = learn.model[1].strategy.newer
    assert newer[1] == pytest.approx(means[1:, 1].mean().item()) and newer[2] == pytest.approx(level.item())


SITUATIONS = {
    "accumulation": [GradientAccumulation(8)],
    "clipping": [GradientClip(0.1)],
    "bfloat16": [DevicePrecision(AMPMode.BF16)],
    "float16": [DevicePrecision(AMPMode.FP16, init_scale=2.0**40)],
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", ["UW", "FAMO", "DWA", "GeometricMean"])
def test_it_trains_with(small, name, situation):
    learn = small(SCALARIZERS[name](), dtype=torch.float32)
    before = weights(learn)
    learn.fit(8 if situation == "float16" else 2, 0.02, cbs=SITUATIONS[situation])
    assert weights(learn).isfinite().all() and not torch.equal(before, weights(learn))


def test_accumulated_batches_are_one_large_batch_of_a_sum(small):
    found = one_step(small(jd.Constant(THREE)), cbs=[GradientAccumulation(8)])
    same(found, one_step(small(jd.Constant(THREE), bs=8)))


def test_with_a_trunk_a_frozen_body_and_one_head(small):
    neck = {"neck": Trunk(lambda n: nn.Conv2d(n, 4, 1))}
    learn = small(UW, heads=lambda ours: {**ours, "kind": replace(ours["kind"], tap="neck")}, trunk=neck)
    learn.freeze()
    before = learn.model[0].net.one[0].weight.clone()
    learn.fit(1, 0.1)
    assert torch.equal(before, learn.model[0].net.one[0].weight)
    assert learn.strategy.scalarizer.log_var.abs().min() > 1e-4
    alone = small(UW, heads=lambda ours: {"kind": ours["kind"], "value": None, "level": None})
    alone.fit(1, 0.1)
    assert alone.strategy.scalarizer.log_var.shape == (1,)


@pytest.mark.parametrize("name", ["UW", "IMTLL", "FAMO", "DWA"])
def test_it_is_saved_and_goes_on_where_it_was(small, name):
    make = SCALARIZERS[name]
    whole = small(make(), opt_func=partial(SGD, mom=0.9))
    for _ in range(2):
        whole.fit(2, 0.05)
    first = small(make(), opt_func=partial(SGD, mom=0.9))
    first.fit(2, 0.05)
    first.save("half", with_opt=True)
    second = small(make(), opt_func=partial(SGD, mom=0.9))
    second.create_opt()
    second.load("half", with_opt=True)
    second.fit(2, 0.05)
    assert torch.equal(weights(whole), weights(second))
    assert whole.strategy.weights == second.strategy.weights


def test_weights_of_another_strategy_load(small):
    learn = small(UW)
    learn.fit(1, 0.1)
    learn.save("uw")
    for strategy in (None, GeometricMean, DWA):
        other = small(strategy)
        other.load("uw", with_opt=False)
        assert torch.equal(weights(other), weights(learn)[: len(weights(other))])
    small().save("plain")
    fresh = small(UW)
    fresh.load("plain", with_opt=False)
    assert not fresh.strategy.scalarizer.log_var.any()


def test_the_table_shows_the_sum_whatever_is_trained(small):
    rows = []
    for strategy in (None, lambda: jd.IMTLL(3)):
        learn = small(strategy and strategy())
        learn.logger = lambda row: rows.append(list(row))
        learn.fit(1, 1e-9)
    plain, other = rows
    assert plain[:3] == pytest.approx(other[:3], rel=1e-5)


def test_a_torch_optimizer_trains_what_it_learns(small):
    learn = small(UW, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
    learn.fit(1, 0.1)
    assert learn.strategy.scalarizer.log_var.abs().min() > 1e-2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: UW(2), "UW cannot be used with 3 heads: .*(2,).*(3,)"),
        (lambda: STCH, "STCH needs mu: pass `STCH\\(mu=…\\)`"),
        (lambda: jd.Constant(THREE[:2]), "Constant cannot be used with 3 heads"),
    ],
)
def test_what_does_not_fit_is_refused(small, make, said):
    with pytest.raises(HeadsError, match=said):
        small(make())


def test_of_some_losses_a_scalarizer_holds_no_more(small):
    uw = UW(3)
    value = scalarize(uw, torch.tensor([1.0, 2.0]), [0, 2], 3)
    (grad,) = torch.autograd.grad(value, uw.log_var)
    assert value.item() == pytest.approx(1.5) and grad.tolist() == [0.0, 0.0, -0.5]
