"""A class, a number, a mask and boxes with labels from one body, through the whole of a learner."""

from functools import partial
from math import isfinite

import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from torchvision.ops import FeaturePyramidNetwork

from fastai_heads.data.detection_block import LabeledBoxes
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads import DetectionHead, SegmentationHead
from fastai_heads.learner import multihead_learner
from fastai_heads.trunks import Trunk
from fastai_heads.view.interpret import HeadsInterpretation

pytestmark = pytest.mark.filterwarnings("ignore:the target of column 'count':fastai_heads.errors.HeadsWarning")
FOUR = ("count_", "ink", "mask", "boxes")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("dense") / "scenes"


@pytest.fixture
def learn(scenes, quiet, tmp_path):
    "Four heads; mask and boxes share a pyramid."
    dls = digits_dls(("count", "ink", "mask", "boxes"), bs=4, path=scenes, n=20, size=32, digits_per_scene=(1, 4))
    dls.path = tmp_path
    boxes = {"tap": ("neck.4", "neck.8"), "pyramid": False, "detections_per_img": 5}
    heads = {
        "mask": SegmentationHead(
            tap=("input", "neck"), decoder="segformer", decoder_options={"segmentation_channels": 16}
        ),
        "boxes": DetectionHead(kind="fcos", score_thresh=0.0, decode_score=0.0, metrics=[], **boxes),
    }
    trunk = {"neck": Trunk(partial(FeaturePyramidNetwork, out_channels=64), tap=(4, 8, 16, 32))}
    return quiet(multihead_learner(dls, "test_resnet", heads, trunk=trunk, pretrained=False))


def test_training_and_predicting(learn, tmp_path):
    learn.fit_one_cycle(1, 1e-3, cbs=SaveModelCallback(monitor="mask_iou"))
    assert set(learn.heads) == set(FOUR) and all(isfinite(v) for v in learn.rows[0][:-1])
    preds, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert preds.mask.shape == (4, 11, 32, 32) and preds.boxes.shape == (4, 5, 6)
    assert preds.ink.shape == (4, 1) and preds["count_"].shape == (4, 4)
    assert decoded.mask.shape == targs.mask.shape == (4, 32, 32)
    whole = sum(getattr(losses.heads, name) for name in FOUR)
    torch.testing.assert_close(losses.detach().as_subclass(torch.Tensor), whole.as_subclass(torch.Tensor))
    item = learn.dls.valid_ds.items.iloc[0]
    values, tensors, _ = learn.predict(item)
    assert isinstance(values.boxes, LabeledBoxes) and len(values.boxes.labels) == 5
    assert torch.equal(tensors.mask, decoded.mask[0]) and isinstance(values.ink, float)
    learn.export("four.pkl")
    again = load_learner(tmp_path / "four.pkl").predict(item)[2]
    assert all(torch.allclose(again[n], learn.predict(item)[2][n], atol=1e-5) for n in FOUR)
    learn.save("four")
    learn.load("four")


def test_looking(learn):
    shown = learn.show_batch(max_n=2)
    assert any(ax.patches for ax in shown.axes) and any(len(ax.images) == 2 for ax in shown.axes)
    results = learn.show_results(max_n=2, shuffle=False)
    assert {"mask: target", "mask: prediction"} <= {ax.get_title(loc="left") for ax in results.axes}
    assert "neck (trunk)" in {t.get_text() for t in learn.show_heads().axes[0].texts}
    assert "neck.4, neck.8, neck.16, neck.32" in str(learn.summary())
    found = HeadsInterpretation.from_learner(learn)
    for head in (None, *FOUR):
        found.plot_top_losses(2, head=head)
    assert found.confusion_matrix("mask").sum() == 4 * 32 * 32
    with pytest.raises(HeadsError, match=r"not for head 'boxes'"):
        found.confusion_matrix("boxes")


def test_a_frozen_body_leaves_the_pyramid_trained(learn):
    learn.freeze()
    neck = [p.clone() for p in learn.model[1].trunk("neck").parameters()]
    learn.fit(1, 1e-2)
    assert not any(torch.equal(p, old) for p, old in zip(learn.model[1].trunk("neck").parameters(), neck))


def test_each_head_alone_predicts_the_same(learn, quiet):
    preds = learn.get_preds()[0]
    for name in FOUR:
        assert torch.allclose(quiet(learn.head(name)).get_preds()[0], preds[name], atol=1e-5), name


def test_a_head_more_reads_the_pyramid(learn):
    learn.add_head("coarse", SegmentationHead(tap=("input", "neck"), decoder="fpn", train_only=True), target="mask")
    assert learn.model[1].reads["coarse"] == learn.model[1].reads["mask"]
    learn.fit(1)
    learn.drop_head("coarse")
    learn.fit(1)


def test_places_are_not_blended_or_averaged(learn):
    with pytest.raises(HeadsError, match=r"'mask'.*'boxes'"):
        learn.fit(1, cbs=MixUp())
    with pytest.raises(HeadsError, match="mask, boxes move with the image"):
        learn.tta(heads=("mask", "boxes"))
    averaged, _ = learn.tta(n=2, heads=("count_", "ink"))
    assert torch.equal(averaged.boxes, learn.get_preds()[0].boxes)
