"""Names, functions, weights and channels."""

import re

import pytest
import timm
import torch
from fastai.vision.learner import create_body, create_head
from fastai.vision.models.xresnet import xresnet18
from torchvision import models
from torchvision.models import ResNet18_Weights, ResNet34_Weights

from fastai_heads.archs.points import arch_points
from fastai_heads.archs.registry import list_archs
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A cache of checkpoints as the download would have left it."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def resnet18(hub):
    torch.manual_seed(1)
    net = models.resnet18()
    torch.save(net.state_dict(), hub / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    return net.eval()


def test_torchvision_weights_are_loaded_and_bring_their_normalisation(resnet18):
    body = cut_body(models.resnet18)
    assert torch.equal(body.net.layer4[1].conv2.weight, resnet18.layer4[1].conv2.weight)
    assert body.mean == (0.485, 0.456, 0.406) and body.std == (0.229, 0.224, 0.225)
    assert body.weights == "IMAGENET1K_V1" and body.zoo == "torchvision"
    for weights in (ResNet18_Weights.IMAGENET1K_V1, "DEFAULT", "ResNet18_Weights.IMAGENET1K_V1"):
        assert torch.equal(cut_body(models.resnet18, weights=weights).net.conv1.weight, resnet18.conv1.weight)
    assert cut_body(models.resnet18, pretrained=False).mean is None


def test_one_channel_gives_what_three_equal_channels_gave(resnet18):
    grey = torch.randn(2, 1, 64, 64)
    three, one = cut_body(models.resnet18).eval(), cut_body(models.resnet18, n_in=1).eval()
    torch.testing.assert_close(one(grey)["features"], three(grey.expand(-1, 3, -1, -1))["features"])
    assert one.n_in == 1 and one.mean is None


@pytest.mark.parametrize("n_in", [1, 2, 4, 5])
def test_other_channels_are_fastais(resnet18, n_in):
    ours = cut_body(resnet18, n_in=n_in).net.conv1.weight
    theirs = create_body(resnet18, n_in=n_in, cut=-2)[0].weight
    assert torch.equal(ours, theirs)


def test_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(2)
    net = timm.create_model("test_resnet").eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    body = cut_body("test_resnet", pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")})
    assert torch.equal(body.net.layer1[0].conv1.weight, net.layer1[0].conv1.weight)
    assert body.mean == tuple(net.pretrained_cfg["mean"])
    one = cut_body("test_resnet", n_in=1, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}).eval()
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        one(grey)["features"], body.eval()(grey.expand(-1, 3, -1, -1))["features"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("arch", "kwargs", "says"),
    [
        ("resnet1O1", {}, "Did you mean 'resnet101'"),
        (3, {}, "expected a name, a function or an nn.Module, found int"),
        (models.resnet18, {"weights": "IMAGENET1K_V9"}, "Did you mean 'IMAGENET1K_V1'"),
        (models.resnet18, {"weights": ResNet34_Weights.DEFAULT}, "expected a member of ResNet18_Weights"),
        (models.resnet18, {"weights": "DEFAULT", "pretrained": False}, "contradicts `pretrained=False`"),
        (xresnet18, {}, "fastai has no weights for xresnet18; say pretrained=False"),
        ("resnet10t", {"weights": "no_such_tag"}, "timm has no such weights"),
        ("resnet10t.c3_in1k", {"weights": "other"}, "contradicts the tag"),
        (models.resnet18, {"n_in": 0, "pretrained": False}, "at least one, found 0"),
        ("test_resnet", {"n_in": 0, "pretrained": False}, "at least one, found 0"),
        ("test_resnet", {"n_in": "3", "pretrained": False}, "at least one, found '3'"),
        ("test_resnet", {"taps": None, "pretrained": False}, "`tap=None`, which test_resnet does not have"),
        ("test_resnet", {"taps": ("blocks.3",), "pretrained": False}, "`tap='blocks.3'`, which test_resnet does not"),
        (models.resnet18, {"layers": [1], "pretrained": False}, "could not be built"),
    ],
)
def test_what_cannot_be_used_is_refused(arch, kwargs, says):
    with pytest.raises(HeadsError, match=says):
        cut_body(arch, **kwargs)


def test_which_keys_of_a_checkpoint_do_not_match(hub):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, hub / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    with pytest.raises(HeadsError, match=r"layer1\.0\.conv1\.weight"):
        cut_body(models.resnet18)


def test_cut_points_prints_the_taps_in_order():
    points = arch_points(models.resnet18)
    assert [t.name for t in points.taps] == [
        "input", "stem", "layer1", "layer2", "layer3", "layer4", "features", "pre_logits",
    ]  # fmt: skip
    text = str(points)
    assert "avgpool (AdaptiveAvgPool2d), fc (Linear)" in text and "513,000" in text
    assert points.taps[-1].params == 11_176_512
    head = create_head(512, 5)
    params = sum(p.numel() for p in head.parameters())
    found = re.search(r"fastai's new head would add: 10 layers, ([\d,]+) parameters for one output, 512 more", text)
    assert int(found[1].replace(",", "")) + 4 * 512 == params
    html = points._repr_html_()
    assert "<table>" in html and html.count("<tr>") == 9 and "fastai&#x27;s new head" in html


def test_the_zoo_that_won_is_said():
    assert arch_points("resnet18").zoo == "timm"
    assert arch_points(models.resnet18).zoo == "torchvision"


def test_list_archs():
    names = list_archs()
    assert {"resnet18", "torchvision:resnet18", "xresnet50", "vit_base_patch16_224", "shufflenet_v2_x1_0"} <= set(names)
    assert "torchvision:shufflenet_v2_x1_0" not in names  # timm has none of that name
    assert names == sorted(set(names))
    assert all(n.startswith("xresnet") for n in list_archs("xresnet*"))
