"""A table of a folder's images says what the predictor says of each."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastai_heads.__main__ import main
from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import predictor_of, save_bundle
from fastai_heads.export.folder import predict_to_csv


@pytest.fixture
def folder(scenes, rows, tmp_path):
    "Copy some images to a folder with a broken one, and one that is deeper."
    place = tmp_path / "some photos"
    (place / "deeper").mkdir(parents=True)
    for i, name in enumerate(rows.image[:4]):
        shutil.copy(scenes / name, place / ("deeper" if i == 3 else "") / f"{i}.png")
    (place / "broken.jpg").write_bytes(b"no image")
    (place / "notes.txt").write_text("no image")
    return place


def test_it_says_what_the_predictor_says(images, folder, tmp_path, capsys):
    bundle = save_bundle(images, tmp_path / "bundle")
    out = tmp_path / "out" / "table.csv"
    assert main(["predict", str(bundle), str(folder), "--out", str(out), "--bs", "3"]) == 0
    assert "4 images, and 1 that cannot be read" in capsys.readouterr().out
    table = pd.read_csv(out, dtype={"digit": str}).set_index("image")
    assert list(table.index) == ["0.png", "1.png", "2.png", "broken.jpg", "deeper/3.png"]
    assert "cannot be read as an image" in table.error["broken.jpg"] and table.digit.isna().sum() == 1
    predictor = predictor_of(images)
    for name, row in table.drop("broken.jpg").iterrows():
        answer = predictor(folder / name)
        assert row.digit == answer.digit.label and row.ink == pytest.approx(answer.ink, rel=1e-5)
        assert row.digit_probability == pytest.approx(answer.digit.probability, abs=1e-6)
        assert row.tags == ";".join(answer.tags.labels) or not answer.tags.labels
        assert row.tags_even == pytest.approx(answer.tags.probabilities["even"], abs=1e-6)
        assert np.allclose(row[["centre_x", "centre_y"]].tolist(), answer.centre[0], atol=1e-3)
        assert np.allclose(row[["box_x1", "box_y1", "box_x2", "box_y2"]].tolist(), answer.box, atol=1e-3)
        assert np.array_equal(np.asarray(Image.open(out.parent / row["mask"])), answer.mask.codes)
        assert json.loads(row.boxes)["labels"] == list(answer.boxes.labels)
    assert main(["predict", str(bundle), str(folder), "--out", str(out)]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main(["predict", str(bundle), str(folder), "--out", str(out), "--heads", "ink", "--overwrite"]) == 0
    assert list(pd.read_csv(out)) == ["image", "ink", "error"]


def test_what_is_no_folder_of_images(images, several, tmp_path):
    predictor = predictor_of(images)
    for folder, said in ((tmp_path / "no", "there is no folder"), (tmp_path, "holds no image")):
        with pytest.raises(HeadsError, match=said):
            predict_to_csv(predictor, folder, tmp_path / "t.csv")
    with pytest.raises(HeadsError, match="the bundle reads image, row, caption"):
        predict_to_csv(predictor_of(several), tmp_path, tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())
