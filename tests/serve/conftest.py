"""Predictors behind a service, made once: a head of every kind over images, and several inputs."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fastai.vision.all  # noqa: F401  users import it
import pandas as pd
import pytest
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from starlette.testclient import TestClient

from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.data.inputs import dls_inputs
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.texts import TokenizerBlock
from fastai_heads.export.bundle import load_bundle, predictor_of, save_bundle
from fastai_heads.export.onnx import export_onnx
from fastai_heads.export.predictor import Predictor
from fastai_heads.heads import DetectionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.serve.app import make_app

TARGETS = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    "Write scenes once, and give their folder."
    path = tmp_path_factory.mktemp("scenes") / "digits"
    digit_scenes(path, n=24, size=40)
    return path


@pytest.fixture(scope="session")
def pictures(folder) -> list[Path]:
    "List the scenes."
    return sorted((folder / "images").iterdir())


@pytest.fixture(scope="session")
def bundle(folder, tmp_path_factory) -> Path:
    "Save a learner with a head of every kind, over images that are resized."
    frame = pd.read_csv(folder / "labels.csv", dtype={"digit": str})
    dls = digits_block(folder, TARGETS, item_tfms=Resize(32)).dataloaders(frame, bs=8, num_workers=0)
    heads = {"boxes": DetectionHead(channels=64, extra_levels=0, score_thresh=0.0, decode_score=0.01)}
    learn = multihead_learner(dls, "test_resnet", pretrained=False, heads=heads)
    return save_bundle(learn, tmp_path_factory.mktemp("bundle") / "all kinds")


@pytest.fixture(scope="session")
def predictor(bundle) -> Predictor:
    "Load the bundle."
    return load_bundle(bundle)


@pytest.fixture(scope="session")
def onnx_file(predictor, tmp_path_factory) -> Path:
    "Export the same network, without the boxes, which take their time."
    heads = [head for head in predictor.heads if head != "boxes"]
    return export_onnx(tmp_path_factory.mktemp("onnx") / "digits.onnx", predictor, heads)


@pytest.fixture(scope="session")
def unresized(folder) -> Predictor:
    "Make a predictor over images of any size."
    frame = pd.read_csv(folder / "labels.csv", dtype={"digit": str})
    dls = digits_block(folder, ("digit", "mask")).dataloaders(frame, bs=8, num_workers=0)
    return predictor_of(multihead_learner(dls, "test_resnet", pretrained=False))


@pytest.fixture(scope="session")
def several(folder) -> Predictor:
    "Make a predictor over an image that may be missing, a row and a text."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "even": 2, "odd": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=4, max_position_embeddings=32, **sizes))
    frame = pd.read_csv(folder / "labels.csv", dtype={"digit": str})
    frame["photo"] = [None if i % 4 == 3 else folder / image for i, image in enumerate(frame["image"])]
    frame["note"] = ["even" if int(digit) % 2 == 0 else "odd" for digit in frame["digit"]]
    blocks = (PartialBlock(ImageBlock), TabularBlock(["note"], ["ink"]), TokenizerBlock(tokenizer))
    getters = [ColReader("photo"), lambda row: row, ColReader("note"), ColReader("digit"), ColReader("ink")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = DataBlock(
            blocks=(*blocks, CategoryBlock(vocab=list("0123456789")), RegressionBlock),
            getters=getters,
            n_inp=3,
            splitter=IndexSplitter(range(4)),
            item_tfms=Resize(32),
        ).dataloaders(frame, bs=8, num_workers=0)
        names = [source.name for source in dls_inputs(dls)]
        arch = dict(zip(names, ("test_resnet", TabularBody(layers=[6]), TextBody(encoder))))
        return predictor_of(multihead_learner(dls, arch, pretrained=False))


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    "Give a function that serves a predictor until the test ends, and gives a client."
    clients = []

    def start(predictor: Predictor, *args, **kwargs) -> TestClient:
        client = TestClient(make_app(predictor, *args, **kwargs), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve, predictor) -> TestClient:
    "Serve the head of every kind."
    return serve(predictor, "digits")
