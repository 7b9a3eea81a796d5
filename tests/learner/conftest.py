"""Fixtures of the tests of the learner: small data and quick learners."""

from collections.abc import Callable

import fastai.vision.all  # noqa: F401  users import it: `fit_one_cycle`, `fine_tune`, `lr_find` come with it
import pandas as pd
import pytest
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter

from fastai_heads.data.digits import digit_scenes, digits_block, digits_dls
from fastai_heads.learner import MultiHeadLearner, multihead_learner

from .inputs import write_photos

N, SIDE = 40, 32  # 32 scenes to train on, 8 to validate


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    "Write the scenes once, and give their folder."
    path = tmp_path_factory.mktemp("scenes") / "digits"
    digit_scenes(path, n=N, size=SIDE)
    return path


@pytest.fixture
def table(scenes) -> pd.DataFrame:
    "Read the scenes' labels."
    return pd.read_csv(scenes / "labels.csv", dtype={"digit": str})


@pytest.fixture
def make_dls(scenes, tmp_path) -> Callable[..., DataLoaders]:
    "DataLoaders of this test alone: `make_dls('digit', 'ink', bs=8)`."

    def make(*targets: str, bs: int = 8, **kwargs) -> DataLoaders:
        dls = digits_dls(targets or ("digit",), bs=bs, path=scenes, n=N, size=SIDE, **kwargs)
        dls.path = tmp_path
        return dls

    return make


@pytest.fixture
def split_dls(scenes, table, tmp_path) -> Callable[..., DataLoaders]:
    "DataLoaders with another validation set: `split_dls([3], 'digit')`."

    def make(valid, *targets: str, bs: int = 8, **kwargs) -> DataLoaders:
        block = digits_block(scenes, targets or ("digit",))
        block.splitter = IndexSplitter(valid)
        return block.dataloaders(table, bs=bs, num_workers=0, path=tmp_path, **kwargs)

    return make


@pytest.fixture(scope="session")
def quiet() -> Callable:
    "Makes a learner say nothing while it trains; its rows of the table are in `learn.rows`."

    def hush(learn):
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
        learn.rows = []
        learn.logger = lambda row: learn.rows.append(list(row))
        return learn

    return hush


@pytest.fixture
def make_learner(make_dls, quiet) -> Callable[..., MultiHeadLearner]:
    "Give a function that makes a learner without a progress bar: `make_learner('digit', 'ink', heads=…)`."

    def make(*targets: str, arch="test_resnet", bs: int = 8, dls=None, **kwargs) -> MultiHeadLearner:
        dls = make_dls(*targets, bs=bs) if dls is None else dls
        return quiet(multihead_learner(dls, arch, **{"pretrained": False, **kwargs}))

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Photographs for learners of several inputs."
    path = tmp_path_factory.mktemp("photos")
    write_photos(path)
    return path
