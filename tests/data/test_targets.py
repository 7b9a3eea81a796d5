"""What the targets of a `DataLoaders` are: kind, name, vocabulary, labels."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter, Pipeline, RegexLabeller, parent_label
from fastai.torch_core import TensorImage
from fastai.vision.core import PILImage, PILMask
from fastai.vision.data import BBoxBlock, BBoxLblBlock, ImageBlock, ImageDataLoaders, MaskBlock, PointBlock

from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.targets import Target, dls_targets, target_labels
from fastai_heads.errors import HeadsError, HeadsWarning

ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two folders of images, cats and dogs, and a mask."
    path = tmp_path_factory.mktemp("targets")
    for breed in ("cat", "dog"):
        (path / breed).mkdir()
        for i in range(3):
            PILImage.create(np.full((32, 32, 3), 20 * i, dtype=np.uint8)).save(path / breed / f"{breed}_{i}.png")
    PILMask.create(np.ones((32, 32), dtype=np.uint8)).save(path / "mask.png")
    return path


@pytest.fixture
def table(folder):
    files = sorted(str(f.relative_to(folder)) for f in folder.glob("*/*.png"))
    return pd.DataFrame(
        {
            "image": files,
            "breed": [f.split("/")[0] for f in files],
            "tags": ["big old", "big", "", "wet", "big", "old"],
            "age": [3.0, 4.5, 1.0, 2.0, 7.5, 6.0],
            "height": [30.0, 40, 20, 25, 60, 50],
            "nose": ["3 4"] * ROWS,
            "box": ["1 2 20 30"] * ROWS,
            "mask": ["mask.png"] * ROWS,
            "eye colour": list("bgbgbb"),
            "count": list("112233"),
            "big": [1, 1, 0, 0, 1, 0],
            "old": [1, 0, 0, 0, 0, 1],
        }
    )


@pytest.fixture
def load(folder, table):
    "A function: (blocks, readers) of the targets → the `DataLoaders`."

    def make(blocks, readers, rows=None, **kwargs):
        getters = [ColReader("image", pref=folder), *readers]
        block = DataBlock([ImageBlock, *blocks], getters=getters, splitter=IndexSplitter([5]), **{"n_inp": 1} | kwargs)
        return block.dataloaders(table if rows is None else rows, bs=2, num_workers=0)

    return make


STOCK = {
    "category": (CategoryBlock, ColReader("breed"), Target("breed", 0, "category", 2, ("cat", "dog"))),
    "multilabel": (
        MultiCategoryBlock,
        ColReader("tags", label_delim=" "),
        Target("tags", 0, "multilabel", 3, ("big", "old", "wet")),
    ),
    "encoded": (
        lambda: MultiCategoryBlock(encoded=True, vocab=["big", "old"]),
        ColReader(["big", "old"]),
        Target("multilabel", 0, "multilabel", 2, ("big", "old")),
    ),
    "regression": (RegressionBlock, ColReader("age"), Target("age", 0, "regression", 1)),
    "two numbers": (RegressionBlock, ColReader(["age", "height"]), Target("regression", 0, "regression", 2)),
    "point": (PointBlock, NumbersReader("nose"), Target("nose", 0, "point", 2)),
    "box": (BoxBlock, ColReader("box"), Target("box", 0, "box", 4)),
    "mask": (lambda: MaskBlock(["paper", "ink"]), "mask", Target("mask", 0, "mask", 2, ("paper", "ink"))),
    "mask without codes": (MaskBlock, "mask", Target("mask", 0, "mask")),
}


def reader_of(reader, folder):
    return ColReader("mask", pref=folder) if reader == "mask" else reader


@pytest.mark.parametrize("name", STOCK)
def test_every_stock_block(load, folder, name):
    block, reader, wanted = STOCK[name]
    assert dls_targets(load([block], [reader_of(reader, folder)])) == (wanted,)


@pytest.mark.parametrize("name", [n for n in STOCK if n != "encoded"])
def test_the_same_block_with_missing_labels(load, folder, table, name):
    block, reader, wanted = STOCK[name]
    reader = reader_of(reader, folder)
    rows = table.astype(object)
    rows.loc[[0, 3], list(reader.cols)] = None
    found = dls_targets(load([PartialBlock(block)], [reader], rows))
    vocab = ("big",) if name == "multilabel" else wanted.vocab  # none of the others that are trained on is old or wet
    n_out = 1 if name == "multilabel" else wanted.n_out
    assert found == (Target(wanted.name, 0, wanted.kind, n_out, vocab, partial=True),)


def test_several_targets_in_the_order_of_the_blocks(load):
    dls = load([RegressionBlock, CategoryBlock, BoxBlock], [ColReader("age"), ColReader("breed"), ColReader("box")])
    assert [(t.name, t.index, t.kind) for t in dls_targets(dls)] == [
        ("age", 0, "regression"),
        ("breed", 1, "category"),
        ("box", 2, "box"),
    ]


def test_boxes_with_labels(load):
    dls = load(
        [BBoxBlock, BBoxLblBlock],
        [lambda row: [[1.0, 2.0, 20.0, 30.0]], lambda row: [row["breed"]]],
    )
    boxes, labels = dls_targets(dls)
    assert (boxes.kind, boxes.n_out) == ("boxes", None)
    assert (labels.kind, labels.vocab) == ("box_labels", ("#na#", "cat", "dog"))


def test_points_of_several(load, table):
    rows = table.assign(nose=["1 2 3 4"] * ROWS)
    assert dls_targets(load([PointBlock], [NumbersReader("nose")], rows)) == (Target("nose", 0, "point", 4),)


def test_a_block_of_ones_own_is_unknown(load):
    dls = load([TransformBlock(type_tfms=lambda o: torch.tensor([o, o]))], [ColReader("age")])
    assert dls_targets(dls) == (Target("age", 0, "unknown"),)


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        (ColReader(1), "breed"),
        (ColReader(["breed"]), "breed"),
        (ColReader("breed", suff="!"), "breed"),
        (lambda row: row["breed"], "category"),
        (Pipeline([ColReader("image"), RegexLabeller(r"/(\w+)_")]), "image"),
        (Pipeline([lambda row: row["image"], RegexLabeller(r"/(\w+)_")]), "category"),
    ],
    ids=["by place", "in a list", "with a suffix", "function", "pipeline", "pipeline of functions"],
)
def test_the_name_comes_from_the_getters_column_else_from_the_kind(load, reader, name):
    assert [t.name for t in dls_targets(load([CategoryBlock], [reader]))] == [name]


@pytest.mark.parametrize(("column", "name"), [("eye colour", "eye_colour"), ("count", "count_")])
def test_a_column_that_is_no_name_is_changed_and_reported(load, column, name):
    dls = load([CategoryBlock], [ColReader(column)])
    with pytest.warns(HeadsWarning, match=rf"column '{column}' is named '{name}'") as seen:
        (target,) = dls_targets(dls)
    assert target.name == name and len(seen) == 1


def test_a_column_of_a_table_without_a_header(folder, table):
    block = DataBlock(
        [ImageBlock, CategoryBlock], getters=[ColReader(0, pref=folder), ColReader(1)], splitter=IndexSplitter([5])
    )
    dls = block.dataloaders(table.set_axis(range(table.shape[1]), axis=1), bs=2, num_workers=0)
    with pytest.warns(HeadsWarning, match="named '_1'"):
        assert [t.name for t in dls_targets(dls)] == ["_1"]


def test_targets_of_the_same_column_or_kind_get_numbers(load):
    dls = load(
        [CategoryBlock, CategoryBlock, CategoryBlock, CategoryBlock],
        [ColReader("breed"), ColReader("breed"), lambda row: row["breed"], lambda row: row["breed"]],
    )
    with pytest.warns(HeadsWarning, match="'breed_2'"):
        assert [t.name for t in dls_targets(dls)] == ["breed", "breed_2", "category", "category_2"]


def loaders_of(folder, table):
    "fastai's factories, and what the target of each is called."
    kwargs = {"bs": 2, "num_workers": 0, "valid_pct": 0.5}
    files = [folder / f for f in table["image"]]
    table.to_csv(folder / "labels.csv", index=False)
    return {
        "from_df": (ImageDataLoaders.from_df(table, folder, **kwargs), "breed"),
        "from_df by name": (ImageDataLoaders.from_df(table, folder, label_col="breed", **kwargs), "breed"),
        "from_csv": (ImageDataLoaders.from_csv(folder, label_col="breed", delimiter=",", **kwargs), "breed"),
        "from_folder": (ImageDataLoaders.from_folder(folder, **kwargs), "category"),
        "from_name_func": (ImageDataLoaders.from_name_func(folder, files, lambda n: n[:3], **kwargs), "category"),
        "from_path_func": (ImageDataLoaders.from_path_func(folder, files, parent_label, **kwargs), "category"),
        "from_name_re": (ImageDataLoaders.from_name_re(folder, files, r"(\w+)_", **kwargs), "category"),
        "from_lists": (ImageDataLoaders.from_lists(folder, files, list(table["breed"]), **kwargs), "category"),
    }


def test_the_factories_of_image_data_loaders(folder, table):
    (folder / "mask.png").rename(folder / "mask.bin")  # from_folder takes every image there is
    try:
        for how, (dls, name) in loaders_of(folder, table).items():
            assert dls_targets(dls) == (Target(name, 0, "category", 2, ("cat", "dog")),), how
            assert sorted(target_labels(dls, 0).unique().tolist()) == [0, 1], how
    finally:
        (folder / "mask.bin").rename(folder / "mask.png")


def test_from_df_with_several_columns(folder, table):
    kwargs = {"bs": 2, "num_workers": 0, "valid_pct": 0.2, "seed": 1}
    tags = ImageDataLoaders.from_df(table, folder, label_col="tags", label_delim=" ", **kwargs)
    assert [(t.name, t.kind) for t in dls_targets(tags)] == [("tags", "multilabel")]
    numbers = ImageDataLoaders.from_df(
        table, folder, label_col=["age", "height"], y_block=RegressionBlock(n_out=2), **kwargs
    )
    assert dls_targets(numbers) == (Target("regression", 0, "regression", 2),)


def test_getters_without_n_inp_are_refused_with_the_fix(load):
    dls = load([CategoryBlock, RegressionBlock], [ColReader("breed"), ColReader("age")], n_inp=None)
    with pytest.raises(HeadsError, match=r"takes 2 of its 3 blocks as inputs.*block 1 \(category\).*Pass `n_inp=1`"):
        dls_targets(dls)


def test_two_images_are_no_swallowed_target(folder, table):
    image = ColReader("image", pref=folder)
    block = DataBlock(
        [ImageBlock, ImageBlock, CategoryBlock],
        getters=[image, image, ColReader("breed")],
        n_inp=2,
        splitter=IndexSplitter([5]),
    )
    assert [t.name for t in dls_targets(block.dataloaders(table, bs=2, num_workers=0))] == ["breed"]


def test_data_without_a_target_is_refused(folder, table):
    block = DataBlock([ImageBlock], get_x=ColReader("image", pref=folder), splitter=IndexSplitter([5]), n_inp=1)
    with pytest.raises(HeadsError, match=r"`dls` has no target: 1 block\(s\), 1 of them input.*Add a target block"):
        dls_targets(block.dataloaders(table, bs=2, num_workers=0))


def test_data_that_cannot_be_told_is_refused():
    pairs = [(torch.zeros(3, 8, 8), torch.tensor(0))] * 4
    dls = DataLoaders.from_dsets(pairs, pairs, bs=2, num_workers=0)
    with pytest.raises(HeadsError, match=r"`dls` holds fastai `Datasets`.*found a training set of type list"):
        dls_targets(dls)
    with pytest.raises(HeadsError, match="found a training set of type"):
        dls_targets(object())


def test_labels_are_the_training_sets_encoded_and_open_no_image(load, table, monkeypatch):
    dls = load(
        [CategoryBlock, MultiCategoryBlock, RegressionBlock, RegressionBlock, BoxBlock],
        [
            ColReader("breed"),
            ColReader("tags", label_delim=" "),
            ColReader("age"),
            ColReader(["age", "height"]),
            ColReader("box"),
        ],
    )
    monkeypatch.setattr(PILImage, "create", None)
    rows = table.iloc[:5]
    found = [target_labels(dls, i) for i in range(5)]
    assert found[0].tolist() == [0, 0, 0, 1, 1]
    assert found[1].tolist() == [[float(t in tags.split()) for t in ("big", "old", "wet")] for tags in rows["tags"]]
    assert found[2].tolist() == rows["age"].tolist()
    assert found[3].tolist() == rows[["age", "height"]].to_numpy().tolist()
    assert found[4].shape == (5, 1, 4) and not isinstance(found[0], TensorImage)


def test_missing_labels_are_left_out(load, table):
    rows = table.astype(object)
    rows.loc[[0, 3], "breed"] = None
    rows.loc[[1], "age"] = None
    dls = load(
        [PartialBlock(CategoryBlock), PartialBlock(RegressionBlock)], [ColReader("breed"), ColReader("age")], rows
    )
    assert target_labels(dls, 0).tolist() == [0, 0, 1]
    assert target_labels(dls, 1).tolist() == [3.0, 1.0, 2.0, 7.5]


def test_no_warning_where_nothing_was_changed(load):
    dls = load([CategoryBlock], [ColReader("breed")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dls_targets(dls)[0].name == "breed"
