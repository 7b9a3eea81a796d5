"""A head of the user's own: a module, a function that makes one, several taps."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, error_rate
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead, iou
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.custom import CustomHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.learner.factory import multihead_learner

MAPS = (TapShape("layer2", 6, 8), TapShape("features", 12, 32))


class TwoMaps(nn.Module):
    "Reads two maps."

    def __init__(self, first, second):
        super().__init__()
        self.linear = nn.Linear(first + second, 3)

    def forward(self, a, b):
        return self.linear(torch.cat([a.mean((2, 3)), b.mean((2, 3))], dim=1))


def test_a_module_is_used_as_it_is(target, no_labels):
    module = nn.Linear(12, 3)
    assert CustomHead(module).fit(target("category"), no_labels).build(MAPS[1:]) is module


def test_a_function_gets_the_width_of_every_tap_in_order(target, no_labels):
    spec = CustomHead(TwoMaps, tap=("layer2", "features")).fit(target("category"), no_labels)
    module = spec.build(MAPS)
    assert isinstance(module, TwoMaps) and module.linear.in_features == 18
    with pytest.raises(HeadsError, match=r"`module` of CustomHead is a function that makes an nn.Module.*made 12"):
        CustomHead(lambda width: width, tap="features").fit(target("category"), no_labels).build(MAPS[1:])


def test_all_else_is_that_of_the_targets_kind(target, no_labels):
    spec = CustomHead(nn.Linear(12, 3)).fit(target("category"), no_labels)
    pred, targ = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = spec.loss_func()
    assert isinstance(loss, CrossEntropyLossFlat) and spec.n_out == 3 and spec.default_metrics() == (accuracy,)
    assert torch.equal(spec.train_loss(loss, pred, targ), F.cross_entropy(pred, targ))
    torch.testing.assert_close(spec.activation(loss, pred), pred.softmax(1))
    assert torch.equal(spec.decode(loss, spec.activation(loss, pred)), pred.argmax(1))


def test_like_lends_its_options(target, no_labels):
    like = ClassificationHead(class_weights=[1, 2, 5], metrics=error_rate)
    spec = CustomHead(nn.Linear(12, 3), like=like).fit(target("category"), no_labels)
    pred, targ = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    wanted = F.cross_entropy(pred, targ, weight=torch.tensor([1.0, 2, 5]))
    assert torch.equal(spec.train_loss(spec.loss_func(), pred, targ), wanted)
    with pytest.raises(HeadsError, match="ClassificationHead needs a target of kind category"):
        CustomHead(nn.Linear(12, 3), like=like).fit(target("box"), no_labels)


@dataclass(frozen=True, kw_only=True)
class Halved(BoxHead):
    "Trains on half the loss, and calls an item with a first coordinate of zero unlabelled."

    def train_loss(self, loss_func, pred, targ):
        return super().train_loss(loss_func, pred, targ) / 2

    def item_loss(self, loss_func, pred, targ):
        return super().item_loss(loss_func, pred, targ) / 2

    def mask(self, targ):
        return targ[:, 0, 0] != 0


def test_like_says_how_it_trains_and_which_items_have_a_label(target, no_labels):
    spec = CustomHead(nn.Linear(12, 4), like=Halved()).fit(target("box"), no_labels)
    pred, targ = torch.randn(5, 4), torch.randn(5, 1, 4)
    targ[2, 0, 0] = 0
    wanted = (pred - targ[:, 0]).abs()
    torch.testing.assert_close(spec.train_loss(spec.loss_func(), pred, targ), wanted.mean() / 2)
    torch.testing.assert_close(spec.item_loss(spec.loss_func(), pred, targ), wanted.mean(1) / 2)
    assert spec.mask(targ).tolist() == [True, True, False, True, True] and spec.default_metrics() == (iou,)


def test_its_own_loss_sees_numbers_in_the_shape_of_the_predictions(target, no_labels):
    spec = CustomHead(nn.Linear(12, 1), loss=nn.MSELoss()).fit(target("regression"), no_labels)
    pred, targ = torch.randn(5, 1), torch.randn(5)
    torch.testing.assert_close(spec.train_loss(spec.loss_func(), pred, targ), F.mse_loss(pred[:, 0], targ))


def test_a_number_is_standardised_only_where_like_says_so(target, no_labels):
    labels = torch.tensor([10.0, 14.0])
    pred, targ = torch.tensor([[11.0], [12.0]]), labels
    plain = CustomHead(nn.Linear(12, 1)).fit(target("regression"), no_labels)
    torch.testing.assert_close(plain.train_loss(plain.loss_func(), pred, targ), torch.tensor(2.5))
    standard = CustomHead(nn.Linear(12, 1), like=RegressionHead()).fit(target("regression"), lambda: labels)
    torch.testing.assert_close(standard.train_loss(standard.loss_func(), pred, targ), torch.tensor(2.5 / 4))


def test_a_target_of_unknown_kind_needs_a_loss(target, no_labels):
    with pytest.raises(HeadsError, match=r"'thing' is of kind unknown, which has no default head: pass.*CustomHead"):
        CustomHead(nn.Linear(12, 2)).fit(target("unknown"), no_labels)
    spec = CustomHead(nn.Linear(12, 2), loss=F.mse_loss, n_out=2).fit(target("unknown"), no_labels)
    pred, targ = torch.randn(4, 2), torch.randn(4, 2)
    assert spec.n_out == 2 and torch.equal(spec.train_loss(spec.loss_func(), pred, targ), F.mse_loss(pred, targ))
    assert spec.activation(spec.loss_func(), pred) is pred and spec.default_metrics() == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"module": 3}, r"`module` of CustomHead is an nn.Module or a function that makes one, found 3"),
        ({"module": nn.Identity(), "like": ClassificationHead}, r"`like` of CustomHead is a spec such as"),
        ({"module": nn.Identity(), "loss_weight": -1}, r"`loss_weight` of CustomHead"),
    ],
    ids=str,
)
def test_refusals(options, says):
    with pytest.raises(HeadsError, match=says):
        CustomHead(**options)


def test_trains_beside_the_others_from_several_taps(digits):
    class Both(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.linear = nn.Linear(first + second, 10)

        def forward(self, a, b):
            return self.linear(torch.cat([a.mean((2, 3)), b], dim=1))

    heads = {"digit": CustomHead(Both, tap=("layer2", "pre_logits"))}
    learn = multihead_learner(digits, "test_resnet", heads=heads, pretrained=False)
    before = learn.model[1]["digit"].linear.weight.clone()
    with learn.no_logging():
        learn.fit(1, 1e-3)
    assert not torch.equal(before, learn.model[1]["digit"].linear.weight)
    assert "digit_accuracy" in learn.recorder.metric_names
