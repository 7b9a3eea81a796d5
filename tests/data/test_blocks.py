"""One box as a target, and numbers in one cell."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.augment import Flip, Resize, aug_transforms
from fastai.vision.core import PILImage, TensorBBox, TensorImage, TensorPoint
from fastai.vision.data import ImageBlock, PointBlock

from fastai_heads.data.blocks import BoxBlock, MakeBox, NumbersReader
from fastai_heads.data.parse import parse_box, parse_numbers
from fastai_heads.errors import HeadsError

BOX = [4.0, 6.0, 20.0, 30.0]  # on pictures 40 wide and 32 high


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        PILImage.create(np.full((32, 40, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def table(**columns):
    return pd.DataFrame({"image": [f"{i}.png" for i in range(6)], "kind": list("ababab"), **columns})


def loaders(folder, df, blocks, readers, **kwargs):
    block = DataBlock(
        blocks=[ImageBlock, *blocks],
        getters=[ColReader("image", pref=folder), *readers],
        n_inp=1,
        splitter=IndexSplitter([4, 5]),
        **kwargs,
    )
    return block.dataloaders(df, bs=4, num_workers=0, shuffle=False, device=torch.device("cpu"))


def boxes_dls(folder, **kwargs):
    df = table(box=[" ".join(map(str, BOX))] * 6)
    blocks, readers = [BoxBlock, CategoryBlock, BoxBlock()], [ColReader("box"), ColReader("kind"), ColReader("box")]
    return loaders(folder, df, blocks, readers, **kwargs)


@pytest.mark.parametrize(
    "box", [BOX, tuple(BOX), np.array(BOX), torch.tensor(BOX), torch.tensor([BOX]), "4 6 20 30", "[4.0, 6, 20, 30]"]
)
def test_box_is_taken_as_list_tuple_array_or_string(box):
    made = MakeBox()(box)
    assert type(made) is TensorBBox and made.shape == (1, 4)
    assert made[0].tolist() == BOX


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ([1, 2, 3], "found 3 of them"),
        ("1 2 3 4 5", "found 5 of them"),
        ("1 2 x 4", "found '1 2 x 4'"),
        ([20, 2, 4, 30], "x1 < x2"),
        ([4, 6, 20, 6], "x, y, width, height"),
        ([4, 6, float("inf"), 8], "finite"),
        ([4, 6, float("nan"), 8], "PartialBlock"),
        (None, "found None"),
        (7.0, "found 7.0"),
        ([1, "a", 2, 3], "found"),
    ],
)
def test_a_bad_box_is_refused_by_its_value(box, found):
    with pytest.raises(HeadsError, match=found):
        parse_box(box)


def test_numbers_of_a_cell():
    assert parse_numbers(" 12.5,  30;-1e2") == [12.5, 30.0, -100.0]
    with pytest.raises(HeadsError, match="'12 abc'"):
        parse_numbers("12 abc")


def test_box_is_scaled_collated_beside_other_targets_and_decoded(folder):
    dls = boxes_dls(folder)
    x, box, kind, other = dls.one_batch()
    assert type(box) is TensorBBox and box.shape == (4, 1, 4) and kind.shape == (4,)
    want = torch.tensor(BOX) * 2 / torch.tensor([40, 32, 40, 32]) - 1
    assert torch.allclose(box.as_subclass(torch.Tensor), want.expand(4, 1, 4)) and torch.equal(box, other)
    decoded = dls.decode_batch((x, box, kind, other))[0]
    assert type(decoded[1]) is TensorBBox and decoded[2] == "a"
    assert torch.allclose(decoded[1].as_subclass(torch.Tensor), torch.tensor([BOX]))


def test_box_moves_with_the_picture(folder):
    flipped = boxes_dls(folder, batch_tfms=Flip(p=1.0)).decode_batch
    dls = boxes_dls(folder, batch_tfms=Flip(p=1.0))
    got = flipped(dls.one_batch())[0][1].as_subclass(torch.Tensor)
    assert torch.allclose(got, torch.tensor([[40 - 20.0, 6, 40 - 4.0, 30]]))
    squished = boxes_dls(folder, item_tfms=Resize((64, 80), method="squish"))
    got = squished.decode_batch(squished.one_batch())[0][1].as_subclass(torch.Tensor)
    assert torch.allclose(got, torch.tensor([[8.0, 12, 40, 60]]))


def test_every_item_keeps_its_box_also_out_of_the_picture(folder):
    dls = boxes_dls(
        folder, item_tfms=Resize((8, 8)), batch_tfms=aug_transforms(max_rotate=80, max_zoom=3.0, p_affine=1)
    )
    for _ in range(3):
        x, box, *_ = dls.one_batch()
        assert type(x) is TensorImage and box.shape == (4, 1, 4)
        assert torch.isfinite(box).all() and (box[..., 2:] > box[..., :2]).all()


def test_box_is_drawn(folder):
    from matplotlib import pyplot as plt

    dls = boxes_dls(folder)
    fig, ax = plt.subplots()
    dls.valid_ds.show(dls.valid_ds[0], ctx=ax)
    drawn = [(*p.get_xy(), p.get_width(), p.get_height()) for p in ax.patches]
    assert drawn == [(4, 6, 16, 24)] * 2
    plt.close(fig)


def test_points_from_one_cell(folder):
    df = table(centre=["10 16"] * 6)
    dls = loaders(folder, df, [PointBlock], [NumbersReader("centre")])
    _, point = dls.one_batch()
    assert type(point) is TensorPoint and torch.allclose(
        point[0].as_subclass(torch.Tensor), torch.tensor([[-0.5, 0.0]])
    )
    assert NumbersReader("centre")(df.iloc[0]) == [10.0, 16.0]
    assert NumbersReader("centre")(pd.Series({"centre": None})) is None
    assert NumbersReader(["a", "b"])(pd.Series({"a": 1.0, "b": 2.0})) == [1.0, 2.0]
