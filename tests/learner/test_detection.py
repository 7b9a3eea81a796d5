"""Boxes beside other targets through the whole of a learner."""

from collections import OrderedDict
from functools import partial
from math import isfinite

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.learner import load_learner
from fastai.torch_core import TensorBase
from fastai.vision.data import ImageBlock
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.ops import FeaturePyramidNetwork

from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock, LabeledBoxes, to_pixels
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.tasks.detection_loss import anchor_generator
from fastai_heads.tasks.mean_ap import MeanAP, has_torchmetrics
from fastai_heads.trunks import Trunk
from fastai_heads.view.interpret import HeadsInterpretation

N = 30  # 24 scenes to train on, 6 to validate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "The folder of the scenes, written once."
    return tmp_path_factory.mktemp("detection") / "scenes"


@pytest.fixture
def make(scenes, quiet, tmp_path):
    "A function: fields of the spec → a learner of a number and boxes, without metrics."

    def learner(targets=("ink", "boxes"), missing=0.0, **fields):
        dls = digits_dls(targets, bs=4, path=scenes, n=N, size=32, digits_per_scene=(1, 5), missing=missing)
        dls.path = tmp_path
        fields = {"channels": 64, "tap": (4, 8), "extra_levels": 0, "detections_per_img": 10, "metrics": [], **fields}
        trunk = fields.pop("trunk", None)
        heads = {"boxes": DetectionHead(**fields)}
        return quiet(multihead_learner(dls, "test_resnet", heads=heads, trunk=trunk, pretrained=False))

    return learner


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_every_answer_of_a_learner(make, kind):
    learn = make(kind=kind, score_thresh=0.0, decode_score=0.0)
    learn.fit(1)
    assert all(torch.isfinite(torch.tensor(v)) for v in learn.recorder.values[0])
    preds, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert preds.boxes.shape == (6, 10, 6) and decoded.boxes.shape == (6, 10, 6) and losses.boxes.shape == (6,)
    assert targs.boxes.shape[0] == 6 and targs.boxes.shape[2] == 5
    values, as_tensors, _ = learn.predict(learn.dls.valid_ds.items.iloc[0])
    assert isinstance(values.boxes, LabeledBoxes) and len(values.boxes.labels) == len(values.boxes.scores) > 0
    assert as_tensors.boxes.shape == (10, 6)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("shared", [False, True], ids=["its own pyramid", "a shared one"])
def test_the_network_is_torchvisions_from_image_to_boxes(make, kind, shared):
    fields = {"kind": kind, "tap": "neck", "pyramid": False, "channels": None, "extra_levels": None}
    neck = Trunk(partial(FeaturePyramidNetwork, out_channels=64), tap=(4, 8))
    fields = {**fields, "trunk": {"neck": neck}} if shared else {"kind": kind}
    learn = make(("boxes",), score_thresh=0.005, detections_per_img=100, **fields)
    body, heads = learn.model.eval()
    module = heads["boxes"]
    pyramid = heads.trunk("neck") if shared else module.pyramid

    class Backbone(nn.Module):
        out_channels = 64

        def forward(self, x):
            taps = body(x)
            return pyramid(OrderedDict((str(body.strides[tap]), m) for tap, m in taps.items() if tap != "input"))

    theirs = (RetinaNet if kind == "retinanet" else FCOS)(
        Backbone(),
        10,
        anchor_generator=anchor_generator(kind, (4, 8)),
        head=module.head,
        image_mean=(0, 0, 0),
        image_std=(1, 1, 1),
        min_size=32,
        max_size=32,
        score_thresh=0.005,
        detections_per_img=100,
        _skip_resize=True,
    )
    x, y = (t.as_subclass(Tensor) for t in learn.dls.valid.one_batch())
    targets = [{"boxes": to_pixels(t[t[:, 4] >= 0, :4], 32, 32), "labels": t[t[:, 4] >= 0, 4].long()} for t in y]
    (pred,) = learn.model(x)
    own = learn.heads.boxes.loss_func.parts(pred, y)
    found = theirs.train()(list(x), targets)
    assert own["classification"] > 0 and own["bbox_regression"] > 0
    assert own.keys() == found.keys() and all(torch.equal(own[k], found[k]) for k in own)
    for rows, one in zip(learn.heads.boxes.activation(pred), theirs.eval()(list(x))):
        n = len(one["labels"])
        assert torch.equal(rows[:n, 5], one["scores"]) and torch.equal(rows[:n, 4].long(), one["labels"]) and n
        assert torch.allclose(to_pixels(rows[:n, :4], 32, 32), one["boxes"], rtol=0, atol=1e-5)


