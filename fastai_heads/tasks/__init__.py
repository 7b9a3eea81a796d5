"""The tasks: what each kind of target is trained by, and how it is decoded, measured and shown."""

from fastai_heads.tasks.box import BoxTask
from fastai_heads.tasks.classification import ClassificationTask
from fastai_heads.tasks.detection import DetectionTask
from fastai_heads.tasks.mask import MaskTask
from fastai_heads.tasks.mean_ap import MeanAP
from fastai_heads.tasks.multilabel import MultiLabelTask
from fastai_heads.tasks.numbers import NumbersTask
from fastai_heads.tasks.point import PointTask
from fastai_heads.tasks.regression import RegressionTask
from fastai_heads.tasks.task import Task

__all__ = [
    "BoxTask",
    "ClassificationTask",
    "DetectionTask",
    "MaskTask",
    "MeanAP",
    "MultiLabelTask",
    "NumbersTask",
    "PointTask",
    "RegressionTask",
    "Task",
]
