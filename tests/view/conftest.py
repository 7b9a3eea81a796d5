"""Fixtures of the tests of views: small data and quick learners."""

from collections.abc import Callable

import fastai.vision.all  # noqa: F401  users import it: `fit_one_cycle`, `fine_tune`, `lr_find` come with it
import pytest
from fastai.data.core import DataLoaders

from fastai_heads.data.digits import digit_scenes, digits_dls
from fastai_heads.learner import MultiHeadLearner, multihead_learner

N, SIDE = 40, 48  # 32 scenes to train on, 8 to validate


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    "Write the scenes once, and give their folder."
    path = tmp_path_factory.mktemp("scenes") / "digits"
    digit_scenes(path, n=N, size=SIDE)
    return path


@pytest.fixture
def make_dls(scenes, tmp_path) -> Callable[..., DataLoaders]:
    "DataLoaders of this test alone: `make_dls('digit', 'ink', bs=8)`."

    def make(*targets: str, bs: int = 8, **kwargs) -> DataLoaders:
        dls = digits_dls(targets or ("digit",), bs=bs, path=scenes, n=N, size=SIDE, **kwargs)
        dls.path = tmp_path
        return dls

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