def test_a_few_epochs_find_the_digits(tmp_path, quiet):
    pytest.importorskip("pycocotools")
    dls = digits_dls(("boxes",), bs=8, path=tmp_path / "s", n=60, size=32, digits_per_scene=(1, 2))
    head = DetectionHead(kind="fcos", channels=64, tap=(4, 8), extra_levels=0, metrics=[MeanAP(0.5)])
    learn = quiet(multihead_learner(dls, "test_resnet", heads={"boxes": head}, pretrained=False))
    learn.fit_one_cycle(8, 5e-3)
    assert learn.validate(ds_idx=0)[1] > 0.3


def test_get_preds_is_batch_by_batch_and_in_the_datasets_order(make):
    learn = make(detections_per_img=3)
    whole = learn.get_preds(ds_idx=0)
    dl = learn.dls.train.new(shuffle=False, drop_last=False)
    learn.model.eval()
    with torch.no_grad():
        batches = [(learn.model(b[0].as_subclass(Tensor)), b[-1]) for b in dl]
    answers = torch.cat([learn.heads.boxes.activation(out[learn.heads.names.index("boxes")]) for out, _ in batches])
    assert torch.allclose(whole[0].boxes, answers, atol=1e-5)
    counts = torch.cat([(t.as_subclass(Tensor)[..., 4] >= 0).sum(1) for _, t in batches])
    assert torch.equal((whole[1].boxes[..., 4] >= 0).sum(1), counts) and counts.min() < counts.max()


def test_what_is_held_of_a_batch_are_boxes(make):
    learn = make(detections_per_img=3)
    raw = learn.model.eval()(learn.dls.valid.one_batch()[0])[learn.heads.names.index("boxes")]
    head = learn.heads.boxes
    assert head.answer(raw).shape == (4, 3, 6) and head.answer(raw) is head.answer(raw)
    assert raw[0].numel() > 100 * head.answer(raw)[0].numel()


def test_no_item_no_boxes(make):
    learn = make()
    preds, targs, decoded = learn.get_preds(dl=learn.test_dl([]), with_decoded=True)
    assert preds.boxes.shape == (0, 10, 6) and targs is None and decoded.boxes.shape == (0, 10, 6)


def test_pictures_show_boxes_and_their_labels(make):
    learn = make(score_thresh=0.0, decode_score=0.0, detections_per_img=2)
    fig = learn.show_batch(max_n=2)
    texts = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert len([p for ax in fig.axes for p in ax.patches]) >= 2 and any(t in "0123456789" for t in texts)
    fig = learn.show_results(max_n=2, shuffle=False)
    colors = {p.get_edgecolor() for ax in fig.axes for p in ax.patches}
    assert len(colors) == 2  # what is true, what is predicted
    plt.close("all")


def test_top_losses_are_those_of_the_boxes(make):
    learn = make()
    found = HeadsInterpretation.from_learner(learn)
    losses, places = found.top_losses(3, head="boxes")
    each = learn.get_preds(with_loss=True)[-1].boxes
    assert torch.allclose(losses, each.topk(3)[0].as_subclass(TensorBase), rtol=1e-4) and len(places) == 3
    found.plot_top_losses(2, head="boxes")


