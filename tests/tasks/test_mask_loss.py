"""Losses of masks against SMP's, torch's and fastai's."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat

from fastai_heads.tasks.mask_loss import MaskLoss


def batch(mode: str, ignored: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    n = 1 if mode == "binary" else 3
    shape = (2, 3, 6, 7) if mode == "multilabel" else (2, 6, 7)
    targ = torch.randint(0, 3 if mode == "multiclass" else 2, shape)
    if ignored:
        targ[..., :2, :] = 255
    return torch.randn(2, n, 6, 7, requires_grad=True), targ


SMP = {"dice": smp.losses.DiceLoss, "focal": smp.losses.FocalLoss, "lovasz": smp.losses.LovaszLoss}


@pytest.mark.parametrize("name", SMP)
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_a_loss_is_smps(name, mode):
    pred, targ = batch(mode)
    assert torch.equal(MaskLoss({name: 1.0}, mode)(pred, targ), SMP[name](mode, ignore_index=255)(pred, targ))


@pytest.mark.parametrize("name", SMP)
def test_several_labels_without_a_gap_are_smps(name):
    pred, targ = batch("multilabel", ignored=False)
    expected = SMP[name]("multilabel")(pred, targ)
    torch.testing.assert_close(MaskLoss({name: 1.0}, "multilabel")(pred, targ), expected)


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_cross_entropy_is_fastais(weights):
    pred, targ = batch("multiclass")
    weight = None if weights is None else torch.tensor(weights)
    expected = CrossEntropyLossFlat(axis=1, ignore_index=255, weight=weight)(pred, targ)
    found = MaskLoss({"cross_entropy": 1.0}, class_weights=weights)(pred, targ)
    torch.testing.assert_close(found, expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_binary_cross_entropy_leaves_pixels_out(mode):
    pred, targ = batch(mode)
    known = (targ != 255).view(pred.shape)
    expected = F.binary_cross_entropy_with_logits(pred[known], targ.view(pred.shape)[known].float())
    assert torch.equal(MaskLoss({"cross_entropy": 1.0}, mode)(pred, targ), expected)


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("name", ["cross_entropy", *SMP])
def test_an_ignored_pixel_has_no_gradient(name, mode):
    pred, targ = batch(mode)
    MaskLoss({name: 1.0}, mode)(pred, targ).backward()
    assert pred.grad[..., 2:, :].abs().sum() > 0
    assert pred.grad[..., :2, :].abs().max() == 0


def test_a_sum_is_the_sum():
    pred, targ = batch("multiclass")
    parts = [MaskLoss({name: 1.0})(pred, targ) * weight for name, weight in (("cross_entropy", 1.0), ("dice", 0.5))]
    torch.testing.assert_close(MaskLoss({"cross_entropy": 1.0, "dice": 0.5})(pred, targ), sum(parts))


def test_no_label_at_all_is_a_zero_with_a_graph():
    pred, targ = batch("multiclass")
    loss = MaskLoss({"cross_entropy": 1.0, "dice": 1.0})(pred, torch.full_like(targ, 255))
    loss.backward()
    assert loss == 0 and (pred.grad == 0).all()


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("terms", [("cross_entropy",), ("dice",), ("focal",), ("lovasz",), ("cross_entropy", "dice")])
def test_the_loss_of_an_image_is_its_own(terms, mode):
    pred, targ = batch(mode)
    targ[0] = 255
    loss = MaskLoss(dict.fromkeys(terms, 2.0), mode)
    each = loss(pred, targ, reduction="none")
    assert each.shape == (2,) and each[0].isnan()
    torch.testing.assert_close(each[1], loss(pred[1:], targ[1:]))


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_cross_entropy_of_an_image_is_fastais(weights):
    pred, targ = batch("multiclass", ignored=False)
    fastais = CrossEntropyLossFlat(axis=1, weight=None if weights is None else torch.tensor(weights), reduction="none")
    found = MaskLoss({"cross_entropy": 1.0}, class_weights=weights)(pred, targ, reduction="none")
    torch.testing.assert_close(found, fastais(pred, targ).view(2, -1).mean(1).as_subclass(torch.Tensor))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_batches_of_pixels_are_joined_by_what_they_are_means_of(name, weights):
    pred, targ = batch("multiclass")
    targ[1, 2:5] = 255
    loss = MaskLoss({name: 1.0}, class_weights=weights)
    parts = [(loss(p, t), loss.loss_count(p, t)) for p, t in zip(pred.split(1), targ.split(1))]
    joined = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(joined, loss(pred, targ))


@pytest.mark.parametrize("terms", [("dice",), ("lovasz",), ("cross_entropy", "dice")])
def test_what_is_no_mean_over_pixels_has_no_count(terms):
    assert MaskLoss(dict.fromkeys(terms, 1.0)).loss_count(*batch("multiclass")) is None
