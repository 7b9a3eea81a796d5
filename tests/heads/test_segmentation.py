"""Masks: SMP's decoders and fastai's U-Net on any body, their losses, and what is refused."""

import fastai.vision.all  # noqa: F401  users import it: `fit_one_cycle` comes with it
import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, ColSplitter, IndexSplitter
from fastai.losses import CrossEntropyLossFlat, DiceLoss, FocalLoss, FocalLossFlat
from fastai.metrics import JaccardCoeff
from fastai.vision.core import PILImage, PILMask
from fastai.vision.data import ImageBlock, MaskBlock
from torch import nn

from fastai_heads.data.digits import digit_scenes, digits_dls
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.segmentation import MaskModule, SegmentationHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.learner import multihead_learner
from fastai_heads.view.interpret import HeadsInterpretation

NO_MASKS = torch.zeros(0, 8, 8)
MASK = Target("mask", 0, "mask", 3, ("paper", "ink", "blot"))
TAPS = tuple(TapShape(f"t{s}", c, s) for s, c in ((1, 3), (2, 4), (4, 6), (8, 8), (16, 10), (32, 12)))


def maps(height: int, width: int, taps=TAPS) -> list[torch.Tensor]:
    return [torch.randn(2, t.channels, -(-height // t.stride), -(-width // t.stride)) for t in taps]


def fitted(**fields) -> SegmentationHead:
    return SegmentationHead(**fields).fit(MASK, lambda: NO_MASKS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("digits") / "scenes"


@pytest.fixture
def digits(path):
    "Digits of 48 pixels with a class and a mask."
    return digits_dls(("digit", "mask"), n=40, size=48, bs=8, path=path)


@pytest.fixture
def make(digits):
    "A function: spec fields → a silent learner over a class and a mask."

    def learner(arch="test_resnet", dls=None, **fields):
        heads = {"mask": SegmentationHead(**fields)} if fields else None
        learn = multihead_learner(dls or digits, arch, heads=heads, pretrained=False)
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
        learn.rows = []
        learn.logger = lambda row: learn.rows.append(list(row))
        return learn

    return learner


@pytest.mark.parametrize("name", ["unet", "dynamic_unet", "unetplusplus", "fpn", "upernet", "pspnet", "linknet", "dpt"])
@pytest.mark.parametrize("skip", [True, False], ids=["stride 2", "no stride 2"])
def test_an_answer_has_the_size_of_the_image_and_every_parameter_a_gradient(name, skip):
    taps = TAPS if skip and name != "dpt" else (TAPS[0], *TAPS[2:])
    head = fitted(decoder=name).build(taps)
    out = head(*maps(63, 50, taps))
    assert out.shape == (2, 3, 63, 50)
    out.square().mean().backward()
    unused = [n for n, p in head.named_parameters() if p.grad is None]
    assert not unused


def test_a_head_on_masks_is_inferred(digits, make):
    learn = make()
    spec = learn.heads.mask.spec
    assert (type(spec), spec.n_out, spec.decoder) == (SegmentationHead, 11, "unet")
    assert default_head(MASK) == SegmentationHead()
    body = learn.model[0]
    assert [body.strides[tap] for tap in learn.model[1].reads["mask"]] == [1, 2, 4, 8, 16, 32]


def test_an_epoch_raises_the_foreground_iou(tmp_path):
    digit_scenes(tmp_path / "scenes", n=200, size=32)
    block = DataBlock(
        blocks=(ImageBlock, MaskBlock(["paper", "ink"])),
        get_x=ColReader("image", pref=tmp_path / "scenes"),
        get_y=lambda row: (np.array(PILMask.create(tmp_path / "scenes" / row["mask"])) > 0).astype(np.uint8),
        splitter=ColSplitter("is_valid"),
    )
    dls = block.dataloaders(pd.read_csv(tmp_path / "scenes" / "labels.csv"), bs=8, num_workers=0)
    head = SegmentationHead(losses="dice", metrics=[JaccardCoeff()])
    learn = multihead_learner(dls, "test_resnet", heads={"mask": head}, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[-1]
        learn.fit_one_cycle(1, 1e-2)
        assert learn.validate()[-1] > max(0.2, 2 * before)


def test_everything_of_a_learner_works_on_masks(digits, make):
    learn = make(decoder="dynamic_unet", refine=True)
    learn.fit(1)
    assert "mask_boundary_f1" in learn.recorder.metric_names
    values, tensors, probs = learn.predict(digits.valid_ds.items.iloc[0])
    assert values.mask.shape == (48, 48) and tensors.mask.max() < 11
    assert torch.allclose(probs.mask.sum(0), torch.ones(48, 48), atol=1e-5)
    preds, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert preds.mask.shape == (8, 11, 48, 48) and targs.mask.shape == decoded.mask.shape == (8, 48, 48)
    assert losses.mask.shape == (8,)
    learn.show_batch(max_n=2)
    learn.show_results(max_n=2)
    alone = learn.head("mask")
    assert torch.allclose(alone.get_preds()[0], preds.mask, atol=1e-6)
    alone.validate()
    with pytest.raises(HeadsError, match="move with the image"):
        learn.tta()
    assert "11 × 48 × 48" in str(learn.summary())


def test_masks_may_be_missing(path, make):
    dls = digits_dls(("digit", "mask"), n=40, size=48, bs=8, path=path, missing=0.5)
    learn = make(dls=dls, decoder="dynamic_unet")
    learn.fit(1)
    assert np.isfinite([v for v in learn.rows[-1] if isinstance(v, float)]).all()


def test_a_decoder_of_ones_own():
    head = fitted(tap=("input", 8), decoder=lambda image, deep: _Own(deep)).build((TAPS[0], TAPS[3]))
    assert isinstance(head, MaskModule)
    assert head(*maps(33, 50, (TAPS[0], TAPS[3]))).shape == (2, 3, 33, 50)
    head = fitted(tap=("input", 8), decoder=_Own(8, n_out=2)).build((TAPS[0], TAPS[3]))
    with pytest.raises(HeadsError, match="gives 2 channels for 3 codes"):
        head(*maps(33, 50, (TAPS[0], TAPS[3])))


class _Own(nn.Module):
    def __init__(self, n_in: int, n_out: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 1)

    def forward(self, image, deep):
        return self.conv(deep)


def test_binary_and_several_labels_decode_by_the_threshold():
    logits = torch.randn(2, 1, 4, 4)
    spec = SegmentationHead(mode="binary", threshold=0.3).fit(Target("m", 0, "mask", 2, ("a", "b")), lambda: NO_MASKS)
    task = spec.task(Target("m", 0, "mask", 2, ("a", "b")))
    probs = task.activation(logits)
    assert spec.n_out == 1 and torch.equal(task.decode(probs), (logits[:, 0].sigmoid() > 0.3).long())
    spec = SegmentationHead(mode="multilabel", n_out=3).fit(Target("m", 0, "unknown"), lambda: None)
    task = spec.task(Target("m", 0, "unknown"))
    logits, targ = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 2, (2, 3, 4, 4))
    assert task.decode(task.activation(logits)).shape == targ.shape
    task.train_loss(logits, targ).backward()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"decoder": "unett"}, "unet"),
        ({"decoder": 3}, "`decoder`"),
        ({"tap": 32}, "tuple of 'input' and the maps"),
        ({"tap": (4, 8)}, "tuple of 'input' and the maps"),
        ({"losses": "dise"}, "`losses`"),
        ({"losses": {}}, "`losses`"),
        ({"mode": "two"}, "`mode`"),
        ({"threshold": 2}, "`threshold`"),
        ({"losses": "lovasz", "class_weights": (1, 1, 1)}, "`class_weights`"),
        ({"class_weights": (1, 1)}, "3 finite weights"),
        ({"mode": "binary"}, "two codes"),
        ({"n_out": 4}, "contradicts"),
    ],
)
def test_what_is_refused_when_it_is_written(fields, said):
    with pytest.raises(HeadsError, match=said):
        fitted(**fields)


