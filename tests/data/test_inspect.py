"""Bad data is refused before training, by target, row, file and what to do: a table of blocks, faults and splits."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock, MaskBlock, PointBlock
from PIL import Image

from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection import DetectionBlock
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.partial import PartialBlock
from fastai_heads.errors import HeadsError

WIDTH, HEIGHT, ROWS = 64, 32, 8
NAN, INF = float("nan"), float("inf")
CODES = ["paper", "ink"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Pictures 64 wide and 32 high, one that is larger, and masks of many sorts."
    path = tmp_path_factory.mktemp("inspect")
    for i in range(ROWS):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * i, dtype=np.uint8)).save(path / f"{i}.png")
    Image.fromarray(np.zeros((48, 48, 3), dtype=np.uint8)).save(path / "large.png")
    half = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    half[:, 32:] = 1
    Image.fromarray(half).save(path / "good.png")
    Image.fromarray(half * 255).save(path / "white.png")
    Image.fromarray(half * 7).save(path / "seven.png")
    Image.fromarray(half.astype(bool)).save(path / "bit.png")
    Image.fromarray(half[:16]).save(path / "small.png")
    Image.fromarray(np.stack([half] * 3, -1)).save(path / "colour.png")
    palette = Image.fromarray(half, mode="L").convert("P")
    palette.putpalette([0, 0, 0, 200, 40, 40])
    palette.putdata(half.reshape(-1).tolist())
    palette.save(path / "palette.png")
    return path


# block, getter, what every row holds
BLOCKS = {
    "category": (CategoryBlock, ColReader("y"), ["a", "b"] * 4),
    "tags": (MultiCategoryBlock, ColReader("y", label_delim=" "), ["a b", "b"] * 4),
    "encoded": (lambda: MultiCategoryBlock(encoded=True, vocab=["a", "b"]), ColReader("y"), [[0, 1], [1, 0]] * 4),
    "number": (RegressionBlock, ColReader("y"), [1.0, 2.0] * 4),
    "numbers": (RegressionBlock, ColReader("y"), [[1.0, 2.0], [3.0, 4.0]] * 4),
    "point": (PointBlock, ColReader("y"), [[1.0, 2.0], [60.0, 30.0]] * 4),
    "points": (PointBlock, NumbersReader("y"), ["1 2 3 4", "60 30 5 6"] * 4),
    "box": (BoxBlock, ColReader("y"), ["1 2 30 20", "0 0 64 32"] * 4),
    "boxes": (lambda: DetectionBlock(["a"]), BoxesReader("y", "z"), ["[[1, 2, 30, 20]]", "[]"] * 4),
    "mask": (lambda: MaskBlock(CODES), None, ["good.png"] * ROWS),
}

# kind, the bad label, words that the refusal holds
FAULTS = [
    ("category", "c", "'c' is not among the 2 classes", r"CategoryBlock\(vocab="),
    ("tags", "a c", "'c' is not among the 2 classes", r"MultiCategoryBlock\(vocab="),
    ("encoded", [1, NAN], "nan in", "PartialBlock"),
    ("encoded", [1, INF], "inf in", "from 0 to 1"),
    ("encoded", [1, 2], "2.0 in", "from 0 to 1"),
    ("number", INF, "inf", "not finite"),
    ("number", "12.5", "text '12.5'", r"pd.to_numeric"),
    ("numbers", [1.0, NAN], "nan in", "PartialBlock"),
    ("numbers", [1.0, -INF], "-inf in", "not finite"),
    ("numbers", [1.0], "1 number", "where the first row has 2"),
    ("numbers", ["1", "2"], "text '1'", "pd.to_numeric"),
    ("point", [NAN, 10.0], "nan in", "PartialBlock"),
    ("point", [INF, 10.0], "inf in", "not finite"),
    ("point", [400.0, 10.0], "point .400.0, 10.0. lies outside its image of 64×32", "PartialBlock"),
    ("points", "1 2", "2 number", "where the first row has 4"),
    ("points", "1 2 -20 4", "points .1.0, 2.0, -20.0, 4.0. lie outside its image of 64×32", "PartialBlock"),
    ("box", "30 2 1 20", "x1 < x2", "30 2 1 20"),
    ("box", "1 2 nan 20", "all finite", "PartialBlock"),
    ("box", "1 2 inf 20", "all finite", "inf"),
    ("box", "10 10 500 20", "box .10.0, 10.0, 500.0, 20.0. lies outside its image of 64×32", r"BoxBlock\(clip=True\)"),
    ("box", "-20 -20 10 10", "lies outside its image of 64×32", r"BoxBlock\(clip=True\)"),
    ("boxes", "[[10, 10, 500, 20]]", "lies outside its image of 64×32", r"DetectionBlock\(clip=True\)"),
    ("mask", "none.png", "there is no file .*none.png", "drop the row"),
    ("mask", "small.png", "has 64×16 pixels, and its image .*64×32", "one size"),
    ("mask", "seven.png", "its mask holds 7", r"MaskBlock\(codes="),
    ("mask", "colour.png", "3 channels .mode RGB.", "np.array"),
    ("mask", "palette.png", "a palette image", "np.array"),
    ("mask", "bit.png", "one bit .mode 1.: it holds 0, 1, and fastai reads 0, 255", "np.array"),
]


def table(kind, bad=None, row=None, rows=ROWS):
    labels = list(BLOCKS[kind][2]) * (rows // ROWS)
    if row is not None:
        labels[row] = bad
    columns = {
        "image": [f"{i % ROWS}.png" for i in range(rows)],
        "y": pd.Series(labels, dtype=object),
        "z": ["[]" if y == "[]" else '["a"]' for y in labels],
        "is_valid": [i % 4 == 3 for i in range(rows)],
    }
    return pd.DataFrame(columns)


def loaders(folder, df, block, getter=None, bs=2, **kwargs):
    getter = ColReader("y", pref=folder) if getter is None else getter
    data = DataBlock(
        (ImageBlock, block),
        getters=[ColReader("image", pref=folder), getter],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
        **kwargs,
    )
    return data.dataloaders(df, bs=bs, num_workers=0)


@pytest.mark.parametrize(("row", "split"), [(5, "training"), (7, "validation")], ids=["train", "valid"])
@pytest.mark.parametrize(("kind", "bad", "found", "fix"), FAULTS, ids=lambda v: str(v)[:20])
def test_a_bad_label_is_refused_by_its_row(folder, kind, bad, found, fix, row, split):
    if split == "training" and kind in ("category", "tags"):
        pytest.skip("the vocabulary is that of the training set")
    block, getter, _ = BLOCKS[kind]
    dls = loaders(folder, table(kind, bad, row), block, getter)
    with pytest.raises(HeadsError, match=found) as refused:
        inspect_data(dls)
    said = str(refused.value)
    name = "mask" if kind == "mask" and "no file" in said else "target"
    assert f"{name} 'y', row {row} ({row}.png" in said.replace(f"{folder}/", "") and f"of the {split} set" in said
    refused.match(fix)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "partial"])
def test_good_data_passes_and_is_told(folder, kind, wrap):
    block, getter, _ = BLOCKS[kind]
    df = table(kind)
    if wrap:
        df.loc[[1, 3], "y"] = None
        getter = ColReader("y", pref=folder) if getter is None else getter
    dls = loaders(folder, df, PartialBlock(block) if wrap else block, getter)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    data = inspect_data(dls)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert state[2] == np.random.get_state()[1].tolist()
    assert data.dls is dls and data.inputs == ("image",) and [t.name for t in data.targets] == ["y"]
    assert data.sample_inputs[0].shape == (1, 3, HEIGHT, WIDTH) and len(data.sample) == 2
