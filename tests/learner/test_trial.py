"""What does not fit is found before any training, by one batch through the whole network, whichever way it came in."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.metrics import accuracy, mae
from fastai.vision.augment import Resize
from PIL import Image
from torch import nn

from fastai_heads.data.digits import digits_block, digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, CustomHead, MultiLabelHead, PointHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.trunks import Trunk

FIVE = ("digit", "tags", "ink", "centre", "box")


def pooled(n_out):
    "A function of the channels that makes a pooled linear layer."
    return lambda channels: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_out))


class Twice(nn.Module):
    "Gives a tuple."

    def forward(self, x):
        return x.mean((2, 3)), x.mean((2, 3))


class OfTwo(nn.Module):
    "Takes two tensors."

    def forward(self, x, y):
        return x + y


class Counting(nn.Module):
    "Keeps a buffer that every pass changes, and draws a number."

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, 10)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        torch.rand(1), np.random.rand(), random.random()
        return self.linear(x.mean((2, 3)))


FAULTS = {  # head → (its spec, the words that the refusal holds)
    "mse of classes": ("digit", ClassificationHead(loss=MSELossFlat()), ["`loss` of Class", "CrossEntropyLossFlat()"]),
    "bce of classes": ("digit", ClassificationHead(loss=BCEWithLogitsLossFlat()), ["`loss` of Class", "(5,) int64"]),
    "ce of a number": ("ink", RegressionHead(loss=CrossEntropyLossFlat()), ["`loss` of Regr", "`loss=MSELossFlat()`"]),
    "ce of tags": ("tags", MultiLabelHead(loss=CrossEntropyLossFlat()), ["`loss` of Multi", "BCEWithLogitsLossFlat()"]),
    "ce of a point": ("centre", PointHead(loss=CrossEntropyLossFlat()), ["`loss` of PointHead", "MSELossFlat()"]),
    "ce of a box": ("box", BoxHead(loss=CrossEntropyLossFlat()), ["`loss` of BoxHead", "`loss=L1LossFlat()`"]),
    "too many outputs": ("digit", CustomHead(pooled(30)), ["gives (3, 30)", "expected (3, 10)", "Linear(…, 10)"]),
    "many, own loss": ("digit", CustomHead(pooled(30), loss=F.cross_entropy), ["30 numbers for a class", "has 10"]),
    "too few outputs": ("digit", CustomHead(pooled(3)), ["gives (3, 3)", "expected (3, 10)", "nn.Linear(…, 10)"]),
    "wrong inputs": ("digit", CustomHead(nn.Linear(7, 10)), ["`module` of CustomHead cannot take", "'features'", "96"]),
    "a map": ("digit", CustomHead(lambda c: nn.Conv2d(c, 10, 1)), ["gives (3, 10, 1, 1)", "nn.AdaptiveAvgPool2d(1)"]),
    "a tuple": ("digit", CustomHead(Twice()), ["gives a tuple of 2", "expected one tensor", "torch.cat"]),
    "two inputs": ("digit", CustomHead(OfTwo()), ["cannot take what it reads", "'y'", "CustomHead(nn.Sequential("]),
    "a class": ("digit", CustomHead(nn.Linear), ["`module` of CustomHead", "out_features", "lambda channels"]),
    "metric": ("digit", ClassificationHead(metrics=mae), ["`metrics` of Class", "mae", "kind's are accuracy"]),
    "metric of classes": ("ink", RegressionHead(metrics=accuracy), ["`metrics` of Regr", "accuracy", "are mae"]),
    "n_out": ("ink", CustomHead(pooled(3), n_out=2, loss=F.mse_loss), ["gives (3, 3)", "`n_out=3`"]),
}


@pytest.fixture(scope="module")
def dls(scenes):
    "Data of this file, with all five targets."
    return digits_dls(FIVE, bs=8, path=scenes, n=40, size=32)


@pytest.fixture(scope="module")
def learn(dls):
    "One head, on the box; the others can be added."
    return multihead_learner(dls, "test_resnet", dict.fromkeys(FIVE[:4]), pretrained=False)


def refused(words, call):
    with pytest.raises(HeadsError) as error:
        call()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_learner_with_it_is_not_made(dls, fault):
    name, spec, words = FAULTS[fault]
    heads = dict.fromkeys(FIVE) | {name: spec}
    refused([f"`heads['{name}']`", *words], lambda: multihead_learner(dls, "test_resnet", heads, pretrained=False))


@pytest.mark.parametrize("fault", [fault for fault, (name, *_) in FAULTS.items() if name != "box"])
def test_a_head_with_it_is_not_added_and_nothing_has_changed(learn, fault):
    name, spec, words = FAULTS[fault]
    before, state = list(learn.heads), {k: v.clone() for k, v in learn.model.state_dict().items()}
    refused(words, lambda: learn.add_head(name, spec))
    assert list(learn.heads) == list(learn.model[1].names) == before and learn.loss_func.heads is learn.heads
    assert state.keys() == learn.model.state_dict().keys() and [m.name for m in learn.metrics] == ["box_iou"]


def test_data_that_a_head_cannot_take_is_not_set(make_dls, scenes, make_learner):
    learn = make_learner("digit", heads={"digit": CustomHead(lambda c: nn.Sequential(nn.Flatten(), nn.Linear(c, 10)))})
    large, before = _larger(scenes), learn.dls
    refused(["`heads['digit']`: `module` of CustomHead cannot take"], lambda: setattr(learn, "dls", large))
    assert learn.dls is before
    learn.dls = make_dls("digit")


def _larger(scenes):
    "The digits at twice the size."
    block = digits_block(scenes, ("digit",))
    block.item_tfms = [*block.item_tfms, Resize(64)]
    return block.dataloaders(pd.read_csv(scenes / "labels.csv", dtype={"digit": str}), bs=8, num_workers=0)


@pytest.mark.parametrize(
    ("trunk", "words"),
    [
        (
            Trunk(nn.Conv2d(3, 8, 1)),
            ["`trunk['neck']`: `module` of Trunk", "96 channels", "lambda channels"],
        ),
        (Trunk(lambda channels, more: None), ["`trunk['neck']`: `module` of Trunk", "more"]),
        (Trunk(nn.Flatten(0)), ["`trunk` 'neck' gives a map"]),
    ],
    ids=["channels", "arguments", "shape"],
)
def test_a_trunk_that_cannot_take_its_tap_is_refused(dls, trunk, words):
    heads = dict.fromkeys(FIVE) | {"digit": ClassificationHead(tap="neck")}
    made = {"pretrained": False, "trunk": {"neck": trunk}}
    refused(words, lambda: multihead_learner(dls, "test_resnet", heads, **made))


def test_nothing_has_changed_but_that_it_was_tried(dls):
    heads = dict.fromkeys(FIVE) | {"digit": CustomHead(Counting), "tags": MultiLabelHead()}
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    learn = multihead_learner(dls, "test_resnet", heads, pretrained=False)
    found = torch.rand(1), np.random.rand(), random.random()
    state = {name: value.clone() for name, value in learn.model.state_dict().items()}
    assert state["1.heads.head_digit.passes"] == 0
    assert not any(value.any() for name, value in state.items() if name.endswith("running_mean"))
    assert all(module.training for module in learn.model.modules())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    built = multihead_learner(dls, "test_resnet", heads, pretrained=False)
    assert found[1:] == (np.random.rand(), random.random()) and torch.equal(found[0], torch.rand(1))
    assert all(torch.equal(value, state[name]) for name, value in built.model.state_dict().items())
    assert not {"xb", "yb", "pred", "head_losses"} & vars(learn).keys()


def test_a_head_whose_labels_may_be_missing_is_tried_on_those_that_have_one(scenes):
    dls = digits_dls(("digit", "ink"), bs=8, path=scenes, n=40, size=32, missing=0.9)
    heads = {"digit": ClassificationHead(loss=MSELossFlat())}
    refused(["`heads['digit']`", "MSELoss"], lambda: multihead_learner(dls, "test_resnet", heads, pretrained=False))


def test_what_was_tried_is_not_tried_again(learn, monkeypatch, tmp_path):
    monkeypatch.setattr("fastai_heads.learner.settings.run_trial", lambda *args: pytest.fail("it was tried"))
    learn.dls = learn.dls
    learn.dls = learn.dls.new_empty()  # as `export` does


def test_images_of_two_sizes_are_named_with_the_fix(scenes, table, tmp_path):
    for place, name in enumerate(table.image):
        image = Image.open(scenes / name)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.resize((32, 48) if place else (32, 32)).save(tmp_path / name)
    block = digits_block(tmp_path, ("digit",))
    dls = block.dataloaders(table, bs=8, num_workers=0)
    words = ["two sizes, 32×32 and 32×48 pixels", "row 0 (", "row 1 (", "`item_tfms=Resize(32)`"]
    refused(words, lambda: multihead_learner(dls, "test_resnet", pretrained=False))
