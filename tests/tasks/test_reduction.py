"""What a loss gives for each item, and over the tags that are there."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import BaseLoss, BCEWithLogitsLossFlat, CrossEntropyLossFlat, L1LossFlat
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.tasks.reduction import counted, loss_modules, loss_over, mean_of_counted, own_reduction, unreduced
from fastai_heads.tasks.regression import StandardizedLoss

POSITIVE = torch.tensor([1.0, 3.0, 5.0])
LOSSES = {
    "fastai": (BCEWithLogitsLossFlat(), None),
    "fastai, weighted": (BCEWithLogitsLossFlat(pos_weight=POSITIVE), POSITIVE),
    "torch": (nn.BCEWithLogitsLoss(pos_weight=POSITIVE), POSITIVE),
    "partial": (partial(F.binary_cross_entropy_with_logits, pos_weight=POSITIVE), POSITIVE),
    "function": (F.binary_cross_entropy_with_logits, None),
    "without reduction": (lambda pred, targ: F.binary_cross_entropy_with_logits(pred, targ), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_missing_tag_has_no_gradient_and_no_count(name):
    loss, weight = LOSSES[name]
    pred, targ = torch.randn(4, 3, requires_grad=True), (torch.arange(12) % 2).view(4, 3).float()
    known = torch.ones(4, 3, dtype=torch.bool)
    known[0, 1] = known[2, 2] = known[2, 0] = False
    found = loss_over(loss, pred, targ.masked_fill(~known, math.nan), known)
    each = F.binary_cross_entropy_with_logits(pred, targ, pos_weight=weight, reduction="none")
    torch.testing.assert_close(found, each[known].mean(), check_dtype=False)
    (grad,) = torch.autograd.grad(found, pred)
    assert torch.isfinite(grad).all() and (grad != 0).tolist() == known.tolist()


def test_a_sum_is_over_the_tags_that_are_there():
    pred, targ = torch.randn(2, 3), torch.tensor([[1.0, math.nan, 0.0], [math.nan, 1.0, 1.0]])
    loss = nn.BCEWithLogitsLoss(reduction="sum")
    each = F.binary_cross_entropy_with_logits(pred, targ.nan_to_num(), reduction="none")
    torch.testing.assert_close(loss_over(loss, pred, targ, ~targ.isnan()), each[~targ.isnan()].sum())
    assert loss.reduction == "sum"


def test_a_loss_that_cannot_leave_tags_out_says_what_it_needs():
    pred, targ = torch.randn(2, 3), torch.tensor([[1.0, math.nan, 0.0], [1.0, 1.0, 1.0]])
    with pytest.raises(HeadsError, match=r"`loss`: some tags of an image are missing.*parameter `reduction`"):
        loss_over(lambda pred, targ: (pred - targ).abs().sum(1).mean(), pred, targ, ~targ.isnan())


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (F.l1_loss, "mean"),
        (partial(F.l1_loss, reduction="sum"), "sum"),
        (nn.L1Loss(reduction="sum"), "sum"),
        (L1LossFlat(reduction="sum"), "sum"),
        (StandardizedLoss(L1LossFlat(reduction="sum"), [2.0]), "sum"),
        (StandardizedLoss(partial(F.l1_loss, reduction="sum"), [2.0]), "sum"),
        (lambda pred, targ: pred.sum(), "mean"),
    ],
    ids=["function", "partial", "torch", "fastai", "standardised", "standardised partial", "plain"],
)
def test_a_loss_says_how_it_makes_one_number_of_many(loss, wanted):
    assert own_reduction(loss) == wanted
    pred, targ = torch.randn(4, 1), torch.randn(4, 1)
    assert unreduced(loss)(pred, targ).numel() == 4
    assert own_reduction(loss) == wanted, "as it was"


def test_what_counts_is_neither_nan_nor_ignored():
    codes = torch.tensor([[0, 2], [2, 2]])
    for loss in (
        nn.CrossEntropyLoss(ignore_index=2),
        CrossEntropyLossFlat(ignore_index=2),
        partial(F.cross_entropy, ignore_index=2),
    ):
        assert counted(loss, codes).tolist() == [[True, False], [False, False]]
    assert counted(F.cross_entropy, codes).all()
    assert counted(F.l1_loss, torch.tensor([[1.0, math.nan]])).tolist() == [[True, False]]
    values, targ = (
        torch.tensor([[1.0, 9.0], [2.0, 4.0], [7.0, 7.0]]),
        torch.tensor([[1.0, math.nan], [0, 0], [math.nan] * 2]),
    )
    found = mean_of_counted(values, targ, counted(F.l1_loss, targ))
    assert found[:2].tolist() == [1.0, 3.0] and found[2].isnan()


def test_the_modules_inside_a_loss_are_found():
    inner = nn.CrossEntropyLoss(weight=torch.ones(3))
    assert loss_modules(inner) == [inner]
    flat = BaseLoss(nn.CrossEntropyLoss)
    assert loss_modules(flat) == [flat.func]
    standard = StandardizedLoss(flat, [2.0])
    assert loss_modules(standard) == [standard, flat.func]
    assert loss_modules(F.cross_entropy) == []
