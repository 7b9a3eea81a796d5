"""Which head a target gets when the user names none."""

from collections.abc import Mapping
from typing import Any

from fastai_heads.data.bbox_blocks import HALF_PAIRS
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.tasks.task import Task

__all__ = ["default_head", "has_default", "task_type"]

_HEADS: dict[str, type[HeadSpec]] = {
    "category": ClassificationHead,
    "multilabel": MultiLabelHead,
    "regression": RegressionHead,
    "point": PointHead,
    "box": BoxHead,
    "mask": SegmentationHead,
    "detection": DetectionHead,
}


def has_default(
    target: Target,  # what is to be predicted
) -> bool:
    "Tell whether there is a default head for its kind."
    return target.kind in _HEADS


def default_head(
    target: Target,  # what is to be predicted
    fields: Mapping[str, Any] | None = None,  # that the body wants of a pooled head; None: the kind's defaults
) -> HeadSpec:  # the spec of its kind
    "Return the head for a target. Raises `HeadsError` for a kind that has no default."
    if not has_default(target):
        raise HeadsError(
            f"target {target.name!r} is of kind {target.kind}, which has no default head: pass "
            f"`heads={{{target.name!r}: CustomHead(module, loss=…)}}`, or `{target.name!r}: None` to leave it out. "
            f"Kinds with a default: {', '.join(_HEADS)}.{HALF_PAIRS.get(target.kind, '')}"
        )
    kind = _HEADS[target.kind]
    return kind(**(fields or {} if issubclass(kind, PooledSpec) else {}))


def task_type(
    target: Target,  # what is to be predicted
) -> type[Task]:
    "Return the class of the tasks of a target's kind; a plain `Task` for a kind that has no default head."
    return _HEADS[target.kind].predicts if has_default(target) else Task
