"""An ONNX file says what torch says, names its outputs, and runs without torch."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fastai.vision.augment import Resize
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import predictor_of
from fastai_heads.export.onnx import _plain_attention, export_onnx
from fastai_heads.export.predictor import Predictor
from fastai_heads.heads import DetectionHead


@pytest.fixture(scope="session")
def exported(make_images, tmp_path_factory):
    "Export a learner once: a class, tags, a number and detections, at a size that is resized to."
    heads = {"boxes": DetectionHead(channels=64, extra_levels=0, score_thresh=0.0, decode_score=0.01)}
    learn = make_images(("digit", "tags", "ink", "boxes"), item_tfms=Resize(32), heads=heads, arch="test_resnet")
    predictor = predictor_of(learn)
    return predictor, export_onnx(tmp_path_factory.mktemp("onnx") / "m.onnx", predictor)


def test_it_says_what_torch_says(exported, scenes, rows):
    predictor, file = exported
    session = Predictor.from_onnx(file, threads=1)
    images = [scenes / name for name in rows.image]
    for bs in (1, 7):
        for a, b in zip(predictor(images[:8], bs=bs), session(images[:8], bs=bs)):
            assert a.names == b.names and a.digit.label == b.digit.label and a.tags.labels == b.tags.labels
            assert a.digit.probability == pytest.approx(b.digit.probability, abs=1e-5)
            assert a.ink == pytest.approx(b.ink, rel=1e-4) and a.boxes.scores == pytest.approx(b.boxes.scores, abs=1e-5)
            assert len(a.boxes.labels) > 0
    assert session(images[0], heads="ink").names == ("ink",)


def test_outputs_have_names_and_the_file_says_what_they_mean(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[1])
    names = [o.name for o in session.get_outputs()]
    assert set(names) == {"digit", "digit_label", "tags", "ink", "boxes", "boxes_scores", "boxes_labels"}
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [32, 32, 3])
    said = json.loads(session.get_modelmeta().custom_metadata_map["fastai_heads"])
    assert said["answers"]["digit"]["vocab"] == list("0123456789")


def test_it_runs_without_torch(exported, scenes, rows):
    code = (
        "import sys\n"
        "from fastai_heads import Predictor\n"
        f"answer = Predictor.from_onnx({str(exported[1])!r})({str(scenes / rows.image[0])!r})\n"
        "print(answer.digit.label, [m for m in ('torch', 'fastai', 'pandas', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{exported[0](scenes / rows.image[0]).digit.label} []"


def test_tables_and_texts_and_int8(several, several_file):
    predictor, session = predictor_of(several), Predictor.from_onnx(several_file)
    for i in range(4):
        row = several.frame.iloc[i]
        item = {**row, "image": several.path / row["image"]}
        assert session(item).holds.probability == pytest.approx(predictor(item).holds.probability, abs=0.02)
    assert 0 < session.manifest["int8_difference"] < 0.02


def test_detections_of_fcos(make_images, scenes, rows, tmp_path):
    small = {"channels": 64, "extra_levels": 0, "score_thresh": 0.0, "decode_score": 0.01}
    learn = make_images(("boxes",), heads={"boxes": DetectionHead(kind="fcos", **small)}, arch="test_resnet")
    predictor = predictor_of(learn)
    session = Predictor.from_onnx(export_onnx(tmp_path / "m.onnx", predictor), threads=1)
    images = [scenes / name for name in rows.image[:4]]
    for a, b in zip(predictor(images), session(images)):
        assert len(a.boxes.labels) > 0 and a.boxes.scores == pytest.approx(b.boxes.scores, abs=1e-5)


def test_a_file_that_does_not_agree_is_not_kept(make_images, tmp_path, monkeypatch):
    import fastai_heads.export.onnx as module

    monkeypatch.setattr(module, "_export", lambda *_: None)
    monkeypatch.setattr(module, "_difference", lambda *_: 7.0)
    with pytest.raises(HeadsError, match="does not agree with torch: it is off by 7e-05"):
        export_onnx(tmp_path / "m.onnx", make_images(("digit",)))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(exported, tmp_path):
    predictor, file = exported
    with pytest.raises(HeadsError, match="overwrite=True"):
        export_onnx(file, predictor)
    with pytest.raises(HeadsError, match="'uint8' or 'body'"):
        export_onnx(tmp_path / "x", predictor, takes="float")
    with pytest.raises(HeadsError, match="runs an ONNX file already"):
        export_onnx(tmp_path / "x", Predictor.from_onnx(file))
    with pytest.raises(HeadsError, match="there is no file"):
        Predictor.from_onnx(tmp_path / "x")
    (tmp_path / "y.onnx").write_bytes(b"nothing")
    with pytest.raises(HeadsError, match="cannot be opened as ONNX"):
        Predictor.from_onnx(tmp_path / "y.onnx")


class FiveAxes(nn.Module):
    "A network that attends within windows, so that queries have five axes. The exporter knows four."

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem, self.qkv, self.fused_attn = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24), True
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x)  # (B, 8, 4, 4)
        rows = x.permute(0, 2, 3, 1).unflatten(2, (2, 2))  # (B, 4, 2 windows, 2, 8)
        q, k, v = self.qkv(rows).chunk(3, -1)
        if self.fused_attn:
            rows = F.scaled_dot_product_attention(q, k, v)
        else:
            rows = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v
        return self.fc(rows.flatten(2, 3).permute(0, 3, 1, 2).mean((2, 3)))


def test_attention_within_windows_is_written_out():
    "Archs with such layers are in `docs/onnx.csv`: nest_tiny_jx, hiera_tiny_224."
    net, x = FiveAxes().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        fused = net(x)
        with _plain_attention(nn.Sequential(net)) as changed:
            assert changed == [net] and net.fused_attn is False
            torch.testing.assert_close(net(x), fused)
    assert net.fused_attn is True
    with pytest.raises(ZeroDivisionError), _plain_attention(net):
        raise ZeroDivisionError
    assert net.fused_attn is True
