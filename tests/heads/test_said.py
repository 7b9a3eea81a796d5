"""Specs as data and back, for every kind and for a user's own; what has no name is refused."""

import json
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, L1LossFlat, MSELossFlat
from fastai.metrics import accuracy
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from fastai_heads.errors import HeadsError
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    CustomHead,
    DetectionHead,
    HeadSpec,
    MultiLabelHead,
    PointHead,
    RegressionHead,
    SegmentationHead,
)
from fastai_heads.heads.said import find, kind_names, make, register_module, say


@dataclass(frozen=True, kw_only=True)
class OrdinalHead(ClassificationHead):
    "A user's own kind."

    steps: int = 3


SPECS = [
    ClassificationHead(),
    ClassificationHead(tap=("layer3", 16), loss=FocalLossFlat(gamma=3.0), metrics=accuracy, loss_weight=0.5),
    ClassificationHead(loss=CrossEntropyLossFlat(label_smoothing=0.1), init=None, lin_ftrs=[8, 4], ps=[0.1, 0.2, 0.3]),
    ClassificationHead(loss=CrossEntropyLossFlat(weight=torch.tensor([1.0, 2.0])), init=nn.init.xavier_normal_),
    MultiLabelHead(threshold=0.3, loss=BCEWithLogitsLossFlat(thresh=0.2), pool="avg"),
    MultiLabelHead(pos_weight=torch.tensor([1.0, 2.0])),
    RegressionHead(standardize=((1.0,), (2.0,)), loss=nn.HuberLoss(delta=0.5), y_range=(0, 2)),
    RegressionHead(loss=L1LossFlat()),
    PointHead(loss=MSELossFlat),
    BoxHead(train_only=True, target="box"),
    SegmentationHead(losses={"dice": 1.0, "cross_entropy": 0.5}, decoder="fpn"),
    DetectionHead(kind="fcos", tap=(8, 16)),
    DetectionHead(norm_layer=None, score_thresh=0.1),
    CustomHead(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, bias=False)), like=PointHead()),
    OrdinalHead(steps=5),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_there_and_back(spec):
    said = json.loads(json.dumps(spec.to_dict()))
    again = HeadSpec.from_dict(said)
    assert type(again) is type(spec) and again.to_dict() == said
    assert said["kind"] in kind_names(type(spec))


def test_a_dict_says_what_is_not_as_by_default():
    assert ClassificationHead(tap="layer3").to_dict() == {"kind": "classification", "tap": "layer3"}
    assert DetectionHead(kind="fcos").to_dict() == {"kind": "fcos"}
    assert HeadSpec.from_dict({"kind": "detection"}) == DetectionHead()


def test_a_loss_computes_the_same():
    pred, targ = torch.randn(6, 2), torch.randint(2, (6,))
    for loss in (FocalLossFlat(gamma=3.0), CrossEntropyLossFlat(weight=torch.tensor([1.0, 2.0]))):
        again = HeadSpec.from_dict(ClassificationHead(loss=loss).to_dict()).loss
        assert torch.equal(again(pred, targ), loss(pred, targ))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1, bias=False),
        nn.Conv2d(3, 4, 1).eval(),  # as `learn.predict` leaves it
        nn.Linear(3, 2),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Dropout2d(0.2)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_modules_are_made_again(module):
    again = make(json.loads(json.dumps(say(module, "module"))))
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, 4 if isinstance(module, nn.BatchNorm2d) else 3, 5, 3)
    assert repr(again) == repr(module) and torch.equal(again.eval()(x), module.eval()(x))


def test_a_function_with_its_arguments():
    said = say(partial(FeaturePyramidNetwork, out_channels=8), "trunk")
    assert make(json.loads(json.dumps(said)))([3, 4]).layer_blocks[0][0].out_channels == 8


class Neck(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.n, self.lin = n, nn.Linear(n, 2)


def test_what_has_no_name_is_refused():
    with pytest.raises(HeadsError, match="`loss` of ClassificationHead is a lambda"):
        ClassificationHead(loss=lambda p, t: p).to_dict()
    with pytest.raises(HeadsError, match="`module` of CustomHead is a type 'Neck'"):
        CustomHead(Neck(3)).to_dict()
    register_module(Neck)
    assert HeadSpec.from_dict(CustomHead(Neck(3)).to_dict()).module.lin.in_features == 3
    with pytest.raises(HeadsError, match=r"'Nek' is of the user's own code: register it first.*Did you mean 'Neck'"):
        find("own:Nek")
    with pytest.raises(HeadsError, match="is a partial with places"):
        say(partial(nn.Linear, 3), "x")
    with pytest.raises(HeadsError, match="which JSON does not have"):
        say(float("nan"), "x")
    with pytest.raises(HeadsError, match="with a name"):
        register_module(lambda n: n)


@pytest.mark.parametrize("name", ["os:system", "torch.nn:exec", "torch.nn:_reduction", "fastai.losses:torch", 3, "x"])
def test_a_name_that_may_not_be_looked_up(name):
    with pytest.raises(HeadsError, match=r"may be named|no place to look up"):
        find(name)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"kind": "clasification"}, "Did you mean 'classification'"),
        ({"tap": "layer3"}, "with its `kind`"),
        ({"kind": "classification", "taps": 3}, "`taps` is not a parameter"),
        ({"kind": "classification", "lr_mult": -1}, "`lr_mult`"),
    ],
)
def test_a_wrong_dict(said, message):
    with pytest.raises(HeadsError, match=message):
        HeadSpec.from_dict(said)
