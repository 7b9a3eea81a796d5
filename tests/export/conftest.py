"""Learners of every kind of head and of input, made once, with a bundle of each."""

import warnings
from collections.abc import Callable
from pathlib import Path

import fastai.vision.all  # noqa: F401  users import it
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from torch import nn

from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.captions import captioned_scenes
from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.texts import TokenizerBlock
from fastai_heads.export.onnx import export_onnx
from fastai_heads.heads import ClassificationHead, DetectionHead, RegressionHead
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.trunks import Trunk

N, SIDE = 24, 32
ALL = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")


def hushed(learn: MultiHeadLearner) -> MultiHeadLearner:
    "Take the progress bar off, and let batch norm and last layers say more than they do at the start."
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda row: None
    with torch.no_grad():
        for module in learn.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return learn


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    "Write scenes once, and give their folder."
    path = tmp_path_factory.mktemp("scenes") / "digits"
    digit_scenes(path, n=N, size=SIDE)
    return path


@pytest.fixture(scope="session")
def rows(scenes) -> pd.DataFrame:
    "Read the scenes' labels."
    return pd.read_csv(scenes / "labels.csv", dtype={"digit": str})


@pytest.fixture(scope="session")
def make_images(scenes, rows, tmp_path_factory) -> Callable[..., MultiHeadLearner]:
    "Give a function that makes a learner of images."

    def make(targets=("digit",), item_tfms=None, arch="resnet10t", **kwargs) -> MultiHeadLearner:
        block = digits_block(scenes, targets, item_tfms=item_tfms)
        dls = block.dataloaders(rows, bs=8, num_workers=0, path=tmp_path_factory.mktemp("learner"))
        return hushed(multihead_learner(dls, arch, **{"pretrained": False, **kwargs}))

    return make


@pytest.fixture(scope="session")
def images(make_images) -> MultiHeadLearner:
    "Make a learner of images with a head of every kind, one of them auxiliary, one on a trunk."
    heads = {
        "boxes": DetectionHead(channels=64, score_thresh=0.0, decode_score=0.01),
        "extra": ClassificationHead(target="digit", train_only=True, tap="layer1"),
        "ink": RegressionHead(tap="neck"),
    }
    trunk = {"neck": Trunk(nn.Conv2d(512, 8, 1))}
    return make_images(ALL, heads=heads, trunk=trunk)


def words() -> object:
    "Make a small tokenizer of the package `tokenizers`."
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = [
        "[UNK]",
        "[PAD]",
        "a",
        "an",
        "number",
        "written",
        "by",
        "hand",
        "the",
        "digit",
        "here",
        "is",
        "even",
        "odd",
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def encoder() -> nn.Module:
    "Make a small network of transformers."
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=14, max_position_embeddings=32, **sizes))


@pytest.fixture(scope="session")
def hush() -> Callable[[MultiHeadLearner], MultiHeadLearner]:
    "Give the function that quietens a learner."
    return hushed


@pytest.fixture
def small_text() -> tuple[object, nn.Module]:
    "Make a small tokenizer, and a network for its tokens."
    return words(), encoder()


@pytest.fixture(scope="session")
def several(tmp_path_factory) -> MultiHeadLearner:
    "Make a learner of an image, a row with gaps and a text."
    path = tmp_path_factory.mktemp("captions") / "scenes"
    frame = captioned_scenes(path, n=N, size=40)
    frame["ink"] = frame["ink"].where(frame.index % 5 > 0)
    frame["shade"] = ["dark" if tags.startswith("even") else "pale" for tags in frame["tags"]]
    row = TabularBlock(["shade", "count"], ["ink"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = DataBlock(
            blocks=(ImageBlock, row, TokenizerBlock(words()), CategoryBlock, CategoryBlock(vocab=list("0123456789"))),
            getters=[
                ColReader("image", pref=path), lambda r: r, *(ColReader(c) for c in ("caption", "holds", "digit")),
            ],
            n_inp=3,
            splitter=IndexSplitter(range(4)),
            item_tfms=Resize(32),
        ).dataloaders(frame, bs=8, num_workers=0, path=path)  # fmt: skip
        from fastai_heads.bodies.text import TextBody

        arch = {"image": "resnet10t", "row": TabularBody(layers=[6, 5]), "caption": TextBody(encoder())}
        learn = hushed(multihead_learner(dls, arch, pretrained=False))
    learn.frame = frame
    return learn


@pytest.fixture(scope="session")
def several_file(several, tmp_path_factory) -> Path:
    "Export it once, in 8 bits."
    return export_onnx(tmp_path_factory.mktemp("onnx") / "several.onnx", several, int8=True)
