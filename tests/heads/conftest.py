"""Fixtures of the tests of heads: targets as data would give them, and digits with five targets."""

import pytest
import torch

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.targets import Target

KINDS = {
    "category": Target("breed", 0, "category", 3, ("cat", "dog", "fox")),
    "multilabel": Target("tags", 0, "multilabel", 3, ("big", "old", "wet")),
    "regression": Target("age", 0, "regression", 1),
    "point": Target("nose", 0, "point", 2),
    "box": Target("box", 0, "box", 4),
}


@pytest.fixture
def target():
    "Give a function: kind → its target. Fields of your own may be passed."

    def make(kind: str, **fields) -> Target:
        base = KINDS.get(kind, Target("thing", 0, kind))
        return Target(**{**vars(base), **fields})

    return make


@pytest.fixture
def no_labels():
    "For specs that must not read the labels."

    def labels() -> torch.Tensor:
        raise AssertionError("the labels were read")

    return labels


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    "Forty digits of 32 pixels: class, tags, number, point and box."
    path = tmp_path_factory.mktemp("digits") / "scenes"
    return digits_dls(("digit", "tags", "ink", "centre", "box"), n=40, size=32, bs=8, path=path)
