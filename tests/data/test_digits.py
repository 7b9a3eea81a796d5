"""The digit scenes: exact truth, no leak, the same for the same seed, and DataLoaders over any choice of targets."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.external import fastai_cfg
from fastai.vision.core import PILBase
from sklearn.datasets import load_digits

from fastai_heads.data.digits import (
    DIGITS,
    MASK_CODES,
    RECORD,
    TAGS,
    blank_labels,
    digit_scenes,
    digits_block,
    digits_dls,
)
from fastai_heads.data.missing import labelled
from fastai_heads.data.present import check_complete
from fastai_heads.data.scenes import INK, MARGIN, SceneParams, _draw_side_by_side, ink_box, render, scenes
from fastai_heads.errors import HeadsError

ALL = ("digit", "tags", "ink", "centre", "box", "mask")
N = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "scenes"
    digit_scenes(folder, n=N)
    return folder


@pytest.fixture(scope="module")
def table(path):
    return digit_scenes(path, n=N)


def numbers(cells):
    return np.array([[float(o) for o in cell.split()] for cell in cells])


def pixels(path, names):
    return np.stack([np.asarray(PILBase.create(path / name, mode=None)) for name in names])


def test_render_at_eight_pixels_is_the_digit_itself():
    digits = load_digits().images[:3] / 16
    at = np.zeros(3)
    assert np.allclose(render(digits, at, at, at + 8, 8), digits, atol=1e-12)
    shifted = render(digits, at + 3, at + 5, at + 8, 16)
    assert np.allclose(shifted[:, 5:13, 3:11], digits, atol=1e-12) and shifted.sum() == pytest.approx(digits.sum())


def test_box_is_tight_around_the_ink():
    ink = np.zeros((10, 10))
    ink[2:5, 3:9], ink[0, 0] = INK, INK - 0.01
    assert ink_box(ink) == (3, 2, 9, 5)


def test_files_and_columns(path, table):
    assert len(table) == N and table["is_valid"].sum() == N // 5
    assert pixels(path, table["image"]).shape == (N, 64, 64, 3) and pixels(path, table["mask"]).shape == (N, 64, 64)
    assert set(table["digit"]) <= set("0123456789") and set(" ".join(table["tags"]).split()) <= set(TAGS)
    assert table["ink"].between(30, 800).all() and table["ink"].std() > 30
    assert (table["count"] == 1).all()


def test_boxes_centres_and_masks_agree(path, table):
    for mask, box, centre, digit in zip(
        pixels(path, table["mask"]), numbers(table["box"]), numbers(table["centre"]), table["digit"]
    ):
        assert set(np.unique(mask)) == {0, int(digit) + 1} and MASK_CODES[mask.max()] == digit
        assert ink_box((mask > 0).astype(float)) == tuple(box)
        assert box[0] < centre[0] < box[2] and box[1] < centre[1] < box[3]
        y, x = np.nonzero(mask)
        assert np.allclose([x.mean() + 0.5, y.mean() + 0.5], centre, atol=1.5)


def test_ink_is_what_the_scene_drew(table):
    drawn = [scene.inks.sum() for scene in scenes(SceneParams(n=N))]
    assert np.allclose(drawn, table["ink"], atol=0.005)
    small = [scene.inks.sum() for scene in scenes(SceneParams(n=N, size=96))]
    assert np.allclose(np.array(small) * (64 / 96) ** 2, drawn, rtol=0.01)  # mm² do not depend on the size in pixels


def test_tags_say_what_they_document(table):
    digit = table["digit"].astype(int)
    has = table["tags"].str.get_dummies(" ").reindex(columns=TAGS, fill_value=0).astype(bool)
    box, x = numbers(table["box"]), numbers(table["centre"])[:, 0]
    assert (has["even"] == (digit % 2 == 0)).all() and (has["odd"] == (digit % 2 == 1)).all()
    assert (has["loop"] == digit.isin([0, 6, 8, 9])).all()
    assert (has["large"] == ((box[:, 3] - box[:, 1]) >= 0.4 * 64)).all()
    assert (has["left"] == (x < 32)).all() and (has["right"] == ~has["left"]).all()
    assert 0 < has["faint"].mean() < 1


def test_faint_ink_is_paler(path, table):
    images = pixels(path, table["image"]).mean(-1)
    ink = [image[mask > 0].min() for image, mask in zip(images, pixels(path, table["mask"]))]
    faint = table["tags"].str.contains("faint")
    assert np.mean(np.array(ink)[faint]) > np.mean(np.array(ink)[~faint])


@pytest.mark.parametrize("span", [(1, 1), (1, 5)])
def test_no_handwritten_digit_is_in_train_and_valid(span):
    written = load_digits().target
    seen = {False: set(), True: set()}
    for scene in scenes(SceneParams(n=200, size=48, digits_per_scene=span)):
        seen[scene.is_valid] |= set(scene.sources)
        assert [int(written[s]) for s in scene.sources] == scene.digits
    assert seen[True] and seen[False] and not seen[True] & seen[False]


def test_reproducible_bit_for_bit(tmp_path, path):
    digit_scenes(tmp_path / "again", n=N)
    digit_scenes(tmp_path / "other", n=N, seed=1)

    def digest(folder):
        files = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".csv"))
        assert len(files) == 2 * N + 1
        return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()

    assert digest(path) == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_scenes_that_are_there_are_read_and_others_not_overwritten(path, tmp_path):
    before = (path / "labels.csv").stat().st_mtime_ns
    digit_scenes(path, n=N)
    assert (path / "labels.csv").stat().st_mtime_ns == before
    with pytest.raises(HeadsError, match="seed=0 there, seed=1 asked for"):
        digit_scenes(path, n=N, seed=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(HeadsError, match="in use"):
        digit_scenes(tmp_path, n=N)
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_several_digits(tmp_path):
    table = digit_scenes(tmp_path / "many", n=100, size=64, digits_per_scene=(1, 5))
    assert set(table["count"]) == {1, 2, 3, 4, 5} and "digit" not in table
    for row, mask in zip(table.itertuples(), pixels(tmp_path / "many", table["mask"])):
        boxes, labels = json.loads(row.boxes), json.loads(row.labels)
        assert len(boxes) == len(labels) == row.count == len(set(json.loads(row.sources)))
        left = mask.copy()
        for (x1, y1, x2, y2), label in zip(boxes, labels):
            part = mask[y1:y2, x1:x2]
            assert set(np.unique(part)) <= {0, label + 1}  # no other digit reaches into the box
            assert ink_box((part > 0).astype(float)) == (0, 0, x2 - x1, y2 - y1)
            left[y1:y2, x1:x2] = 0
        assert not left.any()


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_side_by_side(tmp_path, overlap):
    kwargs = {"n": 60, "size": 64, "digits_per_scene": 2, "overlap": overlap}
    table = digit_scenes(tmp_path / "two", **kwargs)
    written = load_digits()
    shared = 0
    for row, mask, scene in zip(
        table.itertuples(),
        pixels(tmp_path / "two", table["mask"]),
        scenes(SceneParams(60, 64, (2, 2), overlap=overlap)),
    ):
        assert [row.left, row.right] == [str(written.target[s]) for s in json.loads(row.sources)]
        left, right = json.loads(row.boxes)
        assert left[0] + left[2] < right[0] + right[2] and (np.array([left, right]) >= 0).all()
        assert max(*left, *right) <= 64 and json.loads(row.boxes) == [list(ink_box(ink)) for ink in scene.inks]
        below, above = scene.inks >= INK
        assert (mask[above] == int(row.right) + 1).all() and (mask[below & ~above] == int(row.left) + 1).all()
        shared += (below & above).any()
        assert row.ink == pytest.approx((1 - (1 - scene.inks[0]) * (1 - scene.inks[1])).sum(), abs=0.006)
    assert shared == 0 if overlap == 0 else 30 < shared < 60
    assert not set(table["left"]) ^ set(DIGITS) and digit_scenes(tmp_path / "two", **kwargs).equals(table)


def test_side_by_side_shares_that_part_of_the_width():
    for overlap in (0, 0.3, 0.8):
        for seed in range(50):
            sides, places = _draw_side_by_side(overlap, 64, np.random.default_rng(seed))
            assert ((places - MARGIN * sides[:, None]) >= -1e-9).all()
            assert ((places + (1 + MARGIN) * sides[:, None]) <= 64 + 1e-9).all()
            centres = places[:, 0] + sides / 2
            assert centres[1] - centres[0] == pytest.approx((1 - overlap) * sides.mean())


def test_left_and_right_are_targets(tmp_path):
    kwargs = {"n": 20, "digits_per_scene": 2, "overlap": 0.4}
    dls = digits_dls(("left", "right"), bs=4, path=tmp_path / "two", **kwargs)
    _, left, right = next(iter(dls.valid))
    table = digit_scenes(tmp_path / "two", **kwargs)
    rows = table[table["is_valid"]]
    assert left.tolist() == [int(d) for d in rows["left"]] and right.tolist() == [int(d) for d in rows["right"]]


def test_a_record_from_before_overlaps_is_read(tmp_path):
    digit_scenes(tmp_path / "old", n=10)
    record = json.loads((tmp_path / "old" / RECORD).read_text())
    del record["overlap"]
    (tmp_path / "old" / RECORD).write_text(json.dumps(record))
    assert len(digit_scenes(tmp_path / "old", n=10)) == 10


@pytest.mark.parametrize(
    ("kwargs", "found"),
    [
        ({"n": 2}, "`n`"),
        ({"size": 16}, "32"),
        ({"digits_per_scene": (3, 2)}, r"\(3, 2\)"),
        ({"seed": -1}, "seed"),
        ({"digits_per_scene": 2, "overlap": 0.9}, "0 to 0.8"),
        ({"overlap": 0.3}, "digits_per_scene=2"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, kwargs, found):
    with pytest.raises(HeadsError, match=found):
        digit_scenes(tmp_path / "bad", **kwargs)
    assert not (tmp_path / "bad").exists()


def test_dls_of_every_target(path):
    dls = digits_dls(ALL, bs=8, path=path, n=N)
    x, digit, tags, ink, centre, box, mask = dls.one_batch()
    assert x.shape == (8, 3, 64, 64) and dls.n_inp == 1 and dls.train.fake_l.num_workers == 0
    assert digit.shape == (8,) and tags.shape == (8, len(TAGS)) and ink.shape == (8,)
    assert centre.shape == (8, 1, 2) and box.shape == (8, 1, 4) and mask.shape == (8, 64, 64)
    for target in (centre, box):
        assert target.min() > -1 and target.max() < 1
    assert len(dls.train_ds) == 48 and len(dls.valid_ds) == 12
    check_complete(dls)


def test_targets_come_in_the_order_asked_for_and_decode(path, table):
    dls = digits_dls(("box", "digit", "centre"), bs=4, path=path, n=N)
    row = table[table["is_valid"]].iloc[0]
    decoded = dls.valid.decode_batch(next(iter(dls.valid)))[0]
    assert torch.allclose(decoded[1].as_subclass(torch.Tensor)[0], torch.tensor(numbers([row["box"]])[0]).float())
    assert decoded[2] == row["digit"]
    assert torch.allclose(decoded[3].as_subclass(torch.Tensor)[0], torch.tensor(numbers([row["centre"]])[0]).float())
    assert isinstance(digits_dls("ink", bs=8, path=path, n=N).one_batch()[1], torch.Tensor)


def test_missing_blanks_each_target_in_its_own_training_rows(path):
    dls = digits_dls(ALL, bs=48, path=path, missing=0.25, n=N)
    gaps = torch.stack([~labelled(t) for t in next(iter(dls.train.new(shuffle=False)))[1:]])
    assert gaps.sum(1).tolist() == [12] * 6 and len({tuple(row) for row in gaps.tolist()}) == 6
    assert all(labelled(t).all() for t in dls.valid.one_batch()[1:])
    alone = digits_dls("ink", bs=48, path=path, missing=0.25, n=N)  # the same rows, whatever stands beside it
    assert torch.equal(~labelled(next(iter(alone.train.new(shuffle=False)))[1]), gaps[2])


def test_blank_labels_leaves_the_table_and_whole_numbers_alone():
    table = pd.DataFrame({"count": range(10), "is_valid": [False] * 8 + [True] * 2})
    blanked = blank_labels(table, ["count"], 0.5)
    assert blanked["count"].isna().sum() == 4 and not blanked["count"][8:].isna().any() and not table.isna().any().any()
    assert {type(o) for o in blanked["count"].dropna()} == {int}
    with pytest.raises(HeadsError, match="found 1"):
        blank_labels(table, ["count"], 1)


def test_wrong_targets_are_answered(path, tmp_path):
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        digits_dls(("digits",), path=path, n=N)
    with pytest.raises(HeadsError, match="each once"):
        digits_block(path, ("ink", "ink"))
    with pytest.raises(HeadsError, match="one name or more"):
        digits_dls((), path=path, n=N)
    with pytest.raises(HeadsError, match="these scenes have no 'box', only ink, mask, count, boxes"):
        digits_dls(("count", "box"), path=tmp_path / "many", n=10, digits_per_scene=2)
    with pytest.raises(HeadsError, match=r"overlap=0\.3"):
        digits_dls(("left", "right"), path=tmp_path / "many", n=10, digits_per_scene=2)


# fastcore leaves the file open to which it writes fastai's config
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_default_folder_is_below_fastais_data_and_one_per_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path))
    fastai_cfg.cache_clear()
    first, second = digits_dls("digit", n=10), digits_dls("digit", n=10, seed=1, digits_per_scene=(1, 1))
    assert tmp_path in first.path.parents and first.path != second.path
    assert digits_dls("digit", n=10, digits_per_scene=1, size=64).path == first.path
    assert digits_dls("left", n=10, digits_per_scene=2, overlap=0.5).path.name.endswith("overlap0.5")
    fastai_cfg.cache_clear()
