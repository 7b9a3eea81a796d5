"""The exceptions: archs of which a claim does not hold by construction. Each list is data, and grows only here, too."""

import pytest
import timm
import torch

from fastai_heads.archs.fastai_zoo import BROKEN, FASTAI
from fastai_heads.archs.segmentation_rows import SEGMENTATION
from fastai_heads.archs.timm_rows import ENCODERS, NOT_EXPORTED, RESIZED, SIDEWAYS, TIMM_ROWS
from fastai_heads.archs.torchvision_rows import TORCHVISION
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


def names(classes):
    return {c.__name__ for c in classes}


def test_the_lists_have_not_grown():
    assert names(TIMM_ROWS) == {
        "CrossVit", "EfficientViM", "EfficientViMDistilled", "PoolingVisionTransformer", "VOLO",
        "VisionTransformerDistilled",
    }  # fmt: skip
    assert names(ENCODERS) == {"DeepseekVitEncoder", "Gemma4VitEncoder", "MobileNetV5Encoder", "Qwen3VitEncoder"}
    assert names(SIDEWAYS) == {
        "CoaT", "CrossVit", "EfficientViM", "EfficientViMDistilled", "HighResolutionNet", "PoolingVisionTransformer",
    }  # fmt: skip
    assert names(RESIZED) == {"MobileNetV5", "MobileNetV5Encoder"}
    assert names(NOT_EXPORTED) == {"Gemma4VitClassifier", "Gemma4VitEncoder"}
    rows = (*TORCHVISION, *SEGMENTATION, *FASTAI)
    assert {f.name for f in rows if f.no_vector} == {"squeezenet", "fcn", "deeplabv3", "lraspp"}
    assert {"xsenet154"} == BROKEN


def test_every_exception_has_its_reason():
    assert all(row.why for row in TIMM_ROWS.values())
    assert all(RESIZED.values()) and all(NOT_EXPORTED.values())
    assert all(f.logits for f in (*TORCHVISION, *SEGMENTATION) if f.no_vector), "the equality that does hold"


@pytest.mark.parametrize("side", [256, 512])
def test_a_resized_map_has_16_cells(side):
    body = cut_body("mobilenetv5_base", pretrained=False, channel_multiplier=0.25).eval()
    with torch.no_grad():
        assert body(torch.randn(1, 3, side, side))["features"].shape[-2:] == (16, 16)


def test_what_is_listed_is_not_exported():
    body = cut_body("gemma4_vit_167m", pretrained=False, depth=1, embed_dim=64, num_heads=1, img_size=96).eval()
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(body, (torch.randn(1, 3, 96, 96),))


def test_an_encoder_says_that_it_has_no_vector():
    with pytest.raises(HeadsError, match="qwen3_vit_88m_enc has none: it is an encoder without a classifier"):
        cut_body("qwen3_vit_88m_enc", ("pre_logits",), pretrained=False, depth=1, img_size=96)


@pytest.mark.parametrize(
    ("arch", "depth"), [("deit_tiny_distilled_patch16_224", 2), ("pit_ti_distilled_224", (1, 1, 1))]
)
def test_of_two_tokens_the_mean_is_read_alike_by_alike_classifiers(arch, depth):
    net = timm.create_model(arch, depth=depth).eval()
    body = cut_body(net, ("pre_logits",)).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        net.head_dist.load_state_dict(net.head.state_dict())
        torch.testing.assert_close(net.head(body(x)["pre_logits"]), net(x))


@pytest.mark.parametrize(
    ("arch", "module", "side"), [("qwen3_vit_88m_merge", "merger", 96), ("deepseek_vit_412m_align", "aligner", 126)]
)
def test_cells_that_were_merged_are_the_last_map(arch, module, side):
    body = cut_body(arch, pretrained=False, depth=2, embed_dim=128, num_heads=2, img_size=side).train()
    features = body(torch.randn(2, 3, side, side))["features"]
    features.sum().backward()
    assert features.shape[1] == body.channels["features"] and features.shape[-1] == 3
    assert body.strides["features"] == side // 3
    assert all(p.grad is not None for p in getattr(body.net.encoder, module).parameters())
