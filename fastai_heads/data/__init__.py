"""What the heads learn from: target blocks, what the targets of a `DataLoaders` are, and scenes of real digits."""

from fastai_heads.data.bbox_blocks import pad_boxes
from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection import DetectionBlock, LabeledBoxes
from fastai_heads.data.digits import digit_scenes, digits_dls
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.targets import Target, dls_targets

__all__ = [
    "BoxBlock",
    "BoxesReader",
    "DetectionBlock",
    "LabeledBoxes",
    "NumbersReader",
    "PartialBlock",
    "Target",
    "digit_scenes",
    "digits_dls",
    "dls_targets",
    "pad_boxes",
]
