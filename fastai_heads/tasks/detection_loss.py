"""The outputs of a detector in one tensor, and torchvision's own code that makes losses and detections of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead

from fastai_heads.data.detection_block import NO_BOX, to_pixels

__all__ = ["DetectionLoss", "Grid", "anchor_generator", "pack"]

_PARTS = {"retinanet": ("cls_logits", "bbox_regression"), "fcos": ("cls_logits", "bbox_regression", "bbox_ctrness")}


@dataclass(frozen=True)
class Grid:
    "One map of the pyramid."

    height: int  # cells
    width: int  # cells
    stride: int  # pixels of the image per cell, as declared; the size of the anchors follows from it


def anchor_generator(
    kind: str,  # 'retinanet' or 'fcos'
    strides: Sequence[int],  # of the levels
    scale: float = 4.0,  # RetinaNet: the smallest anchor's side in strides
    ratios: Sequence[float] = (0.5, 1.0, 2.0),  # RetinaNet: heights over widths
) -> AnchorGenerator:
    """Make torchvision's anchor generator with sizes from the strides. With strides 8 to 128 and scale 4 it is
    RetinaNet's own: three sizes, a third of an octave apart. FCOS has one square per cell, as wide as the stride."""
    if kind == "fcos":
        return AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    firsts = [int(s * scale) for s in strides]
    sizes = tuple((x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in firsts)
    return AnchorGenerator(sizes, (tuple(ratios),) * len(sizes))


def pack(
    outputs: Mapping[str, Tensor],  # of torchvision's head, (B, A, …) each
    levels: Sequence[Grid],  # of the pyramid
    size: tuple[int, int],  # height and width of the images
) -> Tensor:  # (B, 1 + levels + A, C) float32
    """Pack all that a loss and detections need into one tensor, which fastai can detach, move and index. The first row
    holds the size of the images and the number of levels. Then comes a row per level with its cells and stride. Then
    comes a row per anchor with its outputs."""
    flat = torch.cat([o.float() for o in outputs.values()], 2)
    rows = [[*size, len(levels)], *([v.height, v.width, v.stride] for v in levels)]
    first = flat.new_tensor(rows)
    first = nn.functional.pad(first, (0, flat.shape[2] - first.shape[1]))
    return torch.cat([first.expand(len(flat), -1, -1), flat], 1)


def _unpack(kind: str, pred: Tensor) -> tuple[dict[str, Tensor], list[Grid], tuple[int, int]]:
    "Give back what `pack` was given: the outputs by name, the levels, the size of the images."
    height, width, n = map(int, pred[0, 0, :3].tolist())
    levels = [Grid(*map(int, row)) for row in pred[0, 1 : 1 + n, :3].tolist()]
    widths = [pred.shape[2] - 4, 4] if kind == "retinanet" else [pred.shape[2] - 5, 4, 1]
    # each gets memory of its own, as in torchvision: the last bit of a vectorised operation depends on that
    parts = (part.contiguous() for part in pred[:, 1 + n :].split(widths, 2))
    return dict(zip(_PARTS[kind], parts)), levels, (height, width)


class DetectionLoss:
    """torchvision's loss of a batch, and torchvision's detections. It calls the methods of `RetinaNet` or `FCOS`
    itself, on a network without weights, so that both results equal torchvision's to the bit."""

    def __init__(
        self,
        kind: str,  # 'retinanet' or 'fcos'
        n_classes: int,  # of the vocabulary
        scale: float = 4.0,  # as for `anchor_generator`
        ratios: Sequence[float] = (0.5, 1.0, 2.0),  # as for `anchor_generator`
        **options: Any,  # torchvision's: score_thresh, nms_thresh, detections_per_img, topk_candidates
    ):
        self.kind, self.scale, self.ratios = kind, scale, tuple(ratios)
        backbone, anchors = nn.Identity(), anchor_generator(kind, (8,), scale, ratios)
        backbone.out_channels = 32
        with torch.device("meta"):  # no memory, no random numbers
            n = anchors.num_anchors_per_location()[0]
            head = (RetinaNetHead if kind == "retinanet" else FCOSHead)(32, n, n_classes)
        net = RetinaNet if kind == "retinanet" else FCOS
        self.net = net(backbone, n_classes, anchor_generator=anchors, head=head, **options)

    def __call__(
        self,
        pred: Tensor,  # from `pack`
        targ: Tensor,  # (B, N, 5) boxes from −1 to 1 and classes
    ) -> Tensor:  # a scalar
        "Sum torchvision's losses."
        return sum(self.parts(pred, targ).values())

    def parts(
        self,
        pred: Tensor,  # from `pack`
        targ: Tensor,  # (B, N, 5) boxes from −1 to 1 and classes
    ) -> dict[str, Tensor]:
        "Compute torchvision's losses, by its own names."
        outputs, levels, size = _unpack(self.kind, pred)
        anchors, counts = self._anchors(pred, levels, size)
        more = [counts] if self.kind == "fcos" else []
        return self.net.compute_loss([_boxes(t, size) for t in targ], outputs, [anchors] * len(pred), *more)

    @torch.no_grad()
    def loss_count(
        self,
        pred: Tensor,  # from `pack`
        targ: Tensor,  # (B, N, 5) boxes from −1 to 1 and classes
    ) -> Tensor:  # a scalar
        "Return what the loss is a mean of: RetinaNet's of images, FCOS's of the cells that are inside a box."
        if self.kind == "retinanet":
            return torch.tensor(len(targ), device=targ.device)
        _, levels, size = _unpack(self.kind, pred)
        anchors, counts = self._anchors(pred, levels, size)
        matcher = SimpleNamespace(head=_Cells, center_sampling_radius=self.net.center_sampling_radius)
        return FCOS.compute_loss(matcher, [_boxes(t, size) for t in targ], {}, [anchors] * len(pred), counts)

    @torch.no_grad()
    def detect(
        self,
        pred: Tensor,  # from `pack`
    ) -> Tensor:  # (B, detections_per_img, 6) x1, y1, x2, y2 from −1 to 1, class (−1: none), score; the best first
        """Return the boxes that torchvision keeps: above the score threshold, the best per level, not suppressed in
        their class."""
        outputs, levels, size = _unpack(self.kind, pred)
        anchors, counts = self._anchors(pred, levels, size)
        by_level = {name: list(o.split(counts, 1)) for name, o in outputs.items()}
        found = self.net.postprocess_detections(by_level, [list(anchors.split(counts))] * len(pred), [size] * len(pred))
        answer = pred.new_zeros(len(pred), self.net.detections_per_img, 6)
        answer[..., 4] = NO_BOX
        scale = pred.new_tensor([size[1], size[0]] * 2)
        for rows, one in zip(answer, found):
            rows[: len(one["labels"]), :4] = one["boxes"] * 2 / scale - 1
            rows[: len(one["labels"]), 4] = one["labels"].to(rows.dtype)
            rows[: len(one["labels"]), 5] = one["scores"]
        return answer

    def _anchors(self, pred: Tensor, levels: Sequence[Grid], size: tuple[int, int]) -> tuple[Tensor, list[int]]:
        "Make the anchors of one image, and count how many each level has."
        make = anchor_generator(self.kind, [v.stride for v in levels], self.scale, self.ratios)
        nothing = pred.new_empty(1)
        images = ImageList(nothing.expand(1, 1, *size), [size])
        anchors = make(images, [nothing.expand(1, 1, v.height, v.width) for v in levels])[0]
        return anchors, [v.height * v.width * n for v, n in zip(levels, make.num_anchors_per_location())]


class _Cells:
    "In the place of torchvision's head where FCOS has matched cells with boxes: counts those that it has."

    @staticmethod
    def compute_loss(targets: list, outputs: dict, anchors: list, matched: list[Tensor]) -> Tensor:
        return torch.stack([(one >= 0).sum() for one in matched]).sum()


def _boxes(targ: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    "Turn one item's target into torchvision's form: boxes in pixels, without the padding."
    there = targ[targ[:, 4] >= 0]
    return {"boxes": to_pixels(there[:, :4], *size), "labels": there[:, 4].long()}
