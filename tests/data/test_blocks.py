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
from fastai_heads.data.detection_block import DetectionBlock
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.missing import labelled
from fastai_heads.data.parse import parse_box, parse_numbers
from fastai_heads.data.partial import Missing
from fastai_heads.errors import HeadsError
from fastai_heads.learner import multihead_learner
from fastai_heads.tasks.box import iou

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


def test_augmented_boxes_are_clipped_or_missing_whole(folder):
    dls = boxes_dls(
        folder, item_tfms=Resize((8, 8)), batch_tfms=aug_transforms(max_rotate=80, max_zoom=3.0, p_affine=1)
    )
    for _ in range(3):
        x, box, *_ = dls.one_batch()
        assert type(x) is TensorImage and type(box) is TensorBBox and box.shape == (4, 1, 4)
        plain = box.as_subclass(torch.Tensor)
        kept = plain[~plain.isnan().all(-1)]
        assert torch.isfinite(kept).all() and (kept.abs() <= 1).all() and (kept[:, 2:] > kept[:, :2]).all()


# of pictures 40 wide and 32 high, halved, the middle 16 of 20 pixels in x
CUT, LEFT = "0 2 10 30", "0 2 3 30"


@pytest.fixture
def cropped(folder):
    return loaders(
        folder, table(box=["12 6 28 30"] * 4 + [CUT, LEFT]), [BoxBlock], [ColReader("box")], item_tfms=Resize(16)
    )


def test_a_box_is_cut_with_its_image_and_missing_where_it_has_left(cropped):
    batch = cropped.valid.one_batch()
    cut, left = (item[1] for item in cropped.valid.decode_batch(batch))
    assert cut.tolist() == [[0.0, 1.0, 3.0, 15.0]] and isinstance(left, Missing)
    assert labelled(batch[1]).tolist() == [True, False]


def test_a_box_that_has_left_gives_no_gradient_and_no_count(cropped):
    learn = multihead_learner(cropped, "test_resnet", pretrained=False)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda row: None
    learn.fit(1)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    preds, targs = learn.get_preds()
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1], strict=False))
    assert row["valid_box_loss"] == pytest.approx((preds.box[0] - targs.box[0]).abs().mean().item(), rel=1e-5)
    assert row["box_iou"] == pytest.approx(iou(preds.box[:1], targs.box[:1]).item(), rel=1e-5)
    assert preds.box.shape == targs.box.shape == (2, 1, 4)
    learn.show_results()


@pytest.mark.parametrize(
    ("box", "clipped"),
    [("10 10 500 20", [10.0, 10, 40, 20]), ("-20 -20 10 10", [0.0, 0, 10, 10]), ("50 0 90 20", None)],
)
def test_clip_cuts_what_stands_out_of_the_image(folder, box, clipped):
    df = table(box=[box] + ["4 6 20 30"] * 5, labels=[["a"]] * 6)
    dls = loaders(folder, df, [lambda: BoxBlock(clip=True)], [ColReader("box")])
    inspect_data(dls)
    found = dls.decode_batch(dls.one_batch())[0][1]
    assert isinstance(found, Missing) if clipped is None else found.tolist() == [clipped]
    both = [lambda row: ([row["box"]], row["labels"])]
    dls = loaders(folder, df, [lambda: DetectionBlock(clip=True)], both)
    inspect_data(dls)
    found = dls.decode_batch(dls.one_batch())[0][1]
    assert found.tolist() == ([] if clipped is None else [clipped])


def test_each_of_two_boxes_clips_as_its_own_block_says(folder):
    df = table(box=["10 10 500 20"] * 6, other=["4 6 20 30"] * 5 + ["4 6 500 30"])
    blocks = [lambda: BoxBlock(clip=True), BoxBlock]
    with pytest.raises(HeadsError, match=r"target 'other', row 5 .*lies outside.*`BoxBlock\(clip=True\)`"):
        inspect_data(loaders(folder, df, blocks, [ColReader("box"), ColReader("other")]))
    df.loc[5, "other"] = "4 6 20 30"
    inspect_data(loaders(folder, df, blocks, [ColReader("box"), ColReader("other")]))


@pytest.mark.parametrize("block", [BoxBlock, DetectionBlock])
def test_clip_is_true_or_false(block):
    with pytest.raises(HeadsError, match=rf"`clip` of {block.__name__} is True or False, found 'yes'"):
        block(clip="yes")


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
