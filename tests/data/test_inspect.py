"""Bad data is refused before training, by target, row, file and what to do: a table of blocks, faults and splits."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import ColReader, ColSplitter, IntToFloatTensor
from fastai.vision.augment import Resize
from fastai.vision.data import BBoxBlock, BBoxLblBlock, ImageBlock, ImageDataLoaders, MaskBlock, PointBlock
from PIL import Image

from fastai_heads.data import files
from fastai_heads.data.bbox_blocks import pad_boxes
from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock
from fastai_heads.data.digits import digits_dls
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.plain import Stated
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
    palette = Image.fromarray(half).convert("P")
    palette.putpalette([0, 0, 0, 200, 40, 40])
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
    assert data.dls is dls and [i.name for i in data.inputs] == ["image"] and [t.name for t in data.targets] == ["y"]
    assert data.sample.inputs()[0].shape == (1, 3, HEIGHT, WIDTH) and len(data.sample.batch()[1]) == 1


# masks


def masks(folder, mask, block=lambda: MaskBlock(CODES), getter=None, **kwargs):
    df = table("mask").assign(y=mask)
    return loaders(folder, df, block, getter, **kwargs)


def test_255_for_1_is_refused_with_both_readings(folder):
    with pytest.raises(HeadsError, match=r"row 0 .*the masks hold 0, 255 and no pixel of code 1 \('ink'\)") as refused:
        inspect_data(masks(folder, "white.png"))
    refused.match(r"`IntToFloatTensor\(div_mask=255\)` in `batch_tfms`")
    refused.match(r"If 255 is void, say so: `PartialBlock\(MaskBlock\(codes=\['paper', 'ink'\]\)\)`")


def test_every_way_out_of_255_passes(folder):
    inspect_data(masks(folder, "white.png", batch_tfms=[IntToFloatTensor(div_mask=255)]))
    inspect_data(masks(folder, "white.png", lambda: PartialBlock(MaskBlock(CODES))))
    of_white = lambda row: (np.array(Image.open(folder / row["y"])) > 0).astype(np.uint8)  # noqa: E731
    data = inspect_data(masks(folder, "white.png", getter=of_white))
    assert data.sample.batch(1)[1][0].unique().tolist() == [0, 1]
    some = ["good.png"] + ["white.png"] * 7  # void in most, foreground in one
    inspect_data(masks(folder, some))


@pytest.mark.parametrize("file", ["colour.png", "palette.png", "bit.png"])
def test_the_getter_that_a_refusal_names_gives_the_codes(folder, file):
    def codes(row):
        found = np.array(Image.open(folder / row["y"]))
        return found[..., 0] if found.ndim > 2 else found.astype(np.uint8)

    assert inspect_data(masks(folder, file, getter=codes)).sample.batch(1)[1][0].unique().tolist() == [0, 1]


def test_colours_that_a_getter_opens_are_refused(folder):
    with pytest.raises(HeadsError, match=r"row 0 .*mask of its getter is a picture of 3 channels"):
        inspect_data(masks(folder, "colour.png", getter=lambda row: np.array(Image.open(folder / row["y"]))))


def test_a_palette_of_the_codes_own_greys_passes(folder, tmp_path):
    with Image.open(folder / "good.png") as mask:
        mask.convert("P").save(tmp_path / "grey.png")
    inspect_data(masks(folder, str(tmp_path / "grey.png"), getter=ColReader("y")))


def test_a_mask_of_another_size_passes_where_a_transform_makes_it_fit(folder):
    inspect_data(masks(folder, ["good.png"] * 7 + ["small.png"], item_tfms=Resize(32)))


def test_codes_that_a_head_calls_void_pass(folder):
    inspect_data(masks(folder, ["good.png"] * 7 + ["seven.png"]), {"y": Stated("mask", void=7)})


# images


@pytest.mark.parametrize(("row", "split"), [(5, "training"), (7, "validation")])
def test_a_missing_image_is_refused(folder, row, split):
    df = table("number")
    df.loc[row, "image"] = "gone.png"
    dls = loaders(folder, df, RegressionBlock, ColReader("y"))
    said = rf"image 'image', row {row} \(gone.png\) of the {split} set: there is no file .*gone.png"
    with pytest.raises(HeadsError, match=said):
        inspect_data(dls)


def test_a_missing_image_in_a_large_folder_is_found_in_its_list(folder, monkeypatch):
    monkeypatch.setattr(files, "_FEW", 2)
    df = table("number")
    inspect_data(loaders(folder, df, RegressionBlock, ColReader("y")))
    df.loc[5, "image"] = "gone.png"
    with pytest.raises(HeadsError, match=r"row 5 .*there is no file"):
        inspect_data(loaders(folder, df, RegressionBlock, ColReader("y")))


def test_images_of_two_sizes_name_resize_and_two_files(folder):
    df = table("number")
    df.loc[5, "image"] = "large.png"
    with pytest.raises(HeadsError, match=r"two sizes, 64×32 and 48×48 pixels .*0\.png.*large\.png") as refused:
        inspect_data(loaders(folder, df, RegressionBlock, ColReader("y")))
    refused.match(r"`item_tfms=Resize\(32\)`")
    inspect_data(loaders(folder, df, RegressionBlock, ColReader("y"), item_tfms=Resize(32)))


def test_what_no_look_sees_is_raised_when_it_is_reached(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("fastai_heads.data.inspect._SAMPLE", 1)
    df = table("number")
    df.loc[6, "image"] = "large.png"
    dls = loaders(folder, df, RegressionBlock, ColReader("y"), bs=6)
    inspect_data(dls)
    with pytest.raises(HeadsError, match=r"two sizes, .*large\.png.*Resize"):
        dls.train.one_batch()
    (tmp_path / "broken.png").write_text("no picture")
    df["image"] = str(folder / "1.png")
    df.loc[6, "image"] = str(tmp_path / "broken.png")
    dls = loaders("", df, RegressionBlock, ColReader("y"), bs=2)
    inspect_data(dls)
    with pytest.raises(HeadsError, match=r"row 6 \(.*broken\.png\) of the training set: it cannot be read"):
        list(dls.train)


def test_places_beyond_the_headers_that_are_read_are_raised_when_they_are_reached(folder, monkeypatch):
    monkeypatch.setattr(files.Headers, "of", lambda self, file: None)
    for kind, bad in (("point", [400.0, 10.0]), ("box", "10 10 500 20"), ("boxes", "[[10, 10, 500, 20]]")):
        block, getter, _ = BLOCKS[kind]
        dls = loaders(folder, table(kind, bad, 7), block, getter)
        inspect_data(dls)
        with pytest.raises(HeadsError, match=r"row 7 \(7\.png\) of the validation set: .* lies outside"):
            list(dls.valid)


def test_no_more_than_a_few_images_are_opened(folder, monkeypatch):
    opened = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args: opened.append(str(file)) or read(file, *args))
    dls = loaders(folder, table("number", rows=4000), RegressionBlock, ColReader("y"))
    del opened[:]
    inspect_data(dls)
    assert len(opened) <= 20, "eight files, and one item"


# other ways in


def test_the_pair_of_fastais_blocks_is_refused_alike(folder):
    boxes = [[[1.0, 2, 30, 20]]] * 7 + [[[10.0, 10, 500, 20]]]
    df = table("number").assign(boxes=boxes, labels=[["a"]] * ROWS)
    block = DataBlock(
        (ImageBlock, BBoxBlock, BBoxLblBlock),
        getters=[ColReader("image", pref=folder), ColReader("boxes"), ColReader("labels")],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    with pytest.raises(HeadsError, match=r"row 7 \(7\.png\) of the validation set: box .* lies outside its image"):
        inspect_data(block.dataloaders(df, bs=2, num_workers=0, before_batch=pad_boxes))


def test_a_class_of_the_validation_set_alone_in_a_factorys_data(folder):
    labels = ["c" if i == 7 else "ab"[i % 2] for i in range(ROWS)]
    df = pd.DataFrame(
        {"name": [f"{i}.png" for i in range(ROWS)], "label": labels, "is_valid": [False] * 6 + [True] * 2}
    )
    dls = ImageDataLoaders.from_df(df, path=folder, valid_col="is_valid", bs=2, num_workers=0)
    with pytest.raises(HeadsError, match=r"target 'label', row 7 .*'c' is not among the 2 classes"):
        inspect_data(dls)


def test_a_reversed_first_box_is_named_when_the_data_is_made(folder):
    with pytest.raises(HeadsError, match=r"row 0 \(0\.png\): .*x1 < x2"):
        loaders(folder, table("box", "30 2 1 20", 0), BoxBlock, ColReader("y"))


@pytest.mark.parametrize("columns", [["y"], ["y", "w"]], ids=["one", "two"])
def test_numbers_that_are_text_are_taken_where_some_may_be_missing(folder, columns):
    df = table("number").assign(y="12.5", w="3")
    df.loc[3, columns] = None
    data = inspect_data(loaders(folder, df, PartialBlock(RegressionBlock), ColReader(columns)))
    assert data.targets[0].n_out == len(columns)
    assert data.sample.batch(1)[1][0].reshape(-1).tolist() == [12.5, 3.0][: len(columns)]
    df.loc[5, "y"] = "twelve"
    with pytest.raises(HeadsError, match=r"row 5 .*'twelve'"):
        inspect_data(loaders(folder, df, PartialBlock(RegressionBlock), ColReader(columns)))


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_digits_pass(tmp_path, missing):
    names = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")
    dls = digits_dls(names, n=20, size=32, bs=4, path=tmp_path / "scenes", missing=missing)
    assert tuple(t.name for t in inspect_data(dls).targets) == names
