"""What the heads learn from: target blocks, what the targets of a `DataLoaders` are, and scenes of real digits."""

from fastai_heads.data.bbox_blocks import pad_boxes
from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.captions import captioned_scenes
from fastai_heads.data.detection_block import DetectionBlock, LabeledBoxes
from fastai_heads.data.digits import digit_scenes, digits_dls
from fastai_heads.data.inputs import Input, dls_inputs
from fastai_heads.data.loader import InputsDL
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.tabular import TabularTargets
from fastai_heads.data.targets import Target, dls_targets
from fastai_heads.data.texts import TokenizerBlock

__all__ = [
    "BoxBlock",
    "BoxesReader",
    "DetectionBlock",
    "Input",
    "InputsDL",
    "LabeledBoxes",
    "NumbersReader",
    "PartialBlock",
    "TabularBlock",
    "TabularTargets",
    "Target",
    "TokenizerBlock",
    "captioned_scenes",
    "digit_scenes",
    "digits_dls",
    "dls_inputs",
    "dls_targets",
    "pad_boxes",
]
