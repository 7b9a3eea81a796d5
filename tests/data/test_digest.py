"""A digest is equal where items are, also in another process, and another one where anything of them differs."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import nn

from fastai_heads.data.digest import Digest
from fastai_heads.data.digits import digits_dls

SCALE = 2


def by_global(x):
    return x * SCALE


class Own:
    "An object of a user's class."

    def __init__(self, value):
        self.value = value


class Slots:
    "An object without a dictionary."

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def add(n, x):
    return n + x


def closed(n):
    return lambda x: x + n


VALUES = {
    "number": lambda v: v,
    "text": lambda v: str(v),
    "tensor": lambda v: torch.tensor([v]),
    "half": lambda v: torch.tensor([v], dtype=torch.float16),
    "shape": lambda v: np.zeros((v, 6 // v)),
    "objects": lambda v: np.array([v, "x"], dtype=object),
    "scalar": lambda v: np.int64(v),
    "picture": lambda v: Image.new("L", (2, 2), v),
    "table": lambda v: pd.DataFrame({"a": [v, None]}),
    "dict": lambda v: {"a": [v]},
    "set": lambda v: {v, "x"},
    "function": lambda v: closed(v),
    "default": lambda v: lambda x, n=v: x,
    "partial": lambda v: partial(add, v),
    "method": lambda v: Own(v).__init__,
    "object": lambda v: [Own(v)],
    "slots": lambda v: Slots(v),
    "pattern": lambda v: re.compile(str(v)),
    "network": lambda v: constant(v),
}


def constant(v):
    layer = nn.Linear(1, 1)
    for p in layer.parameters():
        nn.init.constant_(p, v)
    return layer


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_told_apart(kind):
    one, same, other = (str(Digest().add(VALUES[kind](v))) for v in (2, 2, 3))
    assert one == same != other


def test_types_are_told_apart():
    assert len({str(Digest().add(v)) for v in (1, 1.0, "1", True, None, b"1", [1], (1,))}) == 8


def test_a_function_counts_with_the_globals_that_it_names(monkeypatch):
    before = str(Digest().add(by_global))
    assert before == str(Digest().add(by_global))
    monkeypatch.setitem(globals(), "SCALE", 3)
    assert before != str(Digest().add(by_global))


class Scaled(nn.Module):
    "A network whose factor is no weight."

    def __init__(self, factor):
        super().__init__()
        self.factor = factor


def test_a_network_counts_with_its_attributes():
    assert str(Digest().add(Scaled(2))) == str(Digest().add(Scaled(2))) != str(Digest().add(Scaled(3)))


def test_circles_end():
    one, other = [1], [1]
    one.append(one)
    other.append(other)
    assert str(Digest().add(one)) == str(Digest().add(other)) != str(Digest().add([1, [1]]))


def test_what_cannot_be_told_apart_is_new_each_time():
    assert str(Digest().add(i for i in ())) != str(Digest().add(i for i in ()))


def test_a_file_counts_by_its_time_and_size(tmp_path):
    file = tmp_path / "a.txt"
    missing = str(Digest().add(file))
    file.write_text("one")
    one = str(Digest().add(file))
    os.utime(file, (1, 1))
    other = str(Digest().add(Path(file)))
    assert len({missing, one, other}) == 3


def photo_dls(folder, **kwargs):
    table = pd.DataFrame({"image": ["a.png", "b.png"] * 2, "y": [0, 1, 0, 1], "valid": [False, False, True, True]})
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_x=ColReader("image", pref=f"{folder}/"), get_y=ColReader("y"),
        splitter=ColSplitter("valid"), item_tfms=Resize(8, **kwargs),
    )  # fmt: skip
    return block.dataloaders(table, bs=2, num_workers=0)


def test_a_loader_counts_with_its_files_and_transforms(tmp_path):
    for name in "ab":
        Image.new("RGB", (9, 8)).save(tmp_path / f"{name}.png")
    dls = photo_dls(tmp_path)
    train, valid = (str(Digest().add_loader(dl)) for dl in dls.loaders)
    dls.train.one_batch()  # `Resize` draws a crop
    assert train == str(Digest().add_loader(dls.train)) == str(Digest().add_loader(photo_dls(tmp_path).train)) != valid
    assert train != str(Digest().add_loader(photo_dls(tmp_path, method="squish").train))
    assert train != str(Digest().add_loader(photo_dls(tmp_path, resamples=(0, 0)).train))
    os.utime(tmp_path / "a.png", (1, 1))
    assert train != str(Digest().add_loader(dls.train))


def test_no_image_is_opened(tmp_path, monkeypatch):
    for name in "ab":
        Image.new("RGB", (9, 8)).save(tmp_path / f"{name}.png")
    dls = photo_dls(tmp_path)
    dls.train.after_item.fs[0].data = dls  # a transform that knows its data
    monkeypatch.setattr(Image, "open", None)
    assert str(Digest().add_loader(dls.train)) == str(Digest().add_loader(dls.train))


@pytest.mark.parametrize("target", ["tags", "ink", "mask", "boxes", "centre"])
def test_every_kind_of_target_is_read_alike_twice(tmp_path, target):
    made = [digits_dls(target, path=tmp_path, n=12, size=32, bs=2) for _ in range(2)]
    assert len({str(Digest().add_loader(dls.train)) for dls in made}) == 1
