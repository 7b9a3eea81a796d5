"""Files of weights from strangers: whatever reads them runs nothing of them."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from fastai_heads.bodies.recurrent import _load_encoder
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.learner import MultiHeadLearner, multihead_learner

SOURCE = Path(__file__).parents[1] / "fastai_heads"
OWN = {"learner/export.py": 1}  # file → calls that read a pickle which this very process has just written


class Runs:
    "Writes a file where it is unpickled."

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def learn(tmp_path_factory) -> MultiHeadLearner:
    path = tmp_path_factory.mktemp("hostile")
    return multihead_learner(digits_dls("digit", bs=4, path=path / "s", n=10, size=32), "test_resnet", pretrained=False)


def encoder(learn: MultiHeadLearner, file: Path) -> None:
    from types import SimpleNamespace

    _load_encoder(torch.nn.Linear(1, 1), SimpleNamespace(weights=file, vocab=None), SimpleNamespace(n_tokens=1))


READERS: dict[str, Callable[[MultiHeadLearner, Path], object]] = {
    "load": lambda learn, file: learn.load(file),
    "load, with_opt": lambda learn, file: learn.load(file, with_opt=True),
    "load, not strict": lambda learn, file: learn.load(file, strict=False),
    "load, weights_only=False": lambda learn, file: learn.load(file, weights_only=False),
    "load_vision_weights": lambda learn, file: learn.load_vision_weights(file, head="digit"),
    "encoder of a TextBody": encoder,
}


def contents(learn: MultiHeadLearner, trace: Path) -> dict[str, object]:
    state = learn.model.state_dict()
    return {
        "alone": Runs(trace),
        "among weights": {**state, "more": Runs(trace)},
        "in the optimizer": {"model": state, "opt": Runs(trace)},
    }


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("content", ["alone", "among weights", "in the optimizer"])
@pytest.mark.parametrize("reader", READERS)
def test_no_code_of_a_file_runs(learn, tmp_path, reader, content, form):
    trace, file = tmp_path / "ran", tmp_path / "hostile.pth"
    torch.save(contents(learn, trace)[content], file, _use_new_zipfile_serialization=form == "zip")
    before = [t.clone() for t in learn.model.state_dict().values()]
    with pytest.raises(HeadsError, match=r"hostile\.pth"):
        READERS[reader](learn, file)
    assert not trace.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.state_dict().values()))


def test_the_file_is_hostile(tmp_path):
    torch.save(Runs(tmp_path / "ran"), tmp_path / "hostile.pth")
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


@cache
def all_calls() -> list[tuple[str, str, str]]:
    "List every call in the package: its file, what is called, and all of it."
    return [
        (path.relative_to(SOURCE).as_posix(), ast.unparse(node.func), ast.unparse(node))
        for path in sorted(SOURCE.rglob("*.py"))
        if "load" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
    ]


def calls(name: str) -> list[tuple[str, str]]:
    "List the calls of a name, each with its file."
    return [(file, text) for file, called, text in all_calls() if called == name]


def test_every_read_of_weights_is_of_weights_only():
    unsafe = [file for file, call in calls("torch.load") if "weights_only=True" not in call]
    assert {file: unsafe.count(file) for file in unsafe} == OWN
    assert not calls("load_learner") and not calls("pickle.load")
    assert {file for file, _ in calls("pickle.loads")} <= {"archs/proof/checks.py"}  # of what it has just pickled
