"""Boxes with labels, any number per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastai_heads.data.detection_block import NO_BOX, same_count
from fastai_heads.tasks.detection_loss import DetectionLoss
from fastai_heads.tasks.mean_ap import MeanAP, has_torchmetrics
from fastai_heads.tasks.task import Task

__all__ = ["DetectionTask"]


@dataclass(eq=False)
class DetectionTask(Task):
    """Boxes with labels: x1, y1, x2, y2 from −1 to 1 and a class, targets (B, N, 5), detections (B, D, 6) with a score.
    Predictions are what `detection_loss.pack` makes of torchvision's outputs."""

    kind: str = "retinanet"  # or 'fcos'
    anchor_scale: float = 4.0  # as for `detection_loss.anchor_generator`
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # as for `detection_loss.anchor_generator`
    score_thresh: float | None = None  # least score of a detection; None: torchvision's
    nms_thresh: float | None = None  # IoU from which on boxes of one class are one; None: torchvision's
    detections_per_img: int = 100  # at most
    topk_candidates: int = 1000  # at most, of each level, before suppression
    decode_score: float = 0.5  # least score of a box that is decoded

    blends: ClassVar[bool] = False
    moves_with_image: ClassVar[bool] = True
    by_batch: ClassVar[bool] = True

    align = staticmethod(same_count)

    def default_loss(self) -> DetectionLoss:
        options = {"score_thresh": self.score_thresh, "nms_thresh": self.nms_thresh}
        options = {name: value for name, value in options.items() if value is not None}
        return DetectionLoss(
            self.kind,
            self.n_out,
            self.anchor_scale,
            self.aspect_ratios,
            detections_per_img=self.detections_per_img,
            topk_candidates=self.topk_candidates,
            **options,
        )

    def default_metrics(self) -> Sequence[Callable]:
        "Return mAP@[.5:.95] and mAP@.5; none where torchmetrics, an extra, is not installed."
        return (MeanAP(), MeanAP(0.5)) if has_torchmetrics() else ()

    def item_loss(self, pred: Tensor, targ: Tensor) -> Tensor:
        """Return each image's loss as if it stood alone. RetinaNet's mean over them is the loss of the batch; FCOS
        divides by the boxes' cells in the whole batch, so that no value per image has that mean."""
        return torch.stack([self.loss_func(p[None], t[None]) for p, t in zip(pred, targ)])

    def activation(self, pred: Tensor) -> Tensor:
        return self.loss_func.detect(pred)

    def decode(self, pred: Tensor) -> Tensor:
        "Return the detections of at least `decode_score`."
        plain = pred.as_subclass(Tensor)
        blank = plain.new_zeros(6)
        blank[4] = NO_BOX
        return torch.where((plain[..., 5] >= self.decode_score)[..., None], plain, blank)

    def empty(self) -> Tensor:
        return torch.empty(0, self.detections_per_img, 6)
