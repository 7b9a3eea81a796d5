"""A folder of images becomes a table."""

import shutil

import pandas as pd
import pytest
import torch

from fastai_heads.errors import HeadsError, HeadsWarning


@pytest.fixture
def folder(scenes, table, tmp_path):
    "Five images, two of them in a folder of their own."
    path = tmp_path / "new"
    (path / "more").mkdir(parents=True)
    for i, name in enumerate(table.image[:5]):
        shutil.copy(scenes / name, path / ("more" if i > 2 else "") / f"{i}.png")
    return path


def test_every_head_has_columns(make_learner, folder, table, tmp_path):
    learn = make_learner("digit", "tags", "ink", "centre", "box")
    found = learn.predict_folder(folder, tmp_path / "out.csv", bs=2)
    assert list(found.index) == ["0.png", "1.png", "2.png", "more/3.png", "more/4.png"]
    assert found.error.isna().all()
    one = learn.predict(table.iloc[3])
    row = found.loc["more/3.png"]
    assert row.digit == one[0].digit and row.digit_probability == pytest.approx(float(one[2].digit.max()), abs=1e-4)
    assert row.tags == ";".join(one[0].tags) and row.ink == pytest.approx(float(one[0].ink), rel=1e-4)
    for name, n in (("centre", 2), ("box", 4)):
        numbers = torch.tensor([row[f"{name}_{i}"] for i in range(n)], dtype=torch.float32)
        torch.testing.assert_close(numbers, torch.as_tensor(one[0][name]).flatten().float(), rtol=1e-3, atol=1e-3)
    again = pd.read_csv(tmp_path / "out.csv", index_col="file", keep_default_na=False)
    assert list(again.columns) == list(found.columns) and list(again.index) == list(found.index)


def test_masks_are_shares(make_learner, folder):
    found = make_learner("mask").predict_folder(folder)
    assert found.filter(like="mask_").sum(axis=1).tolist() == pytest.approx([1.0] * 5)


def test_unreadable_files_are_listed_and_not_fatal(make_learner, folder):
    (folder / "2.png").write_bytes(b"no image")
    with pytest.warns(HeadsWarning, match=r"1 of 5 files could not be read, the first of them '2.png'"):
        found = make_learner("digit").predict_folder(folder, bs=4)
    assert found.error.notna().tolist() == [False, False, True, False, False]
    assert found.digit.isna().tolist() == [False, False, True, False, False] and "2.png" in found.error["2.png"]


def test_what_is_no_folder_of_images_is_refused(make_learner, folder, tmp_path):
    learn = make_learner("digit")
    with pytest.raises(HeadsError, match="`path` is a folder of images, found"):
        learn.predict_folder(folder / "0.png")
    with pytest.raises(HeadsError, match="`file` is to be written into"):
        learn.predict_folder(folder, tmp_path / "nowhere" / "out.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HeadsError, match="there is no image in"):
        learn.predict_folder(tmp_path / "empty")


def test_validate_by_head(make_learner):
    learn = make_learner("digit", "ink")
    values, found = learn.validate(), learn.validate(per_head=True)
    assert list(found.index) == ["digit", "ink", "total"]
    assert found.loss.tolist() == pytest.approx([values[1], values[2], values[0]])
    assert found.loc["digit", "accuracy"] == pytest.approx(values[3]) and pd.isna(found.loc["ink", "accuracy"])
