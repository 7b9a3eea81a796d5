"""Every decoder against the model that it comes from, bit for bit."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from fastai.vision.learner import create_body
from fastai.vision.models.unet import DynamicUnet
from torchvision.models import resnet18

from fastai_heads.bodies.image import cut_body
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.decoders import DECODERS, DptDecoder, DynamicDecoder, SmpDecoder
from fastai_heads.heads.segmentation import MaskModule, SegmentationHead
from fastai_heads.heads.spec import TapShape

MODELS = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "manet": smp.MAnet,
    "linknet": smp.Linknet,
    "fpn": smp.FPN,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "pan": smp.PAN,
    "pspnet": smp.PSPNet,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
}


CHANNELS = (3, 64, 64, 128, 256, 512)  # of resnet18


@pytest.mark.parametrize("name", list(DECODERS))
def test_a_decoder_is_smps(name):
    "Same features and weights: the logits of the whole of SMP's model, at a size that needs no padding."
    options = {"encoder_depth": 5} if name == "pspnet" else {}
    theirs = MODELS[name]("resnet18", encoder_weights=None, classes=3, **options).eval()
    ours = MaskModule(SmpDecoder(DECODERS[name], CHANNELS, 3), 3).eval()
    ours.decoder.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.decoder.last.load_state_dict(theirs.segmentation_head[0].state_dict())
    x = torch.randn(2, 3, *((128, 160) if name == "pan" else (64, 96)))  # PAN halves stride 16 three times
    with torch.no_grad():
        features = theirs.encoder(x)
        if DECODERS[name].last != 32:  # ours resizes the last map to the stride at which SMP's decoder takes it
            deep = torch.randn(2, 512, *(side // 32 for side in x.shape[-2:]))
            size = [side // DECODERS[name].last for side in x.shape[-2:]]
            resized = F.interpolate(deep, size, mode="bilinear", align_corners=False)
            mine, features = [*features[1:-1], deep], [*features[:-1], resized]
        else:
            mine = features[1:]
        expected = theirs.segmentation_head(theirs.decoder(list(features)))
        found = ours(x, *mine)
    expected = (
        expected
        if expected.shape == found.shape
        else F.interpolate(
            theirs.segmentation_head[0](theirs.decoder(list(features))),
            x.shape[-2:],
            mode="bilinear",
            align_corners=True,
        )
    )
    assert torch.equal(found, expected)


def test_every_decoder_of_the_table_is_tested():
    assert set(MODELS) == set(DECODERS)


@pytest.mark.parametrize("size", [(64, 96), (48, 80)])
def test_dpt_is_smps(size):
    "Four depths of a ViT: the logits of the whole of SMP's model, and of its padded image where 32 does not divide."
    small = {"decoder_intermediate_channels": (8, 12, 16, 16), "decoder_fusion_channels": 16}
    theirs = smp.DPT(
        "tu-test_vit", encoder_weights=None, classes=3, decoder_readout="ignore", dynamic_img_size=True, **small
    )
    ours = MaskModule(DptDecoder((64,) * 4, (16,) * 4, 3, intermediate_channels=(8, 12, 16, 16), fusion_channels=16), 3)
    ours.decoder.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.decoder.last.load_state_dict(theirs.segmentation_head.head.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, _ = theirs.eval().encoder(x)
        padded = [
            F.pad(m, (0, -(-size[1] // 32) * 2 - m.shape[-1], 0, -(-size[0] // 32) * 2 - m.shape[-2])) for m in maps
        ]
        expected = theirs.segmentation_head(theirs.decoder(padded, [None] * 4))
        assert torch.equal(ours.eval()(x, *maps), expected[..., : size[0], : size[1]])


def test_dpt_says_what_it_reads():
    with pytest.raises(HeadsError, match=r"reads 4 maps.*at strides of 4, 8, 16 or 32; the taps are at \[16, 16\]"):
        DptDecoder((8, 8), (16, 16), 3)
    with pytest.raises(HeadsError, match=r"reads 2 maps.*the taps are at \[7, 14\]"):
        DptDecoder((8, 8), (7, 14), 3, intermediate_channels=(8, 8))
    with pytest.raises(HeadsError, match=r"no 'readout'. It has: intermediate_channels, fusion_channels"):
        DptDecoder((8,) * 4, (16,) * 4, 3, readout="cat")


@pytest.mark.parametrize("options", [{}, {"blur": True, "self_attention": True}, {"last_cross": False}])
def test_the_dynamic_unet_is_fastais(options):
    "The same body, the same weights: the same mask, and the same gradient in the body."
    side = 64
    encoder = create_body(resnet18(weights=None), pretrained=False)
    theirs = DynamicUnet(encoder, 3, (side, side), **options)
    body = cut_body(resnet18, ("input", 2, 4, 8, 16, 32), pretrained=False)
    body.load_state_dict(dict(zip(body.state_dict(), encoder.state_dict().values())))
    ours = DynamicDecoder((3, 64, 64, 128, 256, 512), 3, **options)
    mine, wanted = ours.state_dict(), list(theirs.layers[1:].state_dict().values())
    assert [v.shape for v in mine.values()] == [v.shape for v in wanted]
    ours.load_state_dict(dict(zip(mine, wanted)))
    theirs.train(), body.train(), ours.train()
    x = torch.randn(2, 3, side, side)
    expected, found = theirs(x), ours(*body(x).values())
    assert torch.equal(found, expected.as_subclass(torch.Tensor))
    expected.square().sum().backward(), found.square().sum().backward()
    first, same = next(encoder.parameters()).grad, next(body.parameters()).grad
    assert torch.allclose(first, same, rtol=1e-4, atol=1e-4 * first.abs().max().item())


def test_only_maps_that_need_it_are_padded():
    x, maps = torch.randn(2, 3, 40, 40), [torch.randn(2, c, -(-40 // s), -(-40 // s)) for c, s in ((4, 2), (4, 4))]
    decoder = SmpDecoder(DECODERS["unet"], (3, 4, 4, 8, 8, 8), 2).eval()
    deep = [torch.randn(2, 8, -(-40 // s), -(-40 // s)) for s in (8, 16, 32)]
    assert decoder(x, *maps, *deep).shape == (2, 2, 40, 40)
    decoder = SmpDecoder(DECODERS["linknet"], (3, 4, 4, 8, 8, 8), 2).eval()
    assert decoder(x, *maps, *deep).shape == (2, 2, 64, 64)


def test_a_head_adds_a_level_at_the_images_stride_and_says_so():
    target = Target("mask", 0, "mask", 3, ("a", "b", "c"))
    spec = SegmentationHead(prior=False).fit(target, lambda: None)
    assert spec.decoder_options == {"image_channels": 16}
    off = SegmentationHead(prior=False, decoder_options={"image_channels": 0}).fit(target, lambda: None)
    taps = tuple(TapShape(f"t{2**i}", c, 2**i) for i, c in enumerate(CHANNELS))
    with_level, without = spec.build(taps), off.build(taps)
    assert with_level.decoder.level is not None and without.decoder.level is None
    x = torch.zeros(1, 3, 64, 64)
    maps = [torch.zeros(1, c, 64 // 2**i, 64 // 2**i) for i, c in enumerate(CHANNELS) if i]
    image = torch.zeros(1, 3, 64, 64)
    image[..., 10, 10] = 1  # one pixel, which no map shows
    with torch.no_grad():
        seen, unseen = ((m.eval()(image, *maps) - m(x, *maps)).abs().amax(1)[0] for m in (with_level, without))
    assert seen[10, 10] > 0 and not seen[30:].any() and not unseen.any()
    with pytest.raises(HeadsError, match="'image_channels' is a whole number"):
        SegmentationHead(prior=False, decoder_options={"image_channels": -1}).fit(target, lambda: None).build(taps)
