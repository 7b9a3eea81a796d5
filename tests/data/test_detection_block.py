"""Boxes with labels as one target of a batch."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.augment import Flip, Resize, aug_transforms
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import Tensor

from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock, LabeledBoxes, TensorDetections, same_count, to_pixels
from fastai_heads.data.digits import digits_dls
from fastai_heads.data.missing import labelled
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.targets import dls_targets
from fastai_heads.errors import HeadsError

BOXES = [[[4, 8, 20, 24], [10, 2, 30, 12]], [], [[0, 0, 64, 32]], [[1, 1, 5, 5]]]
LABELS = [["cat", "dog"], [], ["cat"], ["fox"]]


@pytest.fixture
def table(tmp_path):
    "Four pictures 64 wide and 32 high with two boxes, none, one, one; the last one validates."
    for i in range(4):
        Image.fromarray(np.full((32, 64, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(4)],
            "kind": ["a", "b", "a", "b"],
            "boxes": [json.dumps(b) for b in BOXES],
            "labels": [json.dumps(names) for names in LABELS],
            "is_valid": [False, False, False, True],
        }
    )


@pytest.fixture
def make(tmp_path):
    "A function: a table → `DataLoaders` of boxes beside a class."

    def load(table, block=DetectionBlock, bs=3, **tfms):
        data = DataBlock(
            (ImageBlock, block, CategoryBlock),
            getters=[ColReader("image", pref=tmp_path), BoxesReader("boxes", "labels"), ColReader("kind")],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
            **tfms,
        )
        return data.dataloaders(table, bs=bs, num_workers=0, shuffle=False)

    return load


def with_vocab():
    return DetectionBlock(["fox", "dog", "cat"])


def batch_of(dls) -> tuple:
    return dls.train.new(shuffle=False).one_batch()


def test_a_batch_is_padded_and_other_targets_are_untouched(make, table):
    dls = make(table, with_vocab)
    x, boxes, kind = batch_of(dls)
    assert isinstance(boxes, TensorDetections) and boxes.shape == (3, 2, 5) and x.shape == (3, 3, 32, 64)
    assert kind.tolist() == [0, 1, 0]
    plain = boxes.as_subclass(Tensor)
    assert plain[..., 4].tolist() == [[2, 1], [-1, -1], [2, -1]]
    assert torch.allclose(to_pixels(plain[0, :, :4], 32, 64), torch.tensor(BOXES[0]).float())
    assert plain[1].tolist() == [[0, 0, 0, 0, -1]] * 2


def test_images_without_any_object_make_a_batch(make, table):
    table.loc[:2, ["boxes", "labels"]] = "[]"
    boxes = batch_of(make(table, with_vocab))[1]
    assert boxes.shape == (3, 1, 5) and (boxes[..., 4] == -1).all() and labelled(boxes.as_subclass(Tensor)).all()


def test_the_target_says_what_it_is(make, table):
    target = dls_targets(make(table, with_vocab))[0]
    assert (target.name, target.kind, target.n_out, target.vocab) == ("boxes", "detection", 3, ("fox", "dog", "cat"))


def test_the_vocabulary_is_learned_from_the_training_set(make, table):
    table.loc[3, "labels"] = '["cat"]'
    assert dls_targets(make(table))[0].vocab == ("cat", "dog")


def test_a_label_that_training_has_not_is_refused_when_it_is_read(make, table):
    with pytest.raises(HeadsError, match="'fox' of a box is not in the vocabulary"):
        make(table).valid.one_batch()


def test_decoding_gives_boxes_in_pixels_with_their_labels(make, table):
    dls = make(table, with_vocab)
    items = dls.train.decode_batch(batch_of(dls))
    first, none = items[0][1], items[1][1]
    assert isinstance(first, LabeledBoxes) and first.labels == ("cat", "dog") and first.scores is None
    assert torch.allclose(first.as_subclass(Tensor), torch.tensor(BOXES[0]).float(), atol=1e-4)
    assert none.shape == (0, 4) and none.labels == ()


def test_boxes_are_flipped_with_the_image(make, table):
    dls = make(table, with_vocab, item_tfms=Resize(16, method="squish"), batch_tfms=Flip(p=1.0))
    flipped = batch_of(dls)[1].as_subclass(Tensor)[0]
    x1, y1, x2, y2 = torch.tensor(BOXES[0]).float().unbind(1)
    expected = torch.stack([64 - x2, y1, 64 - x1, y2], 1)
    assert torch.allclose(to_pixels(flipped[:, :4], 32, 64), expected, atol=1e-4)


def test_boxes_move_with_the_image_in_a_batch_as_the_ink_does(tmp_path):
    tfms = aug_transforms(max_rotate=0.0, max_warp=0.0, max_lighting=0.0, min_zoom=1.2, max_zoom=1.3, p_affine=1.0)
    kwargs = {"bs": 8, "path": tmp_path / "s", "n": 10, "size": 64, "digits_per_scene": (1, 3)}
    _, boxes, masks = batch_of(digits_dls(("boxes", "mask"), batch_tfms=tfms, **kwargs))
    for rows, mask in zip(boxes.as_subclass(Tensor), masks.as_subclass(Tensor)):
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for x1, y1, x2, y2 in to_pixels(rows[rows[:, 4] >= 0, :4], 64, 64).tolist():
            covered[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = True
        assert not ((mask > 0) & ~covered).any()
    assert boxes[..., :4].abs().max() <= 1


def test_a_box_that_is_moved_out_is_none(make, table):
    table.loc[3, ["boxes", "labels"]] = "[[0, 0, 8, 8], [12, 10, 40, 20]]", '["cat", "dog"]'
    rows = make(table, with_vocab, item_tfms=Resize(32, method="crop")).valid.one_batch()[1].as_subclass(Tensor)
    assert rows.shape == (1, 1, 5) and rows[0, 0, 4] == 1
    assert to_pixels(rows[0, 0, :4], 32, 32).tolist() == [0, 10, 24, 20]  # the middle, from 16 to 48, clipped


def test_missing_boxes_are_no_label_and_no_boxes_are_one(make, table):
    table["boxes"] = table["boxes"].astype(object)
    table.loc[0, "boxes"] = None
    dls = make(table, lambda: PartialBlock(with_vocab()))
    boxes = batch_of(dls)[1].as_subclass(Tensor)
    assert labelled(boxes).tolist() == [False, True, True] and dls_targets(dls)[0].partial
    assert [str(item[1]) == "–" for item in dls.train.decode_batch(batch_of(dls))] == [True, False, False]


@pytest.mark.parametrize(
    ("boxes", "labels", "said"),
    [
        ("[[4, 8, 4, 24]]", '["cat"]', "x1 < x2"),
        ("[[20, 8, 4, 24]]", '["cat"]', "x1 < x2"),
        ("[[4, 8, 20]]", '["cat"]', "found 3 of them"),
        ("[[4, 8, 20, 24]]", "[]", r"1 box\(es\) and 0 label\(s\)"),
        ("[]", '["cat"]', r"0 box\(es\) and 1 label\(s\)"),
        ("[[4, 8, 20, 24]]", '["cow"]', "'cow' of a box is not in the vocabulary"),
        ("[[4, 8,", '["cat"]', "list written as JSON"),
    ],
)
def test_bad_boxes_are_refused_with_row_and_file(make, table, boxes, labels, said):
    table.loc[2, ["boxes", "labels"]] = boxes, labels
    with pytest.raises(HeadsError, match=said) as error:
        make(table, with_vocab)
    if "JSON" not in said:
        assert str(error.value).startswith("row 2 (2.png): ")


def test_a_box_outside_its_image_is_refused_with_row_and_file(make, table):
    table.loc[2, "boxes"] = "[[30, 10, 90, 30]]"
    with pytest.raises(HeadsError, match=r"row 2 \(2.png\): box \[30.0, 10.0, 90.0, 30.0\] lies outside .* 64×32"):
        batch_of(make(table, with_vocab))


def test_batches_of_other_counts_are_brought_to_one():
    a, b = torch.rand(2, 1, 5), torch.full((1, 3, 5), torch.nan)
    joined = torch.cat(same_count([a, b]))
    assert joined.shape == (3, 3, 5) and (joined[:2, 1:, 4] == -1).all()
    longer = torch.cat(same_count([b[:, :1], torch.rand(1, 3, 5)]))
    assert labelled(longer).tolist() == [False, True]
