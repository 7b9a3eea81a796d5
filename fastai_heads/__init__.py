"""One pretrained body, many heads, one fastai `Learner`: `from fastai_heads import *` after `fastai.vision.all`."""

from fastai_heads.archs import cut_points, list_archs, register_arch
from fastai_heads.bodies import On, TabularBody, TextBody, cut_body
from fastai_heads.compare import compare_to_single
from fastai_heads.data import (
    BoxBlock,
    BoxesReader,
    DetectionBlock,
    NumbersReader,
    PartialBlock,
    TabularBlock,
    TabularTargets,
    TokenizerBlock,
    digit_scenes,
    digits_dls,
    pad_boxes,
)
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    CustomHead,
    DetectionHead,
    HeadSpec,
    MultiLabelHead,
    PointHead,
    RegressionHead,
    SegmentationHead,
    TapShape,
)
from fastai_heads.learner import MultiHeadLearner, multihead_learner, probe_taps
from fastai_heads.probe import TapReport
from fastai_heads.tasks import MeanAP, Task
from fastai_heads.training import Balance, ConflictRecorder, Disjoint, HeadsMonitor, LossWeightScheduler, Strategy
from fastai_heads.trunks import Trunk
from fastai_heads.view import HeadsInterpretation, show_targets

__version__ = "0.1.0"

__all__ = [
    "Balance",
    "BoxBlock",
    "BoxHead",
    "BoxesReader",
    "ClassificationHead",
    "ConflictRecorder",
    "CustomHead",
    "DetectionBlock",
    "DetectionHead",
    "Disjoint",
    "HeadSpec",
    "HeadTuple",
    "HeadsError",
    "HeadsInterpretation",
    "HeadsMonitor",
    "HeadsWarning",
    "LossWeightScheduler",
    "MeanAP",
    "MultiHeadLearner",
    "MultiLabelHead",
    "NumbersReader",
    "On",
    "PartialBlock",
    "PointHead",
    "RegressionHead",
    "SegmentationHead",
    "Strategy",
    "TabularBlock",
    "TabularBody",
    "TabularTargets",
    "TapReport",
    "TapShape",
    "Task",
    "TextBody",
    "TokenizerBlock",
    "Trunk",
    "compare_to_single",
    "cut_body",
    "cut_points",
    "digit_scenes",
    "digits_dls",
    "list_archs",
    "multihead_learner",
    "pad_boxes",
    "probe_taps",
    "register_arch",
    "show_targets",
]
