"""One pretrained body, many heads, one fastai `Learner`: `from fastai_heads import *` after `fastai.vision.all`.

A name is imported when it is first asked for: a bundle is served without a learner, an ONNX file without torch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The public names, by the module that has them. `__init__.pyi` says the same to who checks types.
_NAMES = {
    "fastai_heads.archs": "list_archs register_arch",
    "fastai_heads.bodies": "On TabularBody TextBody cut_body cut_points",
    "fastai_heads.compare": "compare_to_single tune_weights",
    "fastai_heads.data": (
        "BoxBlock BoxesReader DetectionBlock NumbersReader PartialBlock TabularBlock TabularTargets "
        "TokenizerBlock digit_scenes digits_dls pad_boxes"
    ),
    "fastai_heads.data.tap_cache": "TapCache",
    "fastai_heads.errors": "HeadsError HeadsWarning",
    "fastai_heads.export.bundle": "load_bundle",
    "fastai_heads.export.hub": "from_hub push_to_hub",
    "fastai_heads.export.onnx": "export_onnx",
    "fastai_heads.export.predictor": "Predictor",
    "fastai_heads.export.triton": "export_triton",
    "fastai_heads.head_tuple": "HeadTuple",
    "fastai_heads.heads": (
        "BoxHead ClassificationHead CustomHead DetectionHead HeadSpec MultiLabelHead PointHead "
        "RegressionHead SegmentationHead TapShape"
    ),
    "fastai_heads.heads.said": "register_module",
    "fastai_heads.learner": "MultiHeadLearner multihead_learner probe_taps",
    "fastai_heads.probe": "TapReport",
    "fastai_heads.tasks": "MeanAP Task",
    "fastai_heads.training": "Balance ConflictRecorder Disjoint EMACallback HeadsMonitor LossWeightScheduler Strategy",
    "fastai_heads.trunks": "Trunk",
    "fastai_heads.view": "HeadsInterpretation show_targets",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
