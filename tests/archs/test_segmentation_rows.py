"""The bodies inside torchvision's segmentation networks; and its networks that have none."""

import pytest
import torch
from torchvision import models
from torchvision.models import get_model_builder, list_models, segmentation

from fastai_heads.archs.points import arch_points
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_the_masks_head_on_the_body_is_torchvisions_own(name):
    net = get_model_builder(name)(weights=None, weights_backbone=None).eval()
    x = torch.randn(1, 3, 64, 64)
    body = cut_body(net, ("features", "backbone.4") if "lraspp" in name else ("features",)).eval()
    out = body(x)
    with torch.no_grad():
        features = {"low": out["backbone.4"], "high": out["features"]} if "lraspp" in name else out["features"]
        small = net.classifier(features)
        assert torch.equal(torch.nn.functional.interpolate(small, (64, 64), mode="bilinear"), net(x)["out"])
    assert {r.name for r in body.removed} == {"classifier"}
    assert {k.partition(".")[0] for k, _ in body.net.named_children()} == {"backbone"}


def test_each_is_an_arch_by_its_name():
    for name in list_models(module=segmentation):
        points = arch_points(name)
        assert points.zoo == "torchvision" and points.taps[-1].name == "features"
    with pytest.raises(HeadsError, match="fcn_resnet50 has none: its head gives a mask and reads maps"):
        cut_body("fcn_resnet50", ("pre_logits",), pretrained=False)


def test_its_weights_bring_their_normalisation(torch_home):
    weights = segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
    net = segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)
    (torch_home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), torch_home / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    body = cut_body("lraspp_mobilenet_v3_large")
    assert body.mean == (0.485, 0.456, 0.406) and body.weights == "COCO_WITH_VOC_LABELS_V1"
    assert torch.equal(body.net.backbone["0"][0].weight, net.backbone["0"][0].weight)


@pytest.mark.parametrize(
    ("kind", "why"), [("video", "take clips"), ("detection", "have no single map"), ("optical_flow", "take two images")]
)
def test_networks_without_a_body_say_why(kind, why):
    for name in list_models(module=getattr(models, kind)):
        with pytest.raises(
            HeadsError, match=rf"`arch='{name}'` is of torchvision\.models\.{kind}, whose networks {why}"
        ):
            cut_body(name)


@pytest.mark.parametrize("name", ["mc3_18", "s3d", "mvit_v2_s", "swin3d_t"])
def test_a_network_of_clips_says_that_it_takes_no_images(name):
    with pytest.raises(HeadsError, match="it takes clips, and a body takes images"):
        cut_body(get_model_builder(name)())
