"""Boxes outside their images are found before training."""

import numpy as np
import pandas as pd
import pytest
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter, IndexSplitter
from fastai.vision.data import ImageBlock
from PIL import Image

from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.partial import PartialBlock
from fastai_heads.errors import HeadsError
from fastai_heads.learner import multihead_learner


@pytest.fixture
def make(tmp_path):
    "A function: the last box of four → `DataLoaders` over pictures 64 wide and 32 high, the last of which validates."
    for i in range(4):
        Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")

    def load(last, block=lambda: DetectionBlock(["cat"])):
        boxes = ["[[4, 8, 20, 24]]"] * 3 + [last]
        table = pd.DataFrame({"image": [f"{i}.png" for i in range(4)], "boxes": boxes, "labels": '["cat"]'})
        data = DataBlock(
            (ImageBlock, block),
            getters=[ColReader("image", pref=tmp_path), BoxesReader("boxes", "labels")],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
        )
        return data.dataloaders(table.assign(is_valid=[False] * 3 + [True]), bs=3, num_workers=0)

    return load


def test_a_box_outside_its_image_is_refused_when_the_learner_is_made(make):
    said = r"row 3 \(3.png\) of the validation set: box \[30.0, 10.0, 90.0, 30.0\] lies outside .* 64×32"
    with pytest.raises(HeadsError, match=said):
        multihead_learner(make("[[30, 10, 90, 30]]"), "test_resnet", pretrained=False)


def test_boxes_that_lie_within_pass(make):
    inspect_data(make("[[0, 0, 64, 32]]"))
    inspect_data(make("[[-0.4, 0, 64.4, 32]]"))  # rounded in an annotation
    inspect_data(make(None, lambda: PartialBlock(DetectionBlock(["cat"]))))


def test_images_that_are_no_files_are_looked_at_when_they_are_read():
    block = DataBlock(
        (ImageBlock, lambda: DetectionBlock(["a"]), CategoryBlock),
        getters=[lambda i: np.zeros((8, 8, 3), np.uint8), lambda i: ([[0, 0, 9 * i, 4]], ["a"]), lambda i: "b"],
        n_inp=1,
        splitter=IndexSplitter([1]),
    )
    dls = block.dataloaders([1, 2, 1, 1], bs=1, num_workers=0)
    inspect_data(dls)
    with pytest.raises(HeadsError, match=r"item 0 of the validation set: box .* lies outside its image of 8×8"):
        dls.valid.one_batch()
