"""The command line."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from fastai_heads import Predictor, demo, export_onnx, load_bundle
from fastai_heads.__main__ import main
from fastai_heads.serve.app import make_app


@pytest.mark.slow
def test_demo_trains_prints_and_draws_and_its_learner_is_bundled_exported_and_served(tmp_path, capsys, monkeypatch):
    learners = []
    train = demo.demo
    monkeypatch.setattr(demo, "demo", lambda *args, **kwargs: learners.append(train(*args, **kwargs)))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1", "--scenes", "120"]) == 0
    said = capsys.readouterr().out
    assert "Removed: " in said and "digit_accuracy" in said and "box_iou" in said
    for picture in ("results.png", "losses.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
        assert f"wrote {tmp_path / picture}" in said
    check_it_leaves(learners[0], tmp_path)


def check_it_leaves(learn, folder):
    "Compare what the learner, its bundle, its ONNX file and a service say of a picture."
    picture = sorted((folder / "scenes" / "images").iterdir())[0]
    predictor = load_bundle(learn.save_bundle(folder / "bundle"))
    session = Predictor.from_onnx(export_onnx(folder / "demo.onnx", predictor))
    with TestClient(make_app(predictor)) as client:
        served = client.post("/predict", files={"a": picture.read_bytes()}).json()["answers"][0]
    with learn.no_bar(), learn.no_logging():
        decoded, _, activated = learn.predict(picture)
    for answer in (predictor(picture), session(picture)):
        assert answer.digit.label == decoded.digit == served["digit"]["label"]
        assert answer.digit.probability == pytest.approx(float(activated.digit.max()), abs=1e-5)
        assert answer.ink == pytest.approx(float(decoded.ink), rel=1e-5)
        assert answer.ink == pytest.approx(served["ink"], rel=1e-5)
        assert np.allclose(answer.box, served["box"], atol=1e-3) and list(served) == list(answer.names)


def test_archs_lists_what_matches(capsys):
    assert main(["archs", "resnet10*"]) == 0
    said = capsys.readouterr().out.split()
    assert "resnet10t" in said and all(name.startswith("resnet10") for name in said)


def test_cut_prints_the_taps(capsys):
    assert main(["cut", "resnet10t"]) == 0
    said = capsys.readouterr().out
    assert "layer3" in said and "pre_logits" in said


def test_unknown_arch_is_one_line_and_exit_code_2(capsys):
    assert main(["cut", "resnet10x"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "resnet10t" in said.err