def test_a_decoder_that_needs_more_levels_than_there_are():
    with pytest.raises(HeadsError, match="strides 4, 8, 16 and 32"):
        fitted(tap=("input", 4, 8)).build((TAPS[0], TAPS[2], TAPS[3]))
    with pytest.raises(HeadsError, match="two maps at least"):
        fitted(tap=("input", 8), decoder="dynamic_unet").build((TAPS[0], TAPS[3]))
    with pytest.raises(HeadsError, match="no 'widht'"):
        fitted(decoder_options={"widht": 3}).build(TAPS)
    with pytest.raises(HeadsError, match="widht"):
        fitted(decoder="dynamic_unet", decoder_options={"widht": 3}).build(TAPS)


def test_images_that_are_too_small_for_a_decoder(digits):
    said = r"image size: `heads\['mask'\]` cannot take what the body gives for 48×48 pixels; it takes 128×128"
    with pytest.raises(HeadsError, match=said):
        multihead_learner(digits, "test_resnet", heads={"mask": SegmentationHead(decoder="pan")}, pretrained=False)


def test_one_image_to_a_batch_norm_is_refused_before_training(path, make):
    "The pooled branch of ASPP has one value per channel and image; that of PSP has no batch norm in SMP."
    dls = digits_dls(("mask",), n=40, size=48, bs=31, path=path)
    dls.train.drop_last = False
    learn = make(dls=dls, decoder="deeplabv3plus")
    with pytest.raises(HeadsError, match=r"the last of 2 training batches .* holds one item.*Pass `drop_last=True`"):
        learn.fit(1)
    assert learn.get_preds(dl=learn.test_dl(dls.valid_ds.items[:1]))[0].mask.shape == (1, 11, 48, 48)
    make(dls=dls, decoder="pspnet").fit(1)


