"""Photographs and coins: exact labels, and nothing that training and validation share."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("skimage")

from fastai_heads.examples import cut_coins, open_photographs, write_coins
from fastai_heads.examples.coins import CHANGES, HELD_OUT
from fastai_heads.examples.photographs import LEFT, place


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coins")
    return folder, write_coins(folder, n=16, side=64)


def test_the_same_seed_gives_the_same_files(written, tmp_path):
    folder, table = written
    assert table.equals(write_coins(tmp_path, n=16, side=64))
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in table.image)


def test_the_csv_says_what_the_table_says(written):
    folder, table = written
    assert pd.read_csv(folder / "labels.csv").equals(table)


def test_boxes_lie_in_their_pictures(written):
    for box in written[1].coin:
        x1, y1, x2, y2 = map(int, box.split())
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64


def test_only_the_box_differs_from_the_photograph(tmp_path, monkeypatch):
    "The same draws with coins that are clear: what differs between the two lies in the box, up to JPEG's blocks of 16."
    monkeypatch.setattr("fastai_heads.examples.coins.CHANGES", ())
    table = write_coins(tmp_path / "with", n=4, side=64)
    monkeypatch.setattr("PIL.Image.Image.paste", lambda *args: None)
    write_coins(tmp_path / "without", n=4, side=64)
    for name, box in zip(table.image, table.coin):
        a, b = (np.asarray(Image.open(tmp_path / d / name)).astype(int) for d in ("with", "without"))
        ys, xs = np.nonzero(abs(a - b).max(-1) > 24)
        x1, y1, x2, y2 = map(int, box.split())
        assert len(xs)
        assert xs.min() >= x1 - 16 and xs.max() < x2 + 16 and ys.min() >= y1 - 16 and ys.max() < y2 + 16


def test_there_are_coins_for_both_sets():
    assert len(cut_coins()) == 22 > 2 * HELD_OUT
    assert all(coin.mode == "RGBA" and coin.getchannel("A").getextrema() == (0, 255) for coin in cut_coins())


def test_tags_are_the_changes(written):
    assert {tag for cell in written[1].changes for tag in cell.split()} <= {*CHANGES, "plain"}
    assert not any("plain" in cell.split() and " " in cell for cell in written[1].changes)


@pytest.mark.parametrize("valid", [False, True])
def test_no_part_of_a_photograph_is_in_both_sets(valid):
    rng = np.random.default_rng(0)
    for photo in open_photographs().values():
        for _ in range(20):
            (left, top, right, bottom), area = place(photo, valid, rng)
            edge = LEFT * photo.width
            assert left >= round(edge) if valid else right <= round(edge)
            assert 0 <= top < bottom <= photo.height and 0 < area < 100
