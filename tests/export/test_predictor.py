"""A predictor says what the learner says, for every kind of head and of input, in pixels of the image as given."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.augment import CropPad, RandomResizedCrop, Resize
from fastai.vision.core import PILImage
from PIL import Image

from fastai_heads.errors import HeadsError
from fastai_heads.export.answers import as_plain
from fastai_heads.export.bundle import load_bundle, predictor_of, save_bundle
from fastai_heads.export.images import see_image


@pytest.fixture(scope="module")
def predictor(images, tmp_path_factory):
    return load_bundle(save_bundle(images, tmp_path_factory.mktemp("bundle") / "b"))


def check_equal(answers, learned, activated):
    "Compare answers with what `learn.predict` gave: decoded, and activated."
    assert answers.names == learned.names
    for name, answer in answers.pairs():
        want, numbers = learned[name], activated[name]
        if type(answer).__name__ == "Label":
            assert str(answer.label) == str(want) and answer.probability == float(numbers.max())
        elif type(answer).__name__ == "Tags":
            assert list(answer.labels) == list(want) and list(answer.probabilities.values()) == numbers.tolist()
        elif type(answer).__name__ == "Mask":
            assert np.array_equal(answer.codes, np.asarray(want)) and answer.codes.dtype == np.uint8
        elif type(answer).__name__ == "Detections":
            assert answer.labels == want.labels and answer.scores == want.scores
            assert np.allclose(answer.boxes, want.numpy(), atol=1e-4)
        else:
            assert np.allclose(answer, np.asarray(want).squeeze(), rtol=1e-6, atol=1e-5)


def test_every_kind_of_head_says_what_the_learner_says(images, predictor, scenes, rows):
    answers = predictor([scenes / name for name in rows.image], bs=7)
    assert len(answers[0].boxes.labels) > 0 and "extra" not in predictor.heads
    for i in range(len(rows)):
        decoded, _, activated = images.predict(rows.iloc[i])
        kept = [n for n in predictor.heads if n in decoded.names]
        check_equal(predictor(scenes / rows.image[i]), decoded, activated)
        assert answers[i].digit.label == str(decoded.digit)
        assert answers[i].digit.probability == pytest.approx(float(activated.digit.max()), abs=1e-6)
        assert kept == list(decoded.names)


def test_an_image_is_taken_in_every_form(predictor, scenes, rows):
    path = scenes / rows.image[0]
    array = np.asarray(Image.open(path).convert("RGB"))
    want = as_plain(predictor(path))
    for given in (str(path), path.read_bytes(), Image.open(path), PILImage.create(path), array, {"image": path}):
        assert as_plain(predictor(given)) == want
    assert as_plain(predictor(rows.assign(image=[str(scenes / n) for n in rows.image]).iloc[0])) == want
    assert as_plain(predictor(np.stack([array] * 3))[2]) == as_plain(predictor([path] * 3)[2])
    assert predictor([]) == [] and len(predictor(pd.DataFrame({"image": [path, path]}))) == 2


def test_several_inputs(several, tmp_path):
    predictor = load_bundle(save_bundle(several, tmp_path / "b"))
    for i in range(len(several.frame)):
        row = several.frame.iloc[i]
        decoded, _, activated = several.predict(row)
        item = {"image": several.path / row["image"], "row": row, "caption": row["caption"]}
        check_equal(predictor(item), decoded, activated)
        check_equal(predictor({**row, "image": several.path / row["image"]}), decoded, activated)
    alone = predictor({**row, "image": several.path / row["image"]}, heads="digit")
    assert alone.names == ("digit",)
    with pytest.raises(HeadsError, match="no column 'shade'"):
        predictor({**row.drop("shade"), "image": several.path / row["image"]})
    with pytest.raises(HeadsError, match="an item has 3 inputs"):
        predictor(several.path / row["image"])


SIZES = [(50, 34), (20, 44), (32, 32), (31, 33), (64, 16)]
TFMS = {
    "crop": lambda: Resize(32),
    "squish": lambda: Resize(32, method="squish"),
    "pad": lambda: Resize((32, 24), method="pad", pad_mode="zeros"),
    "reflect": lambda: Resize(32, method="pad"),
    "border": lambda: Resize((16, 32), method="pad", pad_mode="border"),
    "croppad": lambda: CropPad((40, 24)),
    "resized_crop": lambda: RandomResizedCrop(32),
    "two": lambda: [Resize(40), CropPad(32)],
}


@pytest.mark.parametrize("name", TFMS)
def test_item_transforms_are_fastais_to_the_bit(name):
    from fasttransform import Pipeline

    from fastai_heads.export.data import _STEPS

    tfms = TFMS[name]() if isinstance(TFMS[name](), list) else [TFMS[name]()]
    pipe = Pipeline(tfms, split_idx=1)
    steps = [_STEPS[type(f)](f) for f in pipe.fs]
    for w, h in SIZES:
        noise = np.random.default_rng(w * h).integers(0, 255, (h, w, 3), dtype=np.uint8)
        want = pipe((PILImage.create(noise),))[0]
        found, view = see_image(Image.fromarray(noise), steps)
        assert np.array_equal(found, np.asarray(want)) and view.seen == want.size and view.given == (w, h)


@pytest.mark.parametrize("name", TFMS)
def test_places_come_back_to_the_image_as_given(name):
    from fastai.vision.core import TensorPoint
    from fasttransform import Pipeline

    from fastai_heads.export.data import _STEPS

    tfms = TFMS[name]() if isinstance(TFMS[name](), list) else [TFMS[name]()]
    pipe = Pipeline(tfms, split_idx=1)
    steps = [_STEPS[type(f)](f) for f in pipe.fs]
    for w, h in SIZES:
        image = Image.new("RGB", (w, h))
        pixels = np.array([[3.0, 4.0], [w / 2, h - 1.0]], dtype=np.float32)
        scaled = TensorPoint(torch.from_numpy(pixels * 2 / [w, h] - 1).float(), sz=(w, h))
        seen = pipe((PILImage.create(image), scaled))[1]
        _, view = see_image(image, steps)
        assert np.allclose(view.pixels(np.asarray(seen).reshape(-1, 2)), pixels, atol=1e-3)


def test_a_mask_has_the_size_of_the_image_as_given():
    image = Image.new("RGB", (64, 32))
    steps = [{"name": "resize", "size": [16, 16], "method": "crop", "pad_mode": "zeros", "resample": 2}]
    _, view = see_image(image, steps)
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    whole = view.mask(codes, 255)
    assert whole.shape == (32, 64) and (whole[:, :16] == 255).all() and (whole[:, 48:] == 255).all()
    assert np.array_equal(whole[:, 16:48], np.asarray(Image.fromarray(codes).resize((32, 32), Image.NEAREST)))


def test_some_heads_compute_only_what_they_need(images, predictor, scenes, rows):
    path = scenes / rows.image[0]
    ran = []
    layers = dict(predictor.network.network.body.net.named_children())
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: ran.append(n)) for n, m in layers.items()]
    only = predictor(path, heads=("ink", "digit"))
    assert only.names == ("ink", "digit") and as_plain(only.digit) == as_plain(predictor(path).digit)
    for hook in hooks:
        hook.remove()
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        predictor(path, heads="digt")
    with pytest.raises(HeadsError, match="empty"):
        predictor(path, heads=())


def test_a_cut_body_ends_at_the_last_tap(make_images, scenes, rows):
    from fastai_heads.heads import ClassificationHead

    learn = make_images(("digit", "ink"), heads={"digit": ClassificationHead(tap="layer1")})
    predictor, ran = predictor_of(learn), []
    predictor.network.network.body.net.layer3.register_forward_hook(lambda *_: ran.append(3))
    path = scenes / rows.image[0]
    early = predictor(path, heads="digit")
    assert not ran and early.digit == predictor(path).digit and ran
    assert early.digit.label == learn.predict(rows.iloc[0])[0].digit


def test_threads_may_share_it(predictor, scenes, rows):
    paths = [scenes / name for name in rows.image[:8]]
    want = [as_plain(predictor(p)) for p in paths]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: as_plain(predictor(p, heads=None)), paths * 3))
    assert found == want * 3


def test_it_leaves_no_trace(predictor, scenes, rows):
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled()
    predictor(scenes / rows.image[0])
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()
    assert torch.is_grad_enabled() == state[2] and not predictor.network.network.training


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"no image", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        ("nowhere.png", "there is no file"),
        (3, "an image is a path"),
        (None, "is missing"),
        (np.zeros((4, 4, 3)), "of uint8"),
        ({"picture": 3}, "the row has no 'image'"),
    ],
)
def test_what_is_no_image_is_refused(predictor, item, said):
    with pytest.raises(HeadsError, match=said):
        predictor(item)


def test_a_bomb_is_refused_before_it_is_read(predictor, monkeypatch):
    monkeypatch.setattr("fastai_heads.export.images.MAX_PIXELS", 99)
    out = io.BytesIO()
    Image.new("L", (10, 10)).save(out, "PNG")
    with pytest.raises(HeadsError, match="99 pixels at most"):
        predictor(out.getvalue())


def test_images_of_two_sizes_are_one_batch_where_they_are_resized(make_images, predictor):
    two = [np.zeros((40, 30, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)]
    with pytest.raises(HeadsError, match="images of one batch have one size"):
        predictor(two)
    resized = predictor_of(make_images(("mask",), item_tfms=Resize(32)))
    assert [a.mask.codes.shape for a in resized(two)] == [(40, 30), (30, 40)]


def test_a_text_of_fastai(tmp_path):
    from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
    from fastai.data.transforms import ColReader, IndexSplitter
    from fastai.text.data import TextBlock
    from fastai.text.models.awdlstm import AWD_LSTM

    from fastai_heads.bodies.text import TextBody
    from fastai_heads.export.onnx import export_onnx
    from fastai_heads.learner import multihead_learner

    texts = ["The cat sat on the mat", "A DOG ran fast", "no no no never again"]
    frame = pd.DataFrame({"note": texts * 4, "kind": list("abc") * 4, "size": [1.0, 2.0, 4.0] * 4})
    block = DataBlock(
        blocks=(TextBlock.from_df("note"), CategoryBlock, RegressionBlock),
        get_x=ColReader("text"),
        get_y=[ColReader("kind"), ColReader("size")],
        n_inp=1,
        splitter=IndexSplitter([0, 1]),
    )
    arch = TextBody(AWD_LSTM, config={"emb_sz": 4, "n_hid": 6, "n_layers": 2})
    learn = multihead_learner(block.dataloaders(frame, bs=4, num_workers=0), arch)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    predictor = load_bundle(save_bundle(learn, tmp_path / "b"))
    for i in range(3):
        decoded, _, activated = learn.predict(frame.iloc[i])
        check_equal(predictor(frame.iloc[i]), decoded, activated)
        assert as_plain(predictor(texts[i])) == as_plain(predictor(frame.iloc[i]))
    with pytest.raises(HeadsError, match="read by AWD_LSTM"):
        export_onnx(tmp_path / "m.onnx", predictor)
    with pytest.raises(HeadsError, match="a text is a str"):
        predictor([3])
