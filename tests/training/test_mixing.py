"""fastai's `MixUp` and `CutMix`: one head as stock fastai's, several blended head by head, geometry refused or left."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from fastai.vision.learner import vision_learner
from torch import nn
from torchvision import models

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, MultiLabelHead, PointHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.tasks.own import OwnTask
from fastai_heads.training.mixing import Targets, blend_loss
from fastai_heads.training.step import CombinedLoss, batch_losses

UNMIXED = {"centre": PointHead(mix=False), "box": BoxHead(mix=False)}
MIXERS = pytest.mark.parametrize("mixer", [MixUp, CutMix])


class Steps(Callback):
    "Every training step's total and losses, predictions, targets and what was blended in."

    run_valid = False

    def __init__(self):
        self.total, self.seen = [], []

    def after_loss(self):
        self.total.append(self.learn.loss.item())
        mixer = next((cb for cb in self.learn.cbs if hasattr(cb, "lam")), None)
        if mixer is not None and hasattr(self.learn, "head_losses"):
            others = mixer.yb1[0] if isinstance(mixer.yb1[0], tuple) else mixer.yb1
            self.seen.append((self.pred, self.yb, others, mixer.lam, [loss.item() for loss in self.head_losses]))


def quiet_fit(learn, n=1, lr=1e-3, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(n, lr, **kwargs)
    return learn


# one head: stock fastai


@pytest.mark.parametrize(
    "loss",
    [None, LabelSmoothingCrossEntropyFlat(eps=0.2), CrossEntropyLossFlat(weight=torch.linspace(0.1, 3, 10))],
    ids=["plain", "smoothed", "weighted"],
)
@MIXERS
def test_one_head_trains_as_vision_learner_does(scenes, mixer, loss):
    runs = []
    for make in (vision_learner, partial(multihead_learner, heads={"digit": ClassificationHead(loss=loss)})):
        set_seed(0)
        dls = digits_dls(n=60, size=32, bs=12, path=scenes)
        kwargs = {"loss_func": loss} if make is vision_learner and loss is not None else {}
        learn = make(dls, models.resnet18, pretrained=False, opt_func=partial(SGD, mom=0.9), **kwargs)
        runs.append((learn, Steps()))
    (stock, theirs), (ours, mine) = runs
    for a, b in zip(stock.model.state_dict().values(), ours.model.state_dict().values(), strict=True):
        b.copy_(a)
    for learn, steps in runs:
        set_seed(1)
        quiet_fit(learn, 2, cbs=[mixer(), steps])
    assert len(mine.total) == len(theirs.total) == 8
    torch.testing.assert_close(torch.tensor(mine.total), torch.tensor(theirs.total), rtol=0, atol=1e-6)
    assert isinstance(ours.loss_func, CombinedLoss)
    assert float(ours.recorder.values[-1][1]) == pytest.approx(float(stock.recorder.values[-1][1]), abs=1e-5)


# several heads


@MIXERS
def test_the_losses_are_blended_head_by_head(learner, mixer):
    learn, steps = learner(heads=UNMIXED), Steps()
    quiet_fit(learn, cbs=[mixer(), steps])
    assert len(steps.seen) == 4
    for preds, targs, others, share, losses in steps.seen:
        for (name, head), pred, loss in zip(learn.heads.items(), preds, losses, strict=True):
            share_of = share.expand(len(pred))
            targ, other = (t[head.target.index].as_subclass(torch.Tensor) for t in (targs, others))
            if name in UNMIXED:
                larger = torch.stack([t if s >= 0.5 else o for t, o, s in zip(targ, other, share_of)])
                wanted = head.train_loss(pred, larger)
            else:
                each = [
                    s * head.train_loss(p[None], t[None]) + (1 - s) * head.train_loss(p[None], o[None])
                    for p, t, o, s in zip(pred, targ, other, share_of)
                ]
                wanted = torch.stack(each).mean()
            assert loss == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6), name
    assert isinstance(learn.loss_func, CombinedLoss)
    assert all(math.isfinite(float(v)) for v in learn.recorder.values[-1])


def test_blending_the_loss_of_tags_is_blending_the_tags(three, batch):
    head, (_, pred, _), (_, _, targ) = three()["tags"], *batch
    other, share = targ.flip(0), torch.rand(8)
    soft = torch.lerp(other, targ, share[:, None])
    wanted = F.binary_cross_entropy_with_logits(pred, soft)
    torch.testing.assert_close(blend_loss(head, pred, targ, other, share), wanted)


def test_blending_the_loss_of_a_number_has_the_gradient_of_blending_the_number(three, batch):
    head, (_, _, pred), (targ, _, _) = three()["age"], *batch
    other, share = targ.flip(0), torch.rand(8)
    (found,) = torch.autograd.grad(blend_loss(head, pred, targ, other, share), pred)
    (wanted,) = torch.autograd.grad(head.train_loss(pred, torch.lerp(other, targ, share[:, None])), pred)
    torch.testing.assert_close(found, wanted)


def test_with_nothing_blended_in_it_is_the_training_loss(three, batch):
    head, pred, targ = three()["breed"], batch[0][0], batch[1][1]
    wanted = F.cross_entropy(pred, targ)
    for share in (torch.ones(8), torch.ones(1), torch.tensor(1.0)):
        torch.testing.assert_close(blend_loss(head, pred, targ, targ.flip(0), share), wanted)
    torch.testing.assert_close(blend_loss(head, pred, targ.flip(0), targ, torch.zeros(8)), wanted)


# missing labels


@pytest.mark.parametrize("name", ["breed", "tags", "age"])
def test_a_missing_label_takes_its_share_out_of_the_mean(three, batch, name):
    whole, head = three()[name], three(partial=True)[name]
    place = ["breed", "tags", "age"].index(name)
    pred, targ = batch[0][place], batch[1][head.target.index].clone()
    order, share = torch.randperm(8), torch.rand(8) / 2 + 0.5
    gaps = targ.clone()
    gaps[[1, 4]] = -100 if name == "breed" else math.nan
    found = blend_loss(head, pred, gaps, gaps[order], share)
    total = weight = 0.0
    for i in range(8):
        for j, part in ((i, share[i]), (int(order[i]), 1 - share[i])):
            if j not in (1, 4):
                total, weight = total + part * whole.train_loss(pred[i : i + 1], targ[j : j + 1]), weight + part
    torch.testing.assert_close(found, total / weight)
    assert torch.isfinite(torch.autograd.grad(found, pred)[0]).all()


@pytest.mark.parametrize("share", [torch.full((8,), 0.7), torch.tensor([0.7])], ids=["each", "one"])
def test_no_label_at_all_gives_a_zero_with_a_graph(three, batch, share):
    head, pred = three(partial=True)["breed"], batch[0][0]
    targ = torch.full((8,), -100)
    loss = blend_loss(head, pred, targ, targ, share)
    assert loss.item() == 0 and not torch.autograd.grad(loss, pred)[0].any()


@MIXERS
def test_training_with_gaps_keeps_everything_finite(learner, mixer):
    learn = quiet_fit(learner(heads=UNMIXED, missing=0.5), cbs=mixer())
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert all(math.isfinite(float(v)) for v in learn.recorder.values[-1])


# what is refused, and what is left unmixed


@MIXERS
def test_geometry_is_refused_by_name_before_the_first_step(learner, mixer):
    learn = learner()
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(HeadsError) as error:
        learn.fit(1, cbs=mixer())
    assert str(error.value) == (
        f"`cbs`: {mixer.__name__} cannot blend the target of 'centre' (point) or 'box' (box). Pass `heads={{'centre': "
        "PointHead(mix=False), 'box': BoxHead(mix=False)}` to train on the label of the image with the larger share."
    )
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    assert not any(isinstance(cb, mixer) for cb in learn.cbs)


def test_a_callback_that_stays_in_the_learner_is_checked_too(learner):
    learn = learner(cbs=MixUp)
    with pytest.raises(HeadsError, match="MixUp cannot blend the target of 'centre'"):
        learn.fit(1)


def test_two_ways_of_mixing_at_once_are_refused(learner):
    with pytest.raises(HeadsError, match="MixUp and CutMix cannot both blend"):
        learner(("digit", "ink")).fit(1, cbs=[MixUp(), CutMix()])


@pytest.mark.parametrize("spec", [ClassificationHead, MultiLabelHead, RegressionHead, PointHead, BoxHead])
def test_what_blends_is_a_fact_of_the_kind(spec):
    geometry = spec in (PointHead, BoxHead)
    assert spec.predicts.blends is not geometry and spec().mix
    target = Target("it", 0, "unknown", 4)
    assert OwnTask(target, 4, abs, spec.predicts(target, 4)).blends is not geometry
    with pytest.raises(HeadsError, match=f"`mix` of {spec.__name__} is True or False, found 'no'"):
        spec(mix="no")


def test_a_loss_that_does_not_tell_items_apart_says_so_under_mixup(learner):
    def whole(pred, targ):
        return F.cross_entropy(pred, targ) + pred.mean(0, keepdim=True).pow(2).mean()

    class Batchwise(nn.Module):
        reduction = "mean"
        forward = staticmethod(whole)

    learn = learner(("digit",), {"digit": ClassificationHead(loss=Batchwise())})
    with pytest.raises(HeadsError, match=r"head 'digit' cannot be blended item by item: .*mix=False.*or use `CutMix`"):
        quiet_fit(learn, cbs=MixUp())
    quiet_fit(learn, cbs=CutMix())
    assert isinstance(learn.loss_func, CombinedLoss)


# the learner's state


class Interrupts(Callback):
    "Stops in the middle of an epoch as a user does."

    def after_batch(self):
        if self.training and self.iter == 1:
            raise KeyboardInterrupt


@MIXERS
def test_after_an_interrupt_the_loss_is_the_learners_own(learner, mixer):
    learn = learner(("digit", "ink"))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, cbs=[mixer(), Interrupts()])
        assert isinstance(learn.loss_func, CombinedLoss)
        assert all(math.isfinite(float(v)) for v in learn.validate())
        learn.fit(1, cbs=mixer())
    assert isinstance(learn.loss_func, CombinedLoss)


def test_several_targets_as_one(three, batch):
    targs = Targets(batch[1])
    assert targs.size(0) == 8 and targs.size() == batch[1][0].shape
    order = torch.randperm(8)
    assert isinstance(targs[order], Targets)
    assert all(torch.equal(a, b[order]) for a, b in zip(targs[order], targs))
    assert targs[1] is batch[1][1] and targs[:2] == tuple(batch[1][:2])
    heads = three()
    assert batch_losses(CombinedLoss(heads), *batch) == CombinedLoss(heads).losses(*batch)


def test_y_is_a_tensor_for_one_target_and_a_tuple_for_several(learner):
    for targets in (("digit",), ("digit", "ink")):
        learn = learner(targets)
        learn._split(learn.dls.one_batch())
        assert isinstance(learn.y, torch.Tensor if len(targets) == 1 else Targets)
        assert learn.y.size(0) == 12
