"""The heads: how each kind is built, and from what."""

from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.custom import CustomHead
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import HeadSpec, TapShape

__all__ = [
    "BoxHead",
    "ClassificationHead",
    "CustomHead",
    "DetectionHead",
    "HeadSpec",
    "MultiLabelHead",
    "PointHead",
    "RegressionHead",
    "SegmentationHead",
    "TapShape",
]