def test_masks_that_do_not_fit_are_refused():
    spec = fitted()
    task = spec.task(MASK)
    pred = torch.randn(2, 3, 8, 8)
    with pytest.raises(HeadsError, match=r"codes from 0 to 2.*found 3, 7"):
        task.train_loss(pred, torch.tensor([[[3, 7], [0, 255]]]).repeat(2, 4, 4))
    with pytest.raises(HeadsError, match="the size of its image"):
        task.train_loss(pred, torch.zeros(2, 8, 9, dtype=torch.long))


def block_of_masks(mask, item_tfms=None):
    "Grey images of 32 × 32 pixels whose masks are made of their numbers."
    return DataBlock(
        blocks=(ImageBlock, MaskBlock(["paper", "ink"])),
        get_x=lambda i: PILImage.create(np.full((32, 32, 3), i, dtype=np.uint8)),
        get_y=mask,
        splitter=IndexSplitter([7]),
    ).dataloaders(list(range(8)), bs=2, num_workers=0)


def test_codes_that_are_not_named_are_refused_before_training():
    dls = block_of_masks(lambda i: np.full((32, 32), 5, dtype=np.uint8))
    with pytest.raises(HeadsError, match=r"target 'mask', item 0 .*its mask holds 5.*names 2, from 0 to 1"):
        multihead_learner(dls, "test_resnet", pretrained=False, heads={"mask": SegmentationHead()})


def test_a_code_that_is_not_named_in_one_mask_stops_the_training(monkeypatch):
    monkeypatch.setattr("fastai_heads.data.mask_faults._SAMPLE", 1)
    dls = block_of_masks(lambda i: np.full((32, 32), 5 if i == 3 else 1, dtype=np.uint8))
    learn = multihead_learner(dls, "test_resnet", pretrained=False, heads={"mask": SegmentationHead()})
    with pytest.raises(HeadsError, match="found 5"), learn.no_bar(), learn.no_logging():
        learn.fit(1)


def test_masks_of_another_size_are_refused_before_training():
    dls = block_of_masks(lambda i: np.zeros((16, 32), dtype=np.uint8))
    with pytest.raises(HeadsError, match=r"`heads\['mask'\]`: a mask has the size of its image.*\(3, 16, 32\)"):
        multihead_learner(dls, "test_resnet", pretrained=False, heads={"mask": SegmentationHead()})


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLossFlat(axis=1),
        FocalLossFlat(axis=1),
        DiceLoss(axis=1),
        lambda pred, targ: FocalLoss()(pred, targ) + DiceLoss(axis=1, reduction="mean")(pred, targ),
        smp.losses.TverskyLoss("multiclass"),
    ],
    ids=["cross-entropy", "focal", "dice", "a sum", "SMP's Tversky"],
)
def test_losses_of_fastai_and_smp_train(make, loss):
    learn = make(decoder="dynamic_unet", loss=loss, metrics=[])
    learn.fit(1)
    assert np.isfinite(learn.rows[0][1])
    each = learn.get_preds(with_loss=True)[-1].mask
    assert each.shape == (8,) and each.isfinite().all()


def test_two_masks_may_have_codes_of_their_own(tmp_path):
    "fastai's DataBlock keeps the codes of the last `MaskBlock` alone."
    block = DataBlock(
        blocks=(ImageBlock, MaskBlock(list("abcdef")), MaskBlock(["paper", "ink"])),
        getters=[
            lambda i: PILImage.create(np.full((32, 32, 3), i, dtype=np.uint8)),
            lambda i: np.full((32, 32), 5, dtype=np.uint8),
            lambda i: np.full((32, 32), 1, dtype=np.uint8),
        ],
        n_inp=1,
        splitter=IndexSplitter([6, 7]),
    )
    dls = block.dataloaders(list(range(8)), bs=2, num_workers=0, path=tmp_path)
    small = {"decoder": "dynamic_unet", "metrics": []}
    with pytest.raises(HeadsError, match=r"`heads\['mask'\]`.*found 5.*pass `n_out=`"):
        multihead_learner(dls, "test_resnet", pretrained=False, heads={"mask": SegmentationHead(**small)})
    heads = {"mask": SegmentationHead(n_out=6, **small), "mask_2": SegmentationHead(**small)}
    learn = multihead_learner(dls, "test_resnet", pretrained=False, heads=heads)
    assert (learn.heads.mask.vocab, learn.heads.mask_2.vocab) == (None, ("paper", "ink"))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        matrix = HeadsInterpretation.from_learner(learn).confusion_matrix("mask")
    assert matrix.shape == (6, 6) and matrix[5].sum() == 2 * 32 * 32


def test_without_smp_the_error_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    for name in [m for m in sys.modules if m.startswith("segmentation_models_pytorch.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(HeadsError, match="pip install 'segmentation_models_pytorch"):
        fitted().build(TAPS)
    assert fitted(decoder="dynamic_unet").build(TAPS) is not None
