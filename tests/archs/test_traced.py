"""Networks that no row knows."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision import models

from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


class MyResNet(models.ResNet):
    "A subclass may have other forward code, so that it has no row."

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(torch.relu(self.trunk(x))), 1))

    def trunk(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MyResNet(models.resnet.BasicBlock, [1, 1, 1, 1]).eval()


def test_a_traced_network_loses_nothing(net):
    body = cut_body(net, ("layer1", "features", "pre_logits")).eval()
    x = torch.randn(2, 3, 64, 64)
    out = body(x)
    assert torch.equal(net.fc(out["pre_logits"]), net(x))
    assert body.strides == {"layer1": 4, "features": 32, "pre_logits": None}
    assert [r.name for r in body.removed] == ["fc"]
    for again in (pickle.loads(pickle.dumps(body)), copy.deepcopy(body)):
        assert all(torch.equal(a, b) for a, b in zip(again(x).values(), out.values(), strict=True))


class InPlace(nn.Module):
    "Its activation overwrites what its last module gave."

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(torch.relu_(self.convs(x)).mean((2, 3)))


def test_a_tap_is_not_changed_by_later_code_in_place():
    net, x = InPlace().eval(), torch.randn(2, 3, 64, 64)
    alone = cut_body(net, ("features",)).eval()(x)["features"]
    together = cut_body(net, ("features", "pre_logits")).eval()(x)["features"]
    assert torch.equal(alone, together) and (alone < 0).any()


def test_every_kept_parameter_gets_a_gradient(net):
    for taps in (("layer2",), ("features",), ("pre_logits",)):
        body = cut_body(net, taps).train()
        body(torch.randn(2, 3, 64, 64))[taps[0]].square().sum().backward()
        assert all(p.grad is not None for p in body.parameters())
        assert all(body.groups())


def test_a_module_may_be_named_by_hand(net):
    body = cut_body(net, ("layer2.0.conv1",)).eval()
    assert body.channels == {"layer2.0.conv1": 128}
    assert "layer3" in [r.name for r in body.removed]


def test_a_small_network_for_grey_images():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    body = cut_body(net, ("features", "pre_logits")).eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(net.eval()[-1](body(x)["pre_logits"]), net(x))
    assert body.n_in == 1 and body.channels == {"features": 8, "pre_logits": 8}


def test_a_network_that_gives_a_map_needs_no_classifier():
    body = cut_body(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()))
    assert body.channels == {"features": 8} and body.removed == ()
    with pytest.raises(HeadsError, match="it gives a map and has no classifier"):
        body.tap_name("pre_logits")


class TwoAnswers(nn.Module):
    "A network that gives a dictionary."

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.mask, self.kind = nn.Conv2d(16, 2, 1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.backbone(x)
        return {"mask": self.mask(x), "kind": self.kind(x.mean((2, 3)))}


def test_what_cannot_be_proved_says_what_was_seen_and_may_be_tapped_by_hand():
    net = TwoAnswers()
    with pytest.raises(HeadsError, match=r"gives a dict.*Modules seen: backbone, mask, kind.*by hand"):
        cut_body(net)
    body = cut_body(net, ("backbone.2",))
    assert body.channels == {"backbone.2": 16} and [r.name for r in body.removed] == ["mask", "kind"]


def test_what_takes_no_images_says_so():
    with pytest.raises(HeadsError, match="takes no batch of images"):
        cut_body(nn.Linear(5, 2))
