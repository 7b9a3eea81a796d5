"""One step: each head's loss, their sum, and which files of the package it runs through."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastai_heads
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.tasks.reduction import loss_name
from fastai_heads.training.step import CombinedLoss


def by_hand(preds, targs):
    breed, tags, age = preds
    return (
        F.cross_entropy(breed, targs[1]),
        F.binary_cross_entropy_with_logits(tags, targs[2]),
        F.mse_loss((age - targs[0]) / torch.tensor([2.0, 4.0]), torch.zeros(8, 2)),
    )


def test_is_the_weighted_sum_each_prediction_with_its_own_target(three, batch):
    heads = three(breed={"loss_weight": 0.5}, tags={"loss_weight": 0}, age={"loss_weight": 3})
    loss, (preds, targs) = CombinedLoss(heads), batch
    wanted = by_hand(preds, targs)
    for found, hand in zip(loss.losses(preds, targs), wanted, strict=True):
        torch.testing.assert_close(found, hand)
    torch.testing.assert_close(loss(preds, *targs), 0.5 * wanted[0] + 3 * wanted[2])
    heads.tags.loss_weight, heads.age.loss_weight = 2, 0
    torch.testing.assert_close(loss(preds, *targs), 0.5 * wanted[0] + 2 * wanted[1])
    assert repr(loss) == "0.5 * breed (CrossEntropyLoss) + 2 * tags (BCEWithLogitsLoss) + 0 * age (MSELoss)"


def test_gradients_are_those_of_the_sum(three, batch):
    loss, (preds, targs) = CombinedLoss(three(age={"loss_weight": 3})), batch
    grads = torch.autograd.grad(loss(preds, *targs), preds)
    breed, tags, age = by_hand(preds, targs)
    for found, hand in zip(grads, torch.autograd.grad(breed + tags + 3 * age, preds), strict=True):
        torch.testing.assert_close(found, hand)


def test_per_item_it_is_one_value_for_each(three, batch):
    heads = three(breed={"label_smoothing": 0.1, "loss_weight": 2})
    loss, (preds, targs) = CombinedLoss(heads), batch
    mean = loss(preds, *targs)
    loss.reduction = "none"
    per_item = loss(preds, *targs)
    assert per_item.shape == (8,) and all(one.shape == (8,) for one in loss.losses(preds, targs))
    torch.testing.assert_close(per_item.mean(), mean)
    assert all(h.loss_func.reduction == "mean" for h in heads.values()), "each loss's own reduction is back"
    loss.reduction = "mean"
    assert torch.equal(loss(preds, *targs), mean)


def test_the_total_of_an_item_is_over_the_heads_that_have_a_label_for_it(three, batch):
    heads, (preds, targs) = three(partial=True, tags={"loss_weight": 3}), batch
    age, breed, tags = (t.clone() for t in targs)
    breed[[1, 2]], tags[[2, 3]], age[2] = -100, float("nan"), float("nan")
    loss = CombinedLoss(heads)
    loss.reduction = "none"
    total, each = loss(preds, age, breed, tags), loss.losses(preds, (age, breed, tags))
    assert [one.isnan().nonzero().flatten().tolist() for one in each] == [[1, 2], [2, 3], [2]]
    assert total.isnan().nonzero().flatten().tolist() == [2]
    torch.testing.assert_close(total[0], each[0][0] + 3 * each[1][0] + each[2][0])
    torch.testing.assert_close(total[1], 3 * each[1][1] + each[2][1])
    torch.testing.assert_close(total[3], each[0][3] + each[2][3])


def test_a_loss_that_is_not_finite_shows_in_the_total(three, batch):
    heads, (preds, targs) = three(), batch
    broken = (preds[0] * float("nan"), *preds[1:])
    assert CombinedLoss(heads)(broken, *targs).isnan()


def test_activates_and_decodes_every_head_but_the_auxiliary_decode_nothing(three, batch):
    heads = three(tags={"train_only": True})
    loss, (preds, _) = CombinedLoss(heads), batch
    active = loss.activation(preds)
    assert len(active) == 3 and torch.equal(active[1], preds[1].sigmoid())
    decoded = loss.decodes(active)
    assert len(decoded) == 2 and torch.equal(decoded[0], preds[0].argmax(1)) and torch.equal(decoded[1], preds[2])


def test_one_head_takes_a_bare_prediction(three, bind, batch):
    breed = three()["breed"]
    loss, (preds, targs) = CombinedLoss(bind({"breed": (breed.spec, breed.target)})), batch
    torch.testing.assert_close(loss(preds[0], *targs), F.cross_entropy(preds[0], targs[1]))
    assert torch.equal(loss(preds[:1], *targs), loss(preds[0], *targs))
    assert isinstance(loss.activation(preds[0]), tuple)


def test_another_number_of_predictions_is_refused(three, batch):
    with pytest.raises(HeadsError, match="the model gave 2 predictions for 3 heads"):
        CombinedLoss(three())(batch[0][:2], *batch[1])


def test_the_weights_inside_the_losses_move(three, batch):
    heads = three(breed={"class_weights": [0.1, 1, 5]}, tags={"pos_weight": [1.0, 2, 3]})
    loss, (preds, targs) = CombinedLoss(heads), batch
    tensors = {
        "breed": lambda: heads.breed.loss_func.func.weight,
        "tags": lambda: heads.tags.loss_func.func.pos_weight,
        "age": lambda: heads.age.loss_func.deviation,
    }
    kept = {name: tensor().clone() for name, tensor in tensors.items()}
    double = loss.double()
    assert double is loss and all(t().dtype == torch.float64 for t in tensors.values())
    age = preds[2].detach().double()
    wanted = F.mse_loss((age - targs[0]) / torch.tensor([2.0, 4.0]), torch.zeros(8, 2).double())
    found = heads.age.train_loss(age, targs[0])  # in float32: fastai's flat losses cast
    torch.testing.assert_close(found, wanted, check_dtype=False)
    loss.float()
    assert all(torch.equal(t(), kept[name]) for name, t in tensors.items())
    loss.to("meta")
    assert all(t().is_meta for t in tensors.values())


def test_a_users_loss_of_several_layers_moves_too(three, batch):
    heads = three(breed={"loss": nn.CrossEntropyLoss(weight=torch.ones(3))}, age={"loss": nn.SmoothL1Loss()})
    CombinedLoss(heads).to("meta")
    assert heads.breed.loss_func.weight.is_meta and heads.age.loss_func.deviation.is_meta


@pytest.mark.parametrize("missing", [0.0, 0.6])
def test_in_a_learner_the_sum_is_trained_and_every_head_gets_a_gradient(learner, missing):
    learn = learner(missing=missing)
    x, *targs = learn.dls.train.one_batch()
    assert (missing > 0) is any(not h.labelled(targs[h.target.index]).all() for h in learn.heads.values())
    losses = learn.loss_func.losses(learn.model.train()(x), tuple(targs))
    learn.loss_func.total(losses).backward()
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learn.model.parameters())


def test_in_a_learner_a_head_without_a_label_in_the_batch_is_at_rest(learner):
    learn = learner(missing=0.5)
    x, *targs = learn.dls.train.one_batch()
    ink = learn.heads.ink
    targs[ink.target.index] = torch.full_like(targs[ink.target.index], torch.nan)
    learn.loss_func(learn.model.train()(x), *targs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in ink.parameters())
    assert all(p.grad.any() for p in learn.heads.digit.module.layers[-1].parameters())
    assert all(torch.isfinite(p.grad).all() for p in learn.model.parameters())


def test_what_a_loss_is_called():
    assert loss_name(nn.L1Loss()) == "L1Loss" and loss_name(F.cross_entropy) == "cross_entropy"


NETWORK = {"model.py", "bodies/image.py", "bodies/contract.py", "archs/timm_zoo.py", "heads/pooled.py"}
TRAINING = {
    "learner/learner.py",
    "tasks/task.py",
    "training/bound.py",
    "training/fused_optimizer.py",
    "training/recorder.py",
    "training/step.py",
    "training/strategies/base.py",
}


ROOT = Path(fastai_heads.__file__).parent


def files_of_batch(step, *batch):
    "Run one batch, all its callbacks included, and list the files of the package whose functions ran."
    found = set()

    def see(frame, event, _arg):
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            found.add(path.relative_to(ROOT).as_posix())

    sys.setprofile(see)
    try:
        step(*batch)
    finally:
        sys.setprofile(None)
    return found


def test_a_plain_step_runs_through_few_files(learner, monkeypatch):
    "The fewer there are, the sooner a reader knows what happens in a step. `pytest -k few_files -s` prints them."
    heads = {"digit": ClassificationHead(), "again": ClassificationHead(target="digit", train_only=True)}
    learn, seen = learner(("digit",), heads), []
    one_batch = learn.one_batch
    monkeypatch.setattr(learn, "one_batch", lambda *batch: seen.append(files_of_batch(one_batch, *batch)))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    print(len(seen[1]), *sorted(seen[1]))
    assert seen[1] == NETWORK | TRAINING
