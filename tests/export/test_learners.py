"""Learners of every making leave the house: what is missing, bodies that share weights, strategies with a state."""

import warnings

import pytest
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock

from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.together import On
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.texts import TokenizerBlock
from fastai_heads.export.bundle import load_bundle, save_bundle
from fastai_heads.learner import multihead_learner
from fastai_heads.training.strategies.disjoint import Disjoint

LABELS = (CategoryBlock(vocab=list("0123456789")), RegressionBlock)
READ_LABELS = (ColReader("digit"), ColReader("ink"))


def check_same(predictor, learn, rows, items):
    "Compare with `learn.predict`, one by one and in a batch."
    batch = predictor(items)
    for i, item in enumerate(items):
        decoded, _, activated = learn.predict(rows.iloc[i])
        answer = predictor(item)
        assert answer.digit.label == decoded.digit and answer.ink == float(decoded.ink)
        assert answer.digit.probability == float(activated.digit.max())
        assert batch[i].ink == pytest.approx(answer.ink, rel=1e-4)


def test_inputs_that_are_missing(scenes, rows, hush, small_text, tmp_path):
    frame = rows.assign(photo=[None if i % 4 == 3 else scenes / image for i, image in enumerate(rows.image)])
    frame["note"] = [None if i % 5 == 2 else "the digit is even" for i in range(len(rows))]
    frame["kind"] = [None if i % 3 == 1 else "ab"[i % 2] for i in range(len(rows))]
    frame["size"] = [None if i % 3 == 1 else float(i) for i in range(len(rows))]
    tokenizer, encoder = small_text
    inputs = (ImageBlock, TabularBlock(["kind"], ["size"]), TokenizerBlock(tokenizer))
    read = (ColReader("photo"), lambda row: row, ColReader("note"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = DataBlock(
            blocks=(*map(PartialBlock, inputs), *LABELS),
            getters=[*read, *READ_LABELS],
            n_inp=3,
            splitter=IndexSplitter(range(4)),
            item_tfms=Resize(32),
        ).dataloaders(frame, bs=8, num_workers=0)
        arch = {"photo": "test_resnet", "row": TabularBody(layers=[6]), "note": TextBody(encoder)}
        learn = hush(multihead_learner(dls, arch, pretrained=False))
    predictor = load_bundle(save_bundle(learn, tmp_path / "b"))
    check_same(predictor, learn, frame, frame.to_dict("records")[:12])


def test_two_bodies_of_the_same_weights(scenes, rows, hush, tmp_path):
    frame = rows.assign(left=rows.image, right=rows.image[::-1].to_numpy())
    dls = DataBlock(
        blocks=(ImageBlock, ImageBlock, *LABELS),
        getters=[ColReader("left", pref=scenes), ColReader("right", pref=scenes), *READ_LABELS],
        n_inp=2,
        splitter=IndexSplitter(range(4)),
        item_tfms=Resize(32),
    ).dataloaders(frame, bs=8, num_workers=0)
    learn = hush(multihead_learner(dls, {"left": "test_resnet", "right": On("right", same="left")}, pretrained=False))
    predictor = load_bundle(save_bundle(learn, tmp_path / "b"))
    tensors = predictor.manifest["weights"]["tensors"]
    assert predictor.network.network.body.owners["right"] == "left" and len(tensors) == len(learn.model.state_dict())
    items = [{"left": scenes / left, "right": scenes / right} for left, right in zip(frame.left, frame.right)]
    check_same(predictor, learn, frame, items[:6])


def test_a_learner_that_was_trained_with_an_optimizer_for_each_loss(make_images, rows, scenes, hush, tmp_path):
    learn = make_images(("digit", "ink"), arch="test_resnet", strategy=Disjoint())
    learn.fit(1, 1e-3)
    bundle = save_bundle(learn, tmp_path / "b")
    check_same(load_bundle(bundle), learn, rows, [scenes / image for image in rows.image[:4]])
    again = load_bundle(bundle, learner=True, dls=learn.dls, strategy=Disjoint())
    hush(again).fit(1, 1e-3)
    assert type(again.strategy) is Disjoint
