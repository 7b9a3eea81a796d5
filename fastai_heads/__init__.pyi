"""The public names, for who checks types; `__init__.py` imports each when it is first asked for."""

from fastai_heads.archs import list_archs as list_archs
from fastai_heads.archs import register_arch as register_arch
from fastai_heads.bodies import On as On
from fastai_heads.bodies import TabularBody as TabularBody
from fastai_heads.bodies import TextBody as TextBody
from fastai_heads.bodies import cut_body as cut_body
from fastai_heads.bodies import cut_points as cut_points
from fastai_heads.compare import (
    compare_to_single as compare_to_single,
)
from fastai_heads.compare import (
    tune_weights as tune_weights,
)
from fastai_heads.data import (
    BoxBlock as BoxBlock,
)
from fastai_heads.data import (
    BoxesReader as BoxesReader,
)
from fastai_heads.data import (
    DetectionBlock as DetectionBlock,
)
from fastai_heads.data import (
    NumbersReader as NumbersReader,
)
from fastai_heads.data import (
    PartialBlock as PartialBlock,
)
from fastai_heads.data import (
    TabularBlock as TabularBlock,
)
from fastai_heads.data import (
    TabularTargets as TabularTargets,
)
from fastai_heads.data import (
    TokenizerBlock as TokenizerBlock,
)
from fastai_heads.data import (
    digit_scenes as digit_scenes,
)
from fastai_heads.data import (
    digits_dls as digits_dls,
)
from fastai_heads.data import (
    pad_boxes as pad_boxes,
)
from fastai_heads.data.tap_cache import TapCache as TapCache
from fastai_heads.errors import HeadsError as HeadsError
from fastai_heads.errors import HeadsWarning as HeadsWarning
from fastai_heads.export.bundle import load_bundle as load_bundle
from fastai_heads.export.hub import from_hub as from_hub
from fastai_heads.export.hub import push_to_hub as push_to_hub
from fastai_heads.export.onnx import export_onnx as export_onnx
from fastai_heads.export.predictor import Predictor as Predictor
from fastai_heads.export.triton import export_triton as export_triton
from fastai_heads.head_tuple import HeadTuple as HeadTuple
from fastai_heads.heads import (
    BoxHead as BoxHead,
)
from fastai_heads.heads import (
    ClassificationHead as ClassificationHead,
)
from fastai_heads.heads import (
    CustomHead as CustomHead,
)
from fastai_heads.heads import (
    DetectionHead as DetectionHead,
)
from fastai_heads.heads import (
    HeadSpec as HeadSpec,
)
from fastai_heads.heads import (
    MultiLabelHead as MultiLabelHead,
)
from fastai_heads.heads import (
    PointHead as PointHead,
)
from fastai_heads.heads import (
    RegressionHead as RegressionHead,
)
from fastai_heads.heads import (
    SegmentationHead as SegmentationHead,
)
from fastai_heads.heads import (
    TapShape as TapShape,
)
from fastai_heads.heads.said import register_module as register_module
from fastai_heads.learner import MultiHeadLearner as MultiHeadLearner
from fastai_heads.learner import multihead_learner as multihead_learner
from fastai_heads.learner import probe_taps as probe_taps
from fastai_heads.probe import TapReport as TapReport
from fastai_heads.tasks import MeanAP as MeanAP
from fastai_heads.tasks import Task as Task
from fastai_heads.training import (
    Balance as Balance,
)
from fastai_heads.training import (
    ConflictRecorder as ConflictRecorder,
)
from fastai_heads.training import (
    Disjoint as Disjoint,
)
from fastai_heads.training import (
    EMACallback as EMACallback,
)
from fastai_heads.training import (
    HeadsMonitor as HeadsMonitor,
)
from fastai_heads.training import (
    LossWeightScheduler as LossWeightScheduler,
)
from fastai_heads.training import (
    Strategy as Strategy,
)
from fastai_heads.trunks import Trunk as Trunk
from fastai_heads.view import HeadsInterpretation as HeadsInterpretation
from fastai_heads.view import show_targets as show_targets

__version__: str
