"""Gradient balancing is what TorchJD makes of the same gradients, wherever a head reads and whatever trains."""

import inspect
from dataclasses import replace

import pytest
import torch
import torchjd.aggregation as jd
from fastai.callback.fp16 import AMPMode
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import Adam
from torch import nn
from torchjd.aggregation import MGDA, GradDrop, PCGrad, Sum, UPGrad

from fastai_heads.errors import HeadsError
from fastai_heads.training.precision import DevicePrecision
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.trunks import Trunk

from .conftest import apart, forward, losses_of, matrix, one_step, rows_of, shared_by, weights

AGGREGATORS = {
    "AlignedMTL": lambda: jd.AlignedMTL(),
    "CAGrad": lambda: jd.CAGrad(c=0.5),
    "ConFIG": lambda: jd.ConFIG(),
    "Constant": lambda: jd.Constant(torch.tensor([0.2, 0.5, 2.0], dtype=torch.float64)),
    "DualProj": lambda: jd.DualProj(),
    "ExcessMTL": lambda: jd.ExcessMTL(),
    "FairGrad": lambda: jd.FairGrad(alpha=1.0),
    "GradDrop": lambda: jd.GradDrop(),
    "GradVac": lambda: jd.GradVac(),
    "IMTLG": lambda: jd.IMTLG(),
    "Krum": lambda: jd.Krum(n_byzantine=0),
    "Mean": lambda: jd.Mean(),
    "MGDA": lambda: jd.MGDA(),
    "NashMTL": lambda: jd.NashMTL(n_tasks=3),
    "PCD": lambda: jd.PCD(),
    "PCGrad": lambda: jd.PCGrad(),
    "Random": lambda: jd.Random(),
    "Sum": lambda: jd.Sum(),
    "TrimmedMean": lambda: jd.TrimmedMean(trim_number=1),
    "UPGrad": lambda: jd.UPGrad(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    "WeightedAggregator": lambda: jd.WeightedAggregator(jd.CRMOGMWeighting(jd.MeanWeighting())),
    "GramianWeightedAggregator": lambda: jd.GramianWeightedAggregator(jd.CRMOGMWeighting(jd.MGDAWeighting())),
}
CLOSE = {"NashMTL": 1e-5, "FairGrad": 1e-6, "CAGrad": 1e-5}
"Whose solvers iterate: rows and their products round in other places."


def test_every_aggregator_of_torchjd_is_tried():
    made = [getattr(jd, name) for name in jd.__all__]
    concrete = {c.__name__ for c in made if isinstance(c, type) and issubclass(c, jd.Aggregator)} - {"Aggregator"}
    assert concrete == set(AGGREGATORS)
    assert not [c for c in made if inspect.isabstract(c) and c.__name__ in AGGREGATORS]


def by_hand(learn, aggregator, draws=11, batch=None, keep=None):
    "TorchJD on the matrix of all rows; what one loss alone reaches has that loss's gradient."
    params = [p for p in learn.model.parameters() if p.requires_grad]
    losses = losses_of(learn, batch)
    rows = rows_of(losses if keep is None else {n: losses[n] for n in keep}, params)
    places = shared_by(rows_of(losses, params), len(params))
    torch.manual_seed(draws)
    vector = aggregator(matrix(rows, params, places)) if places else torch.zeros(0)
    joint = dict(zip(places, vector.split([params[i].numel() for i in places])))
    names = {id(p): name for name, p in learn.model.named_parameters()}
    found = {}
    for i, param in enumerate(params):
        own = next((row[i] for row in rows.values() if row[i] is not None), None)
        found[names[id(param)]] = joint[i].view_as(param) if i in joint else own
    return found


def at_taps(learn, aggregator, draws=11, keep=None):
    "TorchJD on the gradients with regard to the taps; one pass back from there."
    body, heads = learn.model
    params = [p for p in heads.parameters() if p.requires_grad]
    taps, losses = forward(learn)
    ends, cut = zip(*taps.values())
    variables = [*cut, *params]
    rows = rows_of(losses, variables)
    places = sorted({*range(len(cut)), *shared_by(rows, len(variables))})
    rows = rows if keep is None else {name: rows[name] for name in keep}
    torch.manual_seed(draws)
    parts = aggregator(matrix(rows, variables, places)).split([variables[i].numel() for i in places])
    joint = {i: part.view_as(variables[i]) for i, part in zip(places, parts)}
    own = [next((row[i] for row in rows.values() if row[i] is not None), None) for i in range(len(variables))]
    grads = [joint.get(i, own[i]) for i in range(len(variables))]
    there = [p for p in body.parameters() if p.requires_grad]
    back = torch.autograd.grad(ends, there, grads[: len(cut)], allow_unused=True)
    named = {id(p): g for p, g in zip([*there, *params], [*back, *grads[len(cut) :]])}
    return {name: named[id(p)] for name, p in learn.model.named_parameters() if id(p) in named}


HAND = {"body": by_hand, "taps": at_taps}


def same(found, wanted, tolerance=1e-12):
    assert {n for n, g in found.items() if g is not None} == {n for n, g in wanted.items() if g is not None}
    largest = max(grad.abs().max() for grad in wanted.values() if grad is not None)
    assert largest > 1e-4
    for name, grad in wanted.items():
        assert grad is None or apart(found[name], grad) <= tolerance * largest, name


@pytest.mark.parametrize("name", AGGREGATORS)
def test_over_the_body_it_equals_torchjd_by_hand(small, name):
    wanted = by_hand(small(), AGGREGATORS[name]())
    same(one_step(small(AGGREGATORS[name]()), 11), wanted, CLOSE.get(name, 1e-10))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_over_the_taps_it_equals_torchjd_by_hand(small, name):
    wanted = at_taps(small(), AGGREGATORS[name]())
    same(one_step(small(Balance(AGGREGATORS[name](), over="taps")), 11), wanted, CLOSE.get(name, 1e-10))


def neck(n_in):
    return nn.Sequential(nn.Conv2d(n_in, 4, 1), nn.Tanh())


def changed(names, **fields):
    "A function of the three heads that changes some."
    return lambda ours: {n: replace(spec, **fields) if n in names else spec for n, spec in ours.items()}


SITUATIONS = {
    "a trunk": {"trunk": {"neck": Trunk(neck)}, "heads": changed(["kind", "level"], tap="neck")},
    "a trunk beside its tap": {"trunk": {"neck": Trunk(neck)}, "heads": changed(["kind"], tap="neck")},
    "three nested taps": {"heads": changed(["level"], tap="one")},
    "batch norm": {"norm": True},
}


@pytest.mark.parametrize("over", ["body", "taps"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_it_equals_torchjd_by_hand_with(small, situation, over):
    kwargs = SITUATIONS[situation]
    wanted = HAND[over](small(**kwargs), UPGrad())
    same(one_step(small(Balance(UPGrad(), over), **kwargs)), wanted)


@pytest.mark.parametrize("over", ["body", "taps"])
def test_one_head_is_plain_training(small, over):
    alone = {"heads": lambda ours: {"kind": ours["kind"], "value": None, "level": None}}
    same(one_step(small(Balance(UPGrad(), over), **alone)), one_step(small(**alone)))


@pytest.mark.parametrize("over", ["body", "taps"])
def test_a_head_without_a_weight_has_no_row(small, over):
    found = one_step(small(Balance(UPGrad(), over), heads=changed(["level"], loss_weight=0.0)))
    same(found, HAND[over](small(), UPGrad(), keep=("kind", "value")))


@pytest.mark.parametrize("over", ["body", "taps"])
def test_a_frozen_body_leaves_nothing_to_balance(small, over):
    plain, balanced = small(), small(Balance(UPGrad(), over))
    for learn in (plain, balanced):
        learn.freeze()
    wanted = one_step(plain)
    assert {n for n, g in wanted.items() if g is not None} == {
        n for n, _ in plain.model.named_parameters() if n[0] == "1"
    }
    same(one_step(balanced), wanted)


@pytest.mark.parametrize("over", ["body", "taps"])
def test_of_a_frozen_body_the_batch_norms_are_balanced(small, over):
    learns = [small(norm=True), small(Balance(UPGrad(), over), norm=True)]
    for learn in learns:
        learn.freeze()
    wanted = HAND[over](learns[0], UPGrad())
    assert any(name.startswith("0.net.one.1") for name, grad in wanted.items() if grad is not None)
    same(one_step(learns[1]), wanted)


@pytest.mark.parametrize("over", ["body", "taps"])
def test_sum_is_the_plain_sum(small, over):
    learns = [small(opt_func=Adam), small(Balance(Sum(), over), opt_func=Adam)]
    for learn in learns:
        learn.fit_one_cycle(2, 1e-2)
    assert apart(*map(weights, learns)) < 1e-10
    assert apart(weights(learns[0]), weights(small())) > 1e-3


def test_constant_weights_are_loss_weights_for_what_is_shared(small):
    constant = jd.Constant(torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))
    plain, balanced = one_step(small(heads=changed(["value"], loss_weight=2.0))), one_step(small(constant))
    for name in plain:
        half = 2.0 if "head_value" in name else 1.0
        assert apart(balanced[name] * half, plain[name]) < 1e-12, name


@pytest.mark.parametrize("over", ["body", "taps"])
def test_an_absent_head_has_no_row(small, over):
    missing = {"value": [0, 1, 2, 3]}
    learn = small(Balance(MGDA(), over), missing=missing)
    found = one_step(learn)
    same(found, HAND[over](small(missing=missing), MGDA(), keep=("kind", "level")))
    assert set(learn.strategy.weights) == {"kind", "level"}
    assert all(weight > 0 for weight in learn.strategy.weights.values())


def test_of_an_absent_head_preferences_are_left_out_too(small):
    missing, prefer = {"value": [0, 1, 2, 3]}, torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    found = one_step(small(UPGrad(prefer), missing=missing))
    wanted = by_hand(small(missing=missing), UPGrad(prefer[[0, 2]]), keep=("kind", "level"))
    same({n: g for n, g in found.items() if g is not None}, {n: g for n, g in wanted.items() if g is not None})


def test_a_head_that_comes_late_is_balanced_from_then_on(small):
    learn = small(UPGrad(), missing={"value": [0, 1, 2, 3]})
    learn.fit(1, 0.1)
    assert set(learn.strategy.weights) == {"kind", "value", "level"}
    assert weights(learn).isfinite().all()


@pytest.mark.parametrize("over", ["body", "taps"])
def test_no_label_at_all_steps_nowhere(small, over):
    first = [0, 1, 2, 3]
    grads = one_step(small(Balance(MGDA(), over), missing={"kind": first, "value": first, "level": first}))
    assert all(grad is not None and not grad.any() for grad in grads.values())


def test_accumulated_batches_are_one_large_batch(small):
    whole = one_step(small(MGDA(), bs=8))
    found = one_step(small(MGDA(), bs=4), cbs=[GradientAccumulation(8)])
    same(found, whole, 1e-10)


def test_accumulated_batches_over_taps_are_balanced_one_by_one(small):
    accumulated = one_step(small(Balance(Sum(), "taps"), bs=4), cbs=[GradientAccumulation(8)])
    same(accumulated, one_step(small(bs=8)), 1e-10)


@pytest.mark.parametrize("over", ["body", "taps"])
def test_clipping_comes_after_balancing(small, over):
    plain = one_step(small(Balance(MGDA(), over)))
    norm = torch.cat([g.flatten() for g in plain.values()]).norm()
    clipped = one_step(small(Balance(MGDA(), over)), cbs=[GradientClip(norm.item() / 3)])
    same(clipped, {n: g / 3 for n, g in plain.items()}, 1e-4)


@pytest.mark.parametrize("over", ["body", "taps"])
@pytest.mark.parametrize("name", ["UPGrad", "FairGrad", "NashMTL", "GradDrop"])
def test_the_loss_scale_of_half_precision_does_not_reach_an_aggregator(small, name, over):
    found = []
    for scale in (1.0, 2.0**10):
        learn = small(Balance(AGGREGATORS[name](), over), dtype=torch.float32)
        found.append(one_step(learn, 11, [DevicePrecision(AMPMode.FP16, init_scale=scale)]))
    same(*found, 0.05)


@pytest.mark.parametrize("over", ["body", "taps"])
@pytest.mark.parametrize("aggregator", [UPGrad, MGDA, GradDrop, PCGrad])
@pytest.mark.filterwarnings("ignore:.to_fp16. on a CPU")
def test_an_overflow_skips_the_step_and_training_goes_on(small, aggregator, over):
    learn = small(Balance(aggregator(), over), dtype=torch.float32)
    learn.to_fp16(init_scale=2.0**60, growth_interval=1000)
    before = weights(learn)
    learn.fit(1, 0.1)
    assert torch.equal(before, weights(learn))
    learn = small(Balance(aggregator(), over), dtype=torch.float32)
    learn.to_fp16(init_scale=2.0**17, backoff_factor=2.0**-8)
    learn.fit(2, 0.1)
    assert not torch.equal(before, weights(learn)) and weights(learn).isfinite().all()


@pytest.mark.parametrize("over", ["body", "taps"])
def test_in_bfloat16_it_balances_as_in_float32(small, over):
    whole = one_step(small(Balance(UPGrad(), over), dtype=torch.float32))
    half = one_step(small(Balance(UPGrad(), over), dtype=torch.float32), cbs=[DevicePrecision(AMPMode.BF16)])
    same(half, whole, 0.1)
    assert any(apart(half[name], whole[name]) > 0 for name in whole)


def test_its_weights_are_told(small):
    learn = small(MGDA())
    one_step(learn)
    assert sum(learn.strategy.weights.values()) == pytest.approx(
        1 - 0.5 * learn.strategy._row_weights["level"], abs=1e-6
    )
    learn = small(GradDrop())
    one_step(learn)
    assert all(weight != weight for weight in learn.strategy.weights.values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Balance(UPGrad(), over="tap"), "`over` of Balance is 'body' or 'taps', found 'tap'"),
        (lambda: Balance(3), "`aggregator` of Balance is one of torchjd.*, found 3"),
        (lambda: jd.NashMTL(n_tasks=2), "NashMTL cannot be used with 3 heads"),
        (lambda: jd.Constant(torch.ones(2)), "Constant cannot be used with 3 heads"),
        (lambda: jd.TrimmedMean(2), "TrimmedMean cannot be used with 3 heads"),
        (lambda: jd.CAGrad, "CAGrad needs c: pass `CAGrad\\(c=…\\)`"),
    ],
)
def test_what_does_not_fit_is_refused(small, make, said):
    with pytest.raises(HeadsError, match=said):
        small(make())


@pytest.mark.parametrize("name", ["NashMTL", "PCD", "Krum"])
def test_an_aggregator_that_needs_every_head_is_refused_where_labels_may_be_missing(small, name):
    with pytest.raises(HeadsError, match=rf"`strategy`: {name} .*(value|1 heads)"):
        small(AGGREGATORS[name](), missing={"value": [0]})


def test_a_class_is_made_for_the_heads(small):
    assert small(jd.NashMTL).strategy.aggregator.n_tasks == 3
    assert isinstance(small(Balance(UPGrad, "taps")).strategy.aggregator, UPGrad)
