"""torchvision's detections of a whole batch at once, of fixed shapes, so that a graph can hold them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from fastai_heads.data.detection_block import NO_BOX
from fastai_heads.tasks.detection import DetectionTask
from fastai_heads.tasks.detection_loss import _unpack

__all__ = ["FixedDetections", "nms_translation"]


class FixedDetections(nn.Module):
    "What `DetectionLoss.detect` gives, for images of one size, without a loop over them."

    anchors: Tensor

    def __init__(
        self,
        task: DetectionTask,  # of the head
        pred: Tensor,  # (B, …) of the head, for images of the size that it is made for
    ):
        super().__init__()
        loss = task.loss_func
        self.kind, self.net, self.n_best = loss.kind, loss.net, loss.net.detections_per_img
        _, levels, self.size = _unpack(loss.kind, pred)
        anchors, self.counts = loss._anchors(pred, levels, self.size)
        self.first = 1 + len(levels)
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(
        self,
        pred: Tensor,  # (B, 1 + levels + A, C) from `pack`
    ) -> Tensor:  # (B, detections_per_img, 6) x1, y1, x2, y2 from −1 to 1, class (−1: none), score; the best first
        n_classes = pred.shape[2] - (4 if self.kind == "retinanet" else 5)
        parts, start = [], 0
        for count in self.counts:
            rows = slice(self.first + start, self.first + start + count)
            parts.append(self._best(pred[:, rows], self.anchors[start : start + count], n_classes))
            start += count
        boxes, scores, labels = (torch.cat(part, 1) for part in zip(*parts))
        height, width = self.size
        apart = boxes + labels[..., None].to(boxes.dtype) * (max(height, width) + 1)
        scores = torch.where(scores > self.net.score_thresh, scores, torch.zeros_like(scores))
        kept = _kept_op()(apart, scores, float(self.net.nms_thresh))
        scores = scores * kept.to(scores.dtype)
        n = min(self.n_best, scores.shape[1])
        best, at = scores.topk(n, dim=1)
        found = boxes.gather(1, at[..., None].expand(-1, -1, 4)) * 2 / boxes.new_tensor([width, height] * 2) - 1
        there = (best > 0)[..., None]
        rows = torch.cat([found, labels.gather(1, at)[..., None].to(found.dtype), best[..., None]], 2)
        blank = rows.new_tensor([0.0, 0.0, 0.0, 0.0, NO_BOX, 0.0])
        rows = torch.where(there, rows, blank)
        more = blank.expand(pred.shape[0], self.n_best - n, 6)
        return torch.cat([rows, more], 1)

    def _best(self, pred: Tensor, anchors: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        "Take the best candidates of one level: boxes in pixels, scores, labels."
        scores = pred[..., :n_classes].sigmoid()
        if self.kind == "fcos":
            scores = (scores * pred[..., n_classes + 4 :].sigmoid()).sqrt()
        n = min(self.net.topk_candidates, scores.shape[1] * n_classes)
        scores, at = scores.flatten(1).topk(n, dim=1)
        place, labels = at // n_classes, at % n_classes
        codes = pred[..., n_classes : n_classes + 4].gather(1, place[..., None].expand(-1, -1, 4)).reshape(-1, 4)
        own = anchors[place.reshape(-1)]
        decode = self.net.box_coder.decode_single if self.kind == "retinanet" else self.net.box_coder.decode
        height, width = self.size
        boxes = decode(codes, own).view(-1, n, 4)
        most = boxes.new_tensor([width, height, width, height])
        return torch.minimum(boxes.clamp(min=0), most), scores, labels


def _kept_op() -> Callable[[Tensor, Tensor, float], Tensor]:
    "Give the operation that suppresses boxes of a batch; it is made when it is first needed."
    if not hasattr(torch.ops.fastai_heads, "kept"):
        op = torch.library.custom_op("fastai_heads::kept", _kept, mutates_args=())
        op.register_fake(lambda boxes, scores, threshold: torch.empty_like(scores, dtype=torch.bool))
    return torch.ops.fastai_heads.kept


def _kept(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    "Tell which boxes (B, K, 4) with a score above 0 are not suppressed by a better one."
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for row, box, score in zip(kept, boxes, scores):
        there = (score > 0).nonzero()[:, 0]
        row[there[nms(box[there], score[there], threshold)]] = True
    return kept


def nms_translation() -> dict[Callable, Callable]:
    "Say how the operation is written in ONNX: its own suppression, then a place for every box that is left."
    from onnxscript import opset20 as op

    def kept(boxes, scores, threshold: float):
        one = op.Constant(value_ints=[1])
        chosen = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, one),
            op.Gather(op.Shape(scores), one),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )
        at = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        blank = op.ConstantOfShape(op.Shape(scores))
        ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(chosen), op.Constant(value_ints=[0]), one))
        return op.Greater(op.ScatterND(blank, at, ones), op.Constant(value_float=0.0))

    return {_kept_op_default(): kept}


def _kept_op_default() -> Callable:
    return _kept_op().default
