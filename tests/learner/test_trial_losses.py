"""Losses that run and train something else: each is told by what it does and not by its name."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropy,
    MSELossFlat,
)
from torch import nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, CustomHead, MultiLabelHead, PointHead, RegressionHead
from fastai_heads.learner.trial_losses import check_decoding, check_loss
from fastai_heads.training.bound import BoundHead

TARGETS = {
    ClassificationHead: Target("breed", 0, "category", 10, tuple("abcdefghij")),
    MultiLabelHead: Target("tags", 0, "multilabel", 4, tuple("abcd")),
    RegressionHead: Target("age", 0, "regression", 1),
    PointHead: Target("nose", 0, "point", 2),
    BoxHead: Target("face", 0, "box", 4),
}
BATCHES = {  # (predictions, targets) of three items, in the shapes of fastai's blocks
    ClassificationHead: (torch.randn(3, 10), torch.tensor([3, 1, 7])),
    MultiLabelHead: (torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0]])),
    RegressionHead: (torch.randn(3, 1), torch.tensor([155.0, 300.0, 222.0])),
    PointHead: (torch.randn(3, 2), torch.tensor([[[0.1, 0.2]], [[-0.5, 0.3]], [[0.9, -0.7]]])),
    BoxHead: (torch.randn(3, 4), torch.tensor([[[-1, -1, 0.0, 0]], [[0.1, 0, 0.5, 1]], [[-0.5, -0.5, 0.2, 0.9]]])),
}
PLAIN = partial(RegressionHead, standardize=False)
PLAIN.__name__ = "RegressionHead(standardize=False)"


def bound(kind, loss, **fields):
    "A head of a kind with a loss, and a batch for it."
    base = RegressionHead if kind in (PLAIN, RegressionHead) else kind
    fields |= {"standardize": ([200.0], [50.0])} if kind is RegressionHead else {}
    spec = kind(loss=loss, **fields).fit(TARGETS[base], lambda: None)
    return BoundHead("it", spec, TARGETS[base], None), *BATCHES[base]


FITTING = [
    (ClassificationHead, CrossEntropyLossFlat()),
    (ClassificationHead, FocalLossFlat()),
    (ClassificationHead, LabelSmoothingCrossEntropy()),
    (ClassificationHead, nn.CrossEntropyLoss(weight=torch.arange(1.0, 11))),
    (ClassificationHead, nn.MultiMarginLoss()),
    (ClassificationHead, lambda pred, targ: F.nll_loss(pred.log_softmax(1), targ)),
    (ClassificationHead, lambda pred, targ: F.binary_cross_entropy_with_logits(pred, F.one_hot(targ, 10).float())),
    (MultiLabelHead, BCEWithLogitsLossFlat()),
    (MultiLabelHead, nn.MultiLabelSoftMarginLoss()),
    *((kind, loss) for kind in (RegressionHead, PointHead, BoxHead) for loss in (MSELossFlat(), L1LossFlat())),
    *((kind, loss) for kind in (PLAIN, PointHead, BoxHead) for loss in (nn.HuberLoss(), nn.L1Loss(), F.mse_loss)),
    (PLAIN, lambda pred, targ: torch.maximum(0.9 * (targ - pred), 0.1 * (pred - targ)).mean()),
    (PLAIN, lambda pred, targ: (pred - targ).abs().div(targ).mean()),
    (PLAIN, lambda pred, targ: (pred - targ).square().mean().sqrt()),
]


@pytest.mark.parametrize(("kind", "loss"), FITTING, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_loss_that_fits_is_taken(kind, loss):
    check_loss(*bound(kind, loss))


UNFIT = [
    (ClassificationHead, MSELossFlat(), "cannot be taken"),
    (ClassificationHead, BCEWithLogitsLossFlat(), "cannot be taken"),
    (ClassificationHead, nn.NLLLoss(), "falls without end"),
    (ClassificationHead, lambda pred, targ: -F.cross_entropy(pred, targ), "smaller for a wrong prediction"),
    (ClassificationHead, lambda pred, targ: F.mse_loss(pred, targ[:, None].float()), "broadcasts two shapes"),
    (MultiLabelHead, CrossEntropyLossFlat(), "cannot be taken"),
    (RegressionHead, CrossEntropyLossFlat(), "cannot be taken"),
    (RegressionHead, BCEWithLogitsLossFlat(), "smaller for a wrong prediction"),
    (PLAIN, nn.BCEWithLogitsLoss(), "smaller for a wrong prediction"),
    (PLAIN, nn.PoissonNLLLoss(), "no finite number where the prediction is right"),
    (PointHead, BCEWithLogitsLossFlat(), "smaller for a wrong prediction"),
    (BoxHead, CrossEntropyLossFlat(), "cannot be taken"),
    (PLAIN, lambda pred, targ: (pred[:, 0] - targ).square().mean(), "compares every prediction with the target of ev"),
    (PLAIN, lambda pred, targ: (pred[:, 0] - targ).abs().mean(), "compares every prediction with the target of ev"),
    (PLAIN, lambda pred, targ: (pred[:, 0] - targ).square().mean().sqrt(), "compares every prediction"),
    (PLAIN, lambda pred, targ: (pred - targ).square()[:, 0], r"gives \(5,\) float32, expected one number.*`\.mean"),
    (PLAIN, lambda pred, targ: (pred - targ).square().mean().item(), "gives a float, expected one number"),
    (PLAIN, lambda pred, targ: (pred - targ).square().mean().detach(), "has no gradient to the prediction"),
    (PLAIN, lambda pred, targ: (pred - targ).square().mean() * float("nan"), "is nan on the first items"),
    (PLAIN, lambda pred, targ: (pred - targ).square().mean() / 0, "is inf on the first items"),
    (PLAIN, lambda pred, targ: (0 * pred).sqrt().sum() + pred.mean(), "has a gradient that is not finite"),
    (PLAIN, lambda pred, targ: {}["missing"], "cannot be taken: 'missing'"),
]


@pytest.mark.parametrize(("kind", "loss", "says"), UNFIT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_loss_that_does_not_is_refused_with_the_nearest(kind, loss, says):
    head, pred, targ = bound(kind, loss)
    fit = {"category": "Cross", "multilabel": "BCEWith", "regression": "MSE", "point": "MSE", "box": "L1"}
    with pytest.raises(HeadsError, match=rf"`heads\['it'\]`: `loss` of .*{says}.*: `loss={fit[head.target.kind]}"):
        check_loss(head, pred, targ)


def own(loss, n_out, targ=TARGETS[RegressionHead], **fields):
    spec = CustomHead(nn.Identity(), loss=loss, n_out=n_out, **fields).fit(targ, lambda: None)
    return BoundHead("it", spec, targ, None)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e3])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_loss_linear_in_its_targets_is_not_taken_for_one_that_broadcasts(scale, start):
    head = own(lambda pred, targ: (pred[:, 0] - scale * targ).abs().mean(), 1)
    check_loss(head, start * torch.randn(3, 1), BATCHES[RegressionHead][1])


def test_the_mean_and_variance_of_one_number_are_no_broadcast():
    loss = nn.GaussianNLLLoss()
    check_loss(own(lambda p, t: loss(p[:, 0], t, p[:, 1].exp()), 2), torch.zeros(3, 2), BATCHES[RegressionHead][1])
    broadcast = own(lambda p, t: loss(p[:, :1], t, p[:, 1:].exp()), 2)
    with pytest.raises(HeadsError, match=r"GaussianNLL|<lambda>"):
        check_loss(broadcast, torch.zeros(3, 2), BATCHES[RegressionHead][1])


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (lambda pred: (pred[:, 0], pred[:, 1]), r"decodes \(3, 2\) float32 to a tuple.*torch.stack"),
        (lambda pred: pred.mean(), r"decodes \(3, 2\) float32 to \(\) float32, expected a tensor"),
        (lambda pred: pred[:, 5], r"`decode` of CustomHead cannot decode predictions \(3, 2\)"),
    ],
)
def test_a_decoding_that_fails_is_refused(decode, says):
    with pytest.raises(HeadsError, match=says):
        check_decoding(own(F.mse_loss, 2, decode=decode), torch.randn(3, 2))


def test_a_loss_stays_where_it_was_and_unlabelled_items_are_left_out():
    head, pred, targ = bound(ClassificationHead, nn.CrossEntropyLoss(weight=torch.ones(10)))
    check_loss(head, pred, targ)
    assert head.loss_func.weight.device.type == "cpu" and pred.grad is None and not pred.requires_grad
    head.target = Target("breed", 0, "category", 10, tuple("abcdefghij"), partial=True)
    check_loss(head, pred, torch.tensor([-100, 1, -100]))
    check_loss(head, pred, torch.full((3,), -100))
