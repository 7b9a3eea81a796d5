"""Losses and detections against torchvision's own networks; the spec; the metric against torchmetrics."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from fastai_heads.data.detection_block import to_pixels
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.tasks import mean_ap
from fastai_heads.tasks.detection_loss import anchor_generator
from fastai_heads.tasks.mean_ap import MeanAP

TARGET = Target("boxes", 0, "detection", 4, ("a", "b", "c", "d"))
TAPS = (TapShape("p3", 8, 8), TapShape("p4", 12, 16), TapShape("p5", 16, 32), TapShape("input", 3, 1))
SIDE = 64
KINDS = ("retinanet", "fcos")


class Maps(nn.Module):
    "The body and the pyramid, as torchvision takes them."

    out_channels = 64

    def __init__(self, maps, pyramid):
        super().__init__()
        self.maps, self.pyramid = maps, pyramid

    def forward(self, x):
        return self.pyramid({str(i): m for i, m in enumerate(self.maps)})


def made(kind: str, **fields) -> DetectionHead:
    "A spec that finds something with weights drawn at random."
    fields = {"kind": kind, "channels": 64, "score_thresh": 0.005, **fields}
    return DetectionHead(**fields).fit(TARGET, lambda: None)


@pytest.fixture
def batch():
    "Maps, images and targets: two boxes, none, one."
    maps = [torch.randn(3, t.channels, SIDE // t.stride, SIDE // t.stride) for t in TAPS[:3]]
    targ = torch.zeros(3, 2, 5)
    targ[..., 4] = -1
    targ[0, 0] = torch.tensor([-0.8, -0.7, 0.1, 0.2, 1])
    targ[0, 1] = torch.tensor([0.0, 0.1, 0.9, 0.8, 3])
    targ[2, 1] = torch.tensor([-0.33, -0.41, 0.77, 0.13, 0])
    return maps, torch.rand(3, 3, SIDE, SIDE), targ


def theirs(kind: str, module: nn.Module, maps, spec: DetectionHead) -> nn.Module:
    "torchvision's network over the same maps with the same weights."
    options = {"score_thresh": spec.score_thresh, "detections_per_img": 100, "_skip_resize": True}
    net, anchors = (RetinaNet if kind == "retinanet" else FCOS), anchor_generator(kind, module.strides)
    return net(
        Maps(maps, module.pyramid),
        4,
        anchor_generator=anchors,
        head=module.head,
        min_size=SIDE,
        max_size=SIDE,
        **options,
    )


def as_theirs(targ):
    rows = [t[t[:, 4] >= 0] for t in targ]
    return [{"boxes": to_pixels(r[:, :4], SIDE, SIDE), "labels": r[:, 4].long()} for r in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_torchvisions_to_the_bit(kind, batch):
    maps, images, targ = batch
    spec = made(kind)
    task = spec.task(TARGET)
    module = spec.build(TAPS)
    loss = task.loss_func
    own = loss.parts(module(*maps, images), targ)
    found = theirs(kind, module, maps, spec)(list(images), as_theirs(targ))
    assert own.keys() == found.keys() and all(torch.equal(own[k], found[k]) for k in own)
    assert torch.equal(task.train_loss(module(*maps, images), targ), sum(found.values()))
    sum(found.values()).backward()
    grads = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    task.train_loss(module(*maps, images), targ).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), grads))


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_torchvisions(kind, batch):
    maps, images, _ = batch
    spec = made(kind)
    task = spec.task(TARGET)
    module = spec.build(TAPS)
    own = task.activation(module(*maps, images))
    found = theirs(kind, module, maps, spec).eval()(list(images))
    assert own.shape == (3, 100, 6) and sum(len(f["labels"]) for f in found) > 10
    for rows, one in zip(own, found):
        n = len(one["labels"])
        assert torch.equal(rows[:n, 4].long(), one["labels"]) and torch.equal(rows[:n, 5], one["scores"])
        # a side of 64 px is a power of two: scaling to −1 … 1 and back is exact but for the last bit of the sum
        assert torch.allclose(to_pixels(rows[:n, :4], SIDE, SIDE), one["boxes"], rtol=0, atol=1e-5)
        assert (rows[n:, 4] == -1).all() and not rows[n:, 5].any()


def test_anchors_are_torchvisions_own_at_its_strides():
    from torchvision.models.detection.retinanet import _default_anchorgen

    own, found = anchor_generator("retinanet", (8, 16, 32, 64, 128)), _default_anchorgen()
    assert own.sizes == found.sizes and own.aspect_ratios == found.aspect_ratios


def test_retinanets_mean_over_images_is_its_loss_and_fcos_s_is_not(batch):
    maps, images, targ = batch
    for kind, same in (("retinanet", True), ("fcos", False)):
        spec = made(kind)
        task = spec.task(TARGET)
        pred = spec.build(TAPS)(*maps, images)
        items = task.item_loss(pred, targ)
        assert items.shape == (3,)
        assert torch.isclose(items.mean(), task.train_loss(pred, targ), rtol=1e-5).item() is same


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_joined_by_what_their_losses_are_means_of(kind, batch):
    maps, images, targ = batch
    spec = made(kind)
    task = spec.task(TARGET)
    loss, pred = task.loss_func, spec.build(TAPS)(*maps, images)
    targ[1, :, 4] = -1  # an image without boxes: torchvision divides by one cell at least
    parts = [(loss(p, t), loss.loss_count(p, t)) for p, t in zip(pred.split(1), targ.split(1))]
    assert (0 in [count for _, count in parts]) is (kind == "fcos")
    total = sum(value * count if count else value for value, count in parts)
    torch.testing.assert_close(total / sum(count for _, count in parts), loss(pred, targ))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_trains(kind, batch):
    maps, images, targ = batch
    spec = made(kind)
    task = spec.task(TARGET)
    loss, pred = task.loss_func, spec.build(TAPS)(*maps, images)
    more = torch.nn.functional.pad(targ, (0, 0, 0, 3))
    more[:, 2:] = torch.tensor([0.3, 0.3, 0.6, 0.6, -1])
    assert torch.equal(loss(pred, more), loss(pred, targ))


def test_one_level_and_no_more(batch):
    maps, images, targ = batch
    spec = made("retinanet", tap=16, extra_levels=0)
    task = spec.task(TARGET)
    pred = spec.build((TAPS[1], TAPS[3]))(maps[1], images)
    assert pred.shape == (3, 2 + 9 * 16, 8) and task.loss_func(pred, targ).isfinite()


def test_decoding_keeps_what_is_sure():
    spec = made("retinanet", decode_score=0.5)
    task = spec.task(TARGET)
    pred = torch.tensor([[[0, 0, 1, 1, 2, 0.9], [0, 0, 1, 1, 1, 0.4]]])
    decoded = task.decode(pred)
    assert decoded[0, 0].tolist() == pred[0, 0].tolist() and decoded[0, 1].tolist() == [0, 0, 0, 0, -1, 0]


def test_it_is_the_default_of_its_kind():
    assert isinstance(default_head(TARGET), DetectionHead) and made("fcos").n_out == 4
    assert DetectionHead().taps == (8, 16, 32, "input")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "retina"}, "did you mean 'retinanet'"),
        ({"loss": nn.MSELoss()}, "`loss`"),
        ({"extra_levels": 3}, "0, 1 or 2"),
        ({"pyramid": False, "channels": 64}, "`pyramid`.*of its own pyramid"),
        ({"pyramid": 1}, "`pyramid`"),
        ({"kind": "fcos", "channels": 48}, "multiple of 64"),
        ({"channels": 48}, "multiple of 64"),
        ({"kind": "fcos", "norm_layer": nn.BatchNorm2d}, "`norm_layer`"),
        ({"norm_layer": 3}, "`norm_layer`"),
        ({"score_thresh": 1.5}, "`score_thresh`"),
        ({"detections_per_img": 0}, "`detections_per_img`"),
        ({"aspect_ratios": ()}, "`aspect_ratios`"),
        ({"anchor_scale": 0}, "`anchor_scale`"),
    ],
)
def test_bad_fields_are_refused(fields, said):
    with pytest.raises(HeadsError, match=f"(?i){said}"):
        DetectionHead(**fields)


def test_taps_are_maps_from_fine_to_coarse():
    with pytest.raises(HeadsError, match="fine to coarse"):
        made("retinanet").build((TAPS[1], TAPS[0], TAPS[3]))
    with pytest.raises(HeadsError, match="is a vector"):
        made("retinanet").build((TapShape("pre_logits", 8, None), TAPS[3]))


def test_a_shared_pyramid_has_one_width():
    shared = DetectionHead(pyramid=False, kind="fcos").fit(TARGET, lambda: None)
    with pytest.raises(HeadsError, match=r"one width, a multiple of 64; found 'p3' at 8.*\[8, 12, 16\] channels"):
        shared.build(TAPS)
    levels = [TapShape(f"neck.{s}", 64, s) for s in (8, 16)]
    assert shared.build((*levels, TAPS[3])).strides == (8, 16)


def accumulated(metric: MeanAP, pred, targ):
    metric.reset()
    metric.accumulate(SimpleNamespace(pred=pred, y=targ))
    return metric.value


def test_mean_ap_is_torchmetrics_on_pixels(batch):
    detection = pytest.importorskip("torchmetrics.detection")
    pytest.importorskip("pycocotools")
    maps, images, targ = batch
    spec = made("retinanet")
    task = spec.task(TARGET)
    pred = task.activation(spec.build(TAPS)(*maps, images))
    pred[0, 0] = torch.tensor([-0.78, -0.7, 0.15, 0.2, 1, 0.95])
    preds = [{**d, "scores": rows[rows[:, 4] >= 0, 5]} for d, rows in zip(as_theirs(pred), pred)]
    for metric, at in ((MeanAP(), None), (MeanAP(0.5), [0.5])):
        theirs = detection.MeanAveragePrecision(iou_thresholds=at)
        theirs.update(preds, as_theirs(targ))
        assert accumulated(metric, pred, targ) == pytest.approx(float(theirs.compute()["map"])) != 0
    assert (MeanAP().name, MeanAP(0.5).name) == ("map", "map50")


def test_mean_ap_of_the_truth_is_one_and_of_no_boxes_none(batch):
    pytest.importorskip("pycocotools")
    targ = batch[2]
    score = (targ[..., 4:] >= 0).float()
    assert accumulated(MeanAP(), torch.cat([targ, score], 2), targ) == pytest.approx(1)
    none = targ[1:2]
    assert accumulated(MeanAP(), torch.cat([none, score[1:2]], 2), none) is None


def test_without_torchmetrics_the_rest_works(monkeypatch, batch):
    monkeypatch.setattr(mean_ap, "find_spec", lambda name: None)
    with pytest.raises(HeadsError, match=r"pip install 'fastai_heads\[detection\]'"):
        MeanAP()
    assert made("retinanet").task(TARGET).default_metrics() == ()
