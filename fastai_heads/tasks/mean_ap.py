"""Mean average precision of detections, by torchmetrics."""

from importlib.util import find_spec
from numbers import Real
from typing import Any

import torch
from fastai.learner import Learner, Metric
from torch import Tensor

from fastai_heads.errors import HeadsError

__all__ = ["MeanAP", "has_torchmetrics"]

_BACKENDS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster_coco_eval"}  # package → torchmetrics' name


def has_torchmetrics() -> bool:
    "Tell whether torchmetrics is installed, with one of the packages that it counts with."
    return find_spec("torchmetrics") is not None and _backend() is not None


def _backend() -> str | None:
    return next((name for package, name in _BACKENDS.items() if find_spec(package) is not None), None)


class MeanAP(Metric):
    """Mean average precision. `MeanAP()` is COCO's, over IoU 0.5 to 0.95; `MeanAP(0.5)` is at one IoU. It needs the
    extra `detection`. It sees detections (B, D, 6) and targets (B, N, 5). In an image without boxes every detection is
    wrong."""

    higher_is_better = True

    def __init__(
        self,
        iou: float | None = None,  # a box is found if it overlaps at least so much; None: mean over 0.5, 0.55 … 0.95
    ):
        if not has_torchmetrics():
            raise HeadsError(
                "`MeanAP` needs torchmetrics with pycocotools, which are not installed: "
                "`pip install 'fastai_heads[detection]'`."
            )
        if iou is not None and (not isinstance(iou, Real) or isinstance(iou, bool) or not 0 <= iou <= 1):
            raise HeadsError(f"`iou` of MeanAP is a number from 0 to 1, or None, found {iou!r}.")
        self.iou = iou
        self.reset()

    @property
    def name(self) -> str:
        "The column of the table: `map`, or `map50` for one threshold of 0.5."
        return "map" if self.iou is None else f"map{round(100 * self.iou)}"

    def reset(self) -> None:
        from torchmetrics.detection import MeanAveragePrecision  # an extra

        at = None if self.iou is None else [self.iou]
        self.average = MeanAveragePrecision(iou_thresholds=at, backend=_backend())
        self.average.warn_on_many_detections = False
        self.total = 0

    def accumulate(self, learn: Learner) -> None:
        "Count a batch of detections."
        preds = [_as_dict(rows) for rows in _plain(learn.pred)]
        self.average.update(preds, [_as_dict(rows) for rows in _plain(learn.y)])
        self.total += len(preds)

    @property
    def value(self) -> float | None:
        found = float(self.average.compute()["map"]) if self.total else -1.0
        return found if found >= 0 else None  # torchmetrics says -1 where no image has a box


def _plain(rows: Tensor) -> Tensor:
    return rows.detach().as_subclass(Tensor).float().cpu()


def _as_dict(rows: Tensor) -> dict[str, Any]:
    "Turn one image's boxes into torchmetrics' form. Overlaps are the same in any unit."
    rows = rows[rows[:, 4] >= 0]
    found: dict[str, Tensor] = {"boxes": rows[:, :4], "labels": rows[:, 4].to(torch.int64)}
    return found | ({"scores": rows[:, 5]} if rows.shape[1] > 5 else {})
