"""The ground of every test: one thread, no screen, no home folder, its own seed, no open figure."""

import os
import re
import tempfile
import zlib
from pathlib import Path

import pytest

# set before torch and matplotlib are imported; the processes that a test starts inherit it
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import matplotlib.pyplot as plt
import torch
from fastai.torch_core import set_seed


def pytest_configure(config: pytest.Config) -> None:
    "Give the run a home of its own. xdist's workers inherit it."
    if hasattr(config, "workerinput"):
        return
    home = tempfile.TemporaryDirectory(prefix="fastai_heads_tests_")
    config.add_cleanup(home.cleanup)
    for name in ("FASTAI_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TORCH_HOME"):
        folder = Path(home.name, name.lower())
        folder.mkdir()
        os.environ[name] = str(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take addresses out of the names that `ids=str` gives (`<function f at 0x7f…>`), else xdist's workers find
    different tests."""
    parametrize = metafunc.parametrize

    def without_addresses(*args, ids=None, **kwargs):
        if callable(ids):
            name_of = ids

            def ids(value: object) -> str:
                return re.sub(r" at 0x[0-9a-f]+", "", str(name_of(value)))

        parametrize(*args, ids=ids, **kwargs)

    metafunc.parametrize = without_addresses


def pytest_runtest_setup(item: pytest.Item) -> None:
    "Skip a test marked `gpu` on a machine without one."
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def seed_by(name: str) -> None:
    "Seed Python, numpy and torch by a name. Other names give other numbers."
    set_seed(zlib.crc32(name.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    "Seed a fixture by its name, so that it is the same for whichever test asks first."
    seed_by(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    "Seed a test by its name, so that it is the same whatever ran before it."
    seed_by(item.nodeid)


@pytest.fixture(autouse=True)
def _no_figure_left():
    "Close the figures that a test has drawn."
    yield
    plt.close("all")


@pytest.fixture
def torch_home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # an empty folder in which torch looks for pretrained weights and keeps them
    "Make a home for torch's weights that belongs to this test alone."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch").mkdir()
    return tmp_path / "torch"
