"""Levels: strides that an arch does not have are made, once, for the heads that read them."""

import pytest
import torch
from torch import nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.image import cut_body
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads.levels import PYRAMID_CHANNELS, LevelFrom, PyramidLevel
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.learner import multihead_learner


class Thirds(nn.Module):
    "Strides 3, 6, 12 and 24."

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 3), nn.Conv2d(4, 6, 2, 2)
        self.three, self.four = nn.Conv2d(6, 8, 2, 2), nn.Conv2d(8, 10, 2, 2)
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        x = self.four(self.three(self.two(self.one(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def digits(tmp_path):
    return digits_dls(("mask",), n=20, size=48, bs=8, path=tmp_path / "scenes")


def vit(digits, heads):
    return multihead_learner(digits, "test_vit", heads=heads, pretrained=False, body_kwargs={"img_size": 48})


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_pyramid_has_every_stride(stride):
    level = PyramidLevel(12, 16, stride)
    assert level(torch.randn(2, 12, 6, 4)).shape == (2, PYRAMID_CHANNELS, 96 // stride, 64 // stride)
    assert PyramidLevel(12, 14, stride)(torch.randn(2, 12, 16, 16)).shape[-1] == round(224 / stride)


def test_a_resized_level_keeps_its_channels():
    assert LevelFrom(5, 12, 16)(torch.randn(1, 5, 8, 8)).shape == (1, 5, 6, 6)


def test_a_vit_gets_a_pyramid_shared_by_the_heads(digits):
    spec = SegmentationHead(decoder="upernet")
    learn = vit(digits, {"mask": spec, "again": SegmentationHead(decoder="fpn", target="mask", train_only=True)})
    heads, body = learn.model[1], learn.model[0]
    assert body.taps == ("input", "features")
    assert heads.reads["mask"] == heads.reads["again"]
    assert dict(heads.trunk_reads) == {f"stride_{s}": ("features",) for s in (4, 8, 16, 32)}
    before = [p.clone() for p in heads.trunk("stride_4").parameters()]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert not any(map(torch.equal, before, heads.trunk("stride_4").parameters()))
    assert "a simple feature pyramid" in str(learn.summary())
    preds, _ = learn.get_preds()
    with learn.no_bar():
        assert torch.allclose(learn.head("mask").get_preds()[0], preds.mask, atol=1e-5)
    learn.save("levels")
    learn.load("levels")


def test_a_head_that_is_added_reads_the_same_levels(digits):
    learn = vit(digits, {"mask": SegmentationHead(decoder="fpn")})
    before = learn.model[1].trunk("stride_4")
    learn.add_head("again", SegmentationHead(decoder="dynamic_unet", target="mask", train_only=True))
    assert learn.model[1].trunk("stride_4") is before
    assert learn.model[1].reads["again"] == learn.model[1].reads["mask"]


def test_strides_that_are_no_powers_of_two_are_resized(digits):
    learn = multihead_learner(digits, Thirds(), heads={"mask": SegmentationHead(decoder="fpn")})
    heads = learn.model[1]
    sources = {"stride_4": "one", "stride_8": "two", "stride_16": "three", "stride_32": "four"}
    assert heads.trunk_reads == {name: (source,) for name, source in sources.items()}
    assert "stride 32 of 24" in str(learn.summary()) and "resized" in str(learn.summary())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


def test_an_arch_that_has_the_strides_is_left_as_it_is():
    body = cut_body("test_resnet", [Level(s) for s in (4, 8, 16, 32)], pretrained=False)
    assert [body.strides[t] for t in body.taps] == [4, 8, 16, 32]
    assert body.level_source(Level(2, optional=True)) is not None


def test_a_level_out_of_reach_is_refused(digits):
    for stride in (128, 1):
        with pytest.raises(HeadsError, match=r"heads\['mask'\].*no tap at that stride"):
            heads = {"mask": SegmentationHead(decoder="dynamic_unet", tap=("input", 8, stride))}
            multihead_learner(digits, "test_resnet", heads=heads, pretrained=False)
    with pytest.raises(HeadsError, match="no tap at that stride"):
        vit(digits, {"mask": SegmentationHead(decoder="dynamic_unet", tap=("input", 8, 128))})


def test_a_single_stride_is_a_tap_and_never_made():
    with pytest.raises(HeadsError, match="no tap at that stride"):
        cut_body("test_vit", (4,), pretrained=False)
