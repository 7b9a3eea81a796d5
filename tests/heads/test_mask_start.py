"""The start of a mask's head: the codes' shares, and the logits that they give."""

import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock, MaskBlock

from fastai_heads.data.digits import digit_scenes, digits_dls
from fastai_heads.data.targets import Target, target_labels
from fastai_heads.errors import HeadsError
from fastai_heads.heads.mask_start import code_shares, start_from_shares
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.learner import multihead_learner

MASK = Target("mask", 0, "mask", 3, ("paper", "ink", "blot"))
TAPS = tuple(TapShape(f"t{s}", c, s) for s, c in ((1, 3), (2, 4), (4, 6), (8, 8), (16, 10), (32, 12)))
CODES = torch.tensor([[[0, 0, 0, 1], [0, 2, 255, 255]]])


@pytest.mark.parametrize(
    ("masks", "n_out", "mode", "expected"),
    [
        (CODES, 3, "multiclass", (4 / 6, 1 / 6, 1 / 6)),
        (CODES.clamp(max=1), 1, "binary", (4 / 8,)),  # 255 became 1, too
        (torch.tensor([[[0, 0, 0, 1], [0, 1, 255, 255]]]), 1, "binary", (2 / 6,)),
        (torch.tensor([[[[0, 1]], [[1, 1]]], [[[0, 0]], [[1, 255]]]]), 2, "multilabel", (1 / 4, 0.999)),
        (torch.full((2, 4, 4), 255), 3, "multiclass", None),
        (torch.zeros(0, 4, 4), 3, "multiclass", None),
        (torch.zeros(0, 4, 4), 1, "binary", None),
    ],
)
def test_shares_are_of_the_labelled_pixels(masks, n_out, mode, expected):
    assert code_shares(masks, n_out, mode, 255) == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_a_code_that_the_sample_does_not_show_stays_possible():
    shares = code_shares(torch.zeros(1, 8, 8), 3, "multiclass", 255)
    assert shares == pytest.approx((0.999 / 1.001, 0.001 / 1.001, 0.001 / 1.001), rel=1e-6)


@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_a_bias_makes_the_codes_as_probable_as_they_are_frequent(mode):
    shares = (0.7, 0.2, 0.1) if mode == "multiclass" else (0.2,)
    last = torch.nn.Sequential(torch.nn.Conv2d(4, len(shares), 1))
    torch.nn.init.zeros_(last[0].weight)
    start_from_shares(last, shares, mode)
    out = last(torch.randn(1, 4, 2, 2))
    found = out.softmax(1) if mode == "multiclass" else out.sigmoid()
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor(shares))


@pytest.mark.parametrize("decoder", ["unet", "fpn", "dynamic_unet", "dpt", "deeplabv3"])
def test_every_decoder_starts_from_the_shares(decoder):
    taps = (TAPS[0], *TAPS[2:]) if decoder == "dpt" else TAPS
    spec = SegmentationHead(decoder=decoder, prior=(0.7, 0.2, 0.1)).fit(MASK, lambda: None)
    torch.manual_seed(0)
    with_prior = spec.build(taps).decoder.last
    convs = [m for m in with_prior.modules() if isinstance(m, torch.nn.Conv2d)]
    torch.testing.assert_close(convs[-1].bias.softmax(0), torch.tensor((0.7, 0.2, 0.1)))


def test_the_shares_are_those_of_the_training_masks_missing_ones_left_out(tmp_path):
    dls = digits_dls(("mask",), n=40, size=48, bs=8, path=tmp_path / "s", missing=0.3)
    spec = multihead_learner(dls, "test_resnet", pretrained=False).heads.mask.spec
    counts = torch.zeros(11)
    for _, mask in dls.train.new(shuffle=False, drop_last=False, bs=1):
        counts += torch.bincount(mask[mask != 255].flatten(), minlength=11)
    expected = (counts / counts.sum()).clamp(min=1e-3)
    torch.testing.assert_close(torch.tensor(spec.prior), expected / expected.sum(), rtol=0.1, atol=1e-3)
    assert spec.prior[0] > 0.8 and sum(spec.prior) == pytest.approx(1)


def test_masks_are_read_32_of_them_at_any_size(tmp_path):
    frame = digit_scenes(tmp_path / "scenes", n=50, size=32)
    opened = []

    def mask_of(row):
        opened.append(row["mask"])
        return tmp_path / "scenes" / row["mask"]

    block = DataBlock(
        blocks=(ImageBlock, MaskBlock([str(i) for i in range(11)])),
        get_x=ColReader("image", pref=tmp_path / "scenes"),
        get_y=mask_of,
        splitter=ColSplitter("is_valid"),
    )
    dls = block.dataloaders(frame, bs=8, num_workers=0)
    opened.clear()
    assert target_labels(dls, 0).shape == (32, 64, 64)
    assert len(set(opened)) == 32


@pytest.mark.parametrize(
    "fields", [{"losses": "dice"}, {"loss": torch.nn.CrossEntropyLoss()}, {"prior": False}], ids=str
)
def test_without_a_loss_that_rare_codes_pull_it_starts_as_the_decoder_does(fields):
    def labels():
        raise AssertionError("no mask is read")

    assert SegmentationHead(**fields).fit(MASK, labels).prior is False


@pytest.mark.parametrize("prior", ["often", (0.5, 1.5, 0.1), (), 0.3, (0.5, 0, 0.5)])
def test_what_are_no_shares_is_refused(prior):
    with pytest.raises(HeadsError, match="prior"):
        SegmentationHead(prior=prior)


def test_shares_of_other_codes_are_refused():
    with pytest.raises(HeadsError, match="`prior` for target 'mask' are 3"):
        SegmentationHead(prior=(0.5, 0.5)).fit(MASK, lambda: None)