def test_missing_boxes_train_nothing(make):
    learn = make(missing=0.6)
    learn.fit(1)
    batch = learn.dls.train.one_batch()
    pred = learn.model(batch[0])[learn.heads.names.index("boxes")]
    nothing = torch.full_like(batch[-1].as_subclass(Tensor), torch.nan)
    loss = learn.heads.boxes.train_loss(pred, nothing)
    assert loss == 0 and loss.requires_grad


def test_metrics_see_detections(make):
    pytest.importorskip("pycocotools")
    learn = make(metrics=None)
    assert [m.name for m in learn.metrics[:2]] == ["boxes_map", "boxes_map50"]
    learn.validate()
    assert all(0 <= m.value <= 1 for m in learn.metrics[:2])


def test_averages_and_blends_are_refused(make):
    learn = make()
    with pytest.raises(HeadsError, match="boxes"):
        learn.tta()


def test_an_exported_learner_predicts_the_same(make, tmp_path):
    learn = make(score_thresh=0.0, decode_score=0.0)
    item = learn.dls.valid_ds.items.iloc[0]
    before = learn.predict(item)[2].boxes
    learn.export("boxes.pkl")
    assert torch.allclose(load_learner(tmp_path / "boxes.pkl").predict(item)[2].boxes, before, atol=1e-6)


def test_bfloat16_gives_losses_in_float32(make):
    learn = make().to_bf16()
    learn.fit(1)
    assert learn.head_losses[0].dtype == torch.float32 and torch.isfinite(learn.head_losses[0])


@pytest.fixture
def empty_scenes(scenes, make):
    "A function: rows whose boxes are taken away → `DataLoaders` of boxes alone, read from a column with a blank."
    make()  # writes the scenes
    table = pd.read_csv(scenes / "labels.csv").rename(columns={"boxes": "the boxes"})

    def load(rows):
        changed = table.copy()
        changed.loc[rows, ["the boxes", "labels"]] = "[]"
        block = DataBlock(
            (ImageBlock, lambda: DetectionBlock(range(10))),
            getters=[ColReader("image", pref=scenes), BoxesReader("the boxes", "labels")],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
        )
        return block.dataloaders(changed, bs=4, num_workers=0, shuffle=False)

    return load


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("rows", [slice(0, 7), slice(None)], ids=["a batch and a part", "all"])
def test_images_without_any_object_train(empty_scenes, quiet, kind, rows):
    head = DetectionHead(kind=kind, channels=64, tap=(4, 8), extra_levels=0)
    with pytest.warns(HeadsWarning, match="'the boxes' is named 'the_boxes'"):
        learn = quiet(multihead_learner(empty_scenes(rows), "test_resnet", {"the_boxes": head}, pretrained=False))
    learn.fit(1)
    row = dict(zip(learn.recorder.metric_names, learn.rows[0], strict=True))
    assert isfinite(row["train_loss"]) and isfinite(row["valid_loss"])
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    if rows == slice(None) and has_torchmetrics():
        assert row["the_boxes_map"] is None
    learn.show_batch(max_n=2)
    learn.show_results(max_n=2)
    assert learn.predict(learn.dls.valid_ds.items.iloc[0])[0].the_boxes.shape[1] == 4


def test_a_vit_has_boxes_on_a_pyramid_that_is_made(make, quiet, scenes):
    dls = digits_dls(("boxes",), bs=4, path=scenes, n=N, size=32, digits_per_scene=(1, 5))
    fields = {"channels": 64, "extra_levels": 1, "metrics": []}
    learn = multihead_learner(
        dls, "test_vit", {"boxes": DetectionHead(**fields)}, pretrained=False, body_kwargs={"img_size": 32}
    )
    assert learn.model[1].reads["boxes"] == ("stride_8", "stride_16", "stride_32", "input")
    quiet(learn).fit(1)
    assert isfinite(learn.rows[0][1])
