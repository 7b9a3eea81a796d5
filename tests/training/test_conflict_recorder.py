"""What is recorded is what one works out by hand, and the training is the same to the bit as without."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam
from fastai.torch_core import no_random
from torchjd.aggregation import GradDrop, UPGrad
from torchjd.scalarization import DWA, FAMO, UW

from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.training.conflict_record import step_shares
from fastai_heads.training.conflict_recorder import ConflictRecorder
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.disjoint import Disjoint

TARGETS = ("digit", "ink", "centre")
STRATEGIES = {
    "sum": lambda: None,
    "UW": lambda: UW,
    "DWA": lambda: DWA,
    "FAMO": lambda: FAMO,
    "UPGrad": UPGrad,
    "taps": lambda: Balance(UPGrad(), over="taps"),
    "GradDrop": GradDrop,
    "disjoint": Disjoint,
}


def accumulating(learn: Learner) -> None:
    learn.add_cbs([GradientAccumulation(24), GradientClip(1.0)])


def frozen(learn: Learner) -> None:
    learn.train_bn = False
    learn.freeze()


SITUATIONS = {
    "plain": lambda learn: None,
    "accumulation": accumulating,
    "bf16": lambda learn: learn.to_bf16(),
    "frozen": frozen,
    "frozen but for batch norm": lambda learn: learn.freeze(),
}


class Grads(Callback):
    "Keeps the losses' gradients and the one that is handed to the optimizer, in every batch."

    order, run_valid = 59, False

    def __init__(self):
        self.rows, self.given = [], []

    def before_backward(self):
        body = [p for p in self.model[0].parameters() if p.requires_grad]
        losses = self.learn.head_losses
        grads = [torch.autograd.grad(loss, body, retain_graph=True, materialize_grads=True) for loss in losses]
        self.rows.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in grads]).double())

    def after_step(self):
        self.given.append(torch.cat([p.grad.flatten() for p in self.model[0].parameters()]).double())


def trained(learner, strategy, situation=None, cbs=(), epochs=1, missing=0.3, **kwargs):
    "A learner after a short fit, always the same one for the same arguments."
    with no_random(3):
        learn = learner(TARGETS, missing=missing, strategy=strategy, **kwargs)
        if situation:
            situation(learn)
        with learn.no_bar(), learn.no_logging():
            learn.fit(epochs, 1e-2, cbs=list(cbs))
    return learn


def assert_same(one: Learner, two: Learner) -> None:
    ours, theirs = one.model.state_dict(), two.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


MATRIX = [(strategy, situation) for strategy in STRATEGIES for situation in ("plain", "accumulation")] + [
    (strategy, situation) for strategy in ("sum", "UW", "taps", "disjoint") for situation in SITUATIONS
]


@pytest.mark.parametrize(("strategy", "situation"), sorted(set(MATRIX)))
def test_training_is_the_same_to_the_bit(learner, strategy, situation):
    made, change = STRATEGIES[strategy], SITUATIONS[situation]
    plain = trained(learner, made(), change)
    recorded = trained(learner, made(), change, cbs=[ConflictRecorder(every=2)])
    assert_same(plain, recorded)
    assert len(recorded.conflict.weight_steps) == (2 if situation == "accumulation" else 4)


@pytest.mark.filterwarnings("ignore:.to_fp16. on a CPU")
def test_an_overflow_in_half_precision_is_not_recorded(learner):
    def overflowing(learn):
        learn.to_fp16(init_scale=2.0**40)

    plain = trained(learner, None, overflowing)
    recorded = trained(learner, None, overflowing, cbs=[ConflictRecorder(every=1)])
    assert_same(plain, recorded)
    assert len(recorded.conflict.weight_steps) == 4 and not recorded.conflict.steps


@pytest.mark.parametrize("strategy", ["sum", "UPGrad"])
def test_gradient_checkpointing_is_not_disturbed(learner, strategy):
    kwargs = {"body_kwargs": {"grad_checkpointing": True}}
    plain = trained(learner, STRATEGIES[strategy](), **kwargs)
    recorded = trained(learner, STRATEGIES[strategy](), cbs=[ConflictRecorder(every=1)], **kwargs)
    assert_same(plain, recorded)


@pytest.mark.parametrize("strategy", ["sum", "UW", "UPGrad", "taps"])
def test_what_is_recorded_is_what_one_works_out_by_hand(learner, strategy):
    grads = Grads()
    learn = trained(learner, STRATEGIES[strategy](), cbs=[ConflictRecorder(every=1), grads], missing=0.0)
    record = learn.conflict
    assert record.heads == TARGETS and record.steps == record.weight_steps == [0, 1, 2, 3]
    for at, (rows, step) in enumerate(zip(grads.rows, grads.given)):
        if strategy != "taps":  # there the losses' own way ends at the taps
            norms = rows.norm(dim=1)
            assert np.allclose(record.norms[at], norms, rtol=1e-5)
            assert np.allclose(record.cosines[at], rows @ rows.T / norms.outer(norms), atol=1e-5)
            weights = torch.tensor(record.weights[at])
            assert torch.allclose(weights @ rows, step, rtol=1e-4, atol=5e-5 * step.abs().max())  # in float32
            assert np.allclose(record.shares[at], weights * (rows @ step) / (step @ step), atol=1e-4)
        assert record.shares[at].sum() == pytest.approx(1)


def test_a_strategy_that_cuts_at_the_taps_shows_the_same_gradients(learner):
    one, two = (
        trained(learner, STRATEGIES[name](), cbs=[ConflictRecorder(every=4)], missing=0.0).conflict
        for name in ("sum", "taps")
    )
    assert np.allclose(one.norms, two.norms, rtol=1e-4) and np.allclose(one.cosines, two.cosines, atol=1e-4)


def test_shares_under_disjoint_are_those_of_the_optimizers_steps(learner):
    plain = trained(learner, None, cbs=[ConflictRecorder(every=1)], missing=0.0, opt_func=SGD)
    apart = trained(learner, Disjoint(SGD), cbs=[ConflictRecorder(every=1)], missing=0.0)
    assert np.allclose(plain.conflict.shares, apart.conflict.shares, atol=2e-3)  # steps are linear in the gradients

    def loud(strategy):
        heads = {"digit": ClassificationHead(loss_weight=1000.0)}
        return trained(learner, strategy, cbs=[ConflictRecorder(every=1)], missing=0.0, heads=heads, opt_func=adam)

    adam = partial(Adam, eps=1e-12)  # its steps do not depend on the gradients' size, but for `eps`

    assert (loud(None).conflict.shares[:, 0] > 0.9).all()
    quiet = trained(learner, Disjoint(), cbs=[ConflictRecorder(every=1)], missing=0.0, opt_func=adam)
    assert np.allclose(loud(Disjoint()).conflict.shares, quiet.conflict.shares, atol=0.02)
    assert (quiet.conflict.shares[:, 0] < 0.6).all()


def test_heads_without_a_label_are_gaps(learner):
    record = trained(learner, UPGrad(), cbs=[ConflictRecorder(every=1)], missing=0.9).conflict
    gone = np.isnan(record.norms)
    assert gone.any() and not gone.all()
    assert (np.isnan(record.shares) == gone).all() and np.allclose(np.nansum(record.shares, 1), 1)
    assert (np.isnan(record.weights) == gone).all() and not np.isnan(record.cosines[~gone.any(1)]).any()


def test_an_aggregator_without_weights_has_no_shares(learner):
    record = trained(learner, GradDrop(), cbs=[ConflictRecorder(every=2)], missing=0.0).conflict
    assert np.isnan(record.shares).all() and np.isnan(record.weights).all() and not np.isnan(record.cosines).any()


def test_batches_that_are_accumulated_have_the_weights_of_their_step(learner):
    record = trained(learner, UPGrad(), accumulating, cbs=[ConflictRecorder(every=1)], missing=0.0).conflict
    assert record.steps == [0, 1, 2, 3] and record.weight_steps == [1, 3]
    products = record.cosines * record.norms[:, :, None] * record.norms[:, None, :]
    for at, weights in enumerate(np.repeat(record.weights, 2, axis=0)):
        assert np.allclose(step_shares(products[at], weights), record.shares[at])


def test_nothing_is_shared_that_trains(learner):
    record = trained(learner, None, frozen, cbs=[ConflictRecorder(every=1)]).conflict
    assert len(record.weight_steps) == 4 and not record.steps


def test_the_record_is_that_of_the_last_fit(learner):
    learn = trained(learner, None, cbs=[ConflictRecorder(every=2)])
    learn.validate()
    learn.get_preds()
    record = learn.conflict
    assert record.steps == [0, 2]
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=20, show_plot=False)
        assert learn.conflict is record
        learn.add_cb(ConflictRecorder(every=3))
        learn.lr_find(num_it=20, show_plot=False)
        assert learn.conflict is record
        learn.fit(2)
    assert learn.conflict.steps == [0, 3, 6] and len(learn.conflict.weight_steps) == 8
    assert len(pickle.loads(pickle.dumps(learn.conflict)).weights) == 8


def test_one_head(learner):
    with no_random(0):
        learn = learner("ink")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=ConflictRecorder(every=1))
    assert learn.conflict.weights.tolist() == [[1.0]] * 4 and not learn.conflict.steps


@pytest.mark.parametrize("every", [0, 2.5, True, "10"])
def test_bad_input_is_refused(every):
    with pytest.raises(HeadsError, match="`every`"):
        ConflictRecorder(every)


def test_a_compiled_network_is_refused(learner):
    learn = learner()
    learn.model[0].compile()
    with pytest.raises(HeadsError, match="compile"):
        learn.fit(1, cbs=ConflictRecorder)
