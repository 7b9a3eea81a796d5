"""The registry: own archs, duplicates, and a row for a family that no zoo has."""

import re

import pytest
import torch
from torch import nn

from fastai_heads.__main__ import main
from fastai_heads.archs import Family, list_archs, register_arch, step
from fastai_heads.archs import registry as rows
from fastai_heads.archs.points import arch_points
from fastai_heads.archs.steps import flatten
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


class TwoStage(nn.Module):
    "A network that is in neither zoo; its last activation stands in its forward code only."

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(torch.relu(self.stage(self.stem(x)))), 1))


def last_relu(net, x):
    return torch.relu(x)


TWO_STAGE = Family(
    name="two_stage",
    module=TwoStage,
    steps=(step("stem", "stem"), step("stage"), step(last_relu, "features"), step("pool"), step(flatten, "pre_logits")),
    classifier=("fc",),
    late="stage",
)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(rows, "_ARCHS", dict(rows._ARCHS))
    monkeypatch.setattr(rows, "_FAMILIES", dict(rows._FAMILIES))


def test_a_row_of_ones_own():
    register_arch("two_stage", TwoStage, TWO_STAGE)
    assert "two_stage" in list_archs("two_*")
    net = TwoStage().eval()
    body = cut_body(net, ("stem", "features", "pre_logits")).eval()
    x = torch.randn(2, 3, 32, 32)
    out = body(x)
    assert torch.equal(net.fc(out["pre_logits"]), net(x)) and (out["features"] >= 0).all()
    assert body.strides == {"stem": 2, "features": 4, "pre_logits": None}
    assert cut_body("two_stage", width=4).channels == {"features": 8}
    assert cut_body(TwoStage).zoo == "registered"
    assert arch_points("two_stage").zoo == "registered"
    assert [len(g) for g in body.groups()] == [2, 4]


@pytest.mark.parametrize("name", ["two_stage", "xresnet18", "swin_t", "resnet50"])
def test_a_name_twice_raises(name):
    register_arch("two_stage", TwoStage, TWO_STAGE)
    with pytest.raises(HeadsError, match="is registered already"):
        register_arch(name, TwoStage)


def test_a_class_twice_raises():
    register_arch("two_stage", TwoStage, TWO_STAGE)
    other = Family(name="other", module=TwoStage, steps=TWO_STAGE.steps, classifier=("fc",))
    with pytest.raises(HeadsError, match="has a row already, 'two_stage'"):
        register_arch("other", TwoStage, other)
    assert "other" not in list_archs()


def test_a_network_without_a_row_is_traced_when_registered():
    register_arch("traced", TwoStage)
    body = cut_body("traced", pretrained=False)
    assert body.channels == {"features": 16}


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("zzz*", r"`pattern='zzz\*'` fits none of the \d+ names of archs. It is as in a shell: 'resnet\*'"),
        ("ResNet18*", "Did you mean 'resnet18'"),
        ("convnxt_tiny", "Did you mean 'convnext_tiny'"),
    ],
)
def test_a_pattern_that_fits_no_name_is_refused(pattern, says, capsys):
    with pytest.raises(HeadsError, match=says):
        list_archs(pattern)
    assert main(["archs", pattern]) == 2
    assert re.search(says, capsys.readouterr().err)
