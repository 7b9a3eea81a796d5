"""Fixtures of the tests of training: digits with five targets, whole and with gaps, and learners over them."""

import pytest
import torch

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.targets import Target
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.model import Heads
from fastai_heads.training.bound import BoundHead, BoundHeads

ALL = ("digit", "tags", "ink", "centre", "box")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    "Write sixty digit scenes, and give their folder."
    return tmp_path_factory.mktemp("training") / "scenes"


@pytest.fixture
def load(scenes):
    "Give a function: targets, and the share of labels that are missing → the `DataLoaders`."

    def make(targets=ALL, missing=0.0, bs=12):
        return digits_dls(targets, n=60, size=32, bs=bs, missing=missing, path=scenes)

    return make


@pytest.fixture
def learner(load):
    "Give a function: targets, and arguments of `multihead_learner` → a learner on a small arch."

    def make(targets=ALL, heads=None, missing=0.0, **kwargs):
        return multihead_learner(load(targets, missing), "test_resnet", heads=heads, pretrained=False, **kwargs)

    return make


@pytest.fixture
def bind():
    "Give a function: name → (fitted spec, target) → bound heads. Their modules are single linear layers of 4 numbers."

    def make(specs) -> BoundHeads:
        modules = {name: torch.nn.Linear(4, spec.n_out) for name, (spec, _) in specs.items()}
        heads = Heads(modules, dict.fromkeys(modules, ("v",)))
        return BoundHeads({name: BoundHead(name, spec, t, heads) for name, (spec, t) in specs.items()})

    return make


@pytest.fixture
def three(bind):
    "Give a function: partial or not, and fields of the specs → bound heads of a class, tags and a number; and a batch."
    from fastai_heads.heads.classification import ClassificationHead
    from fastai_heads.heads.multilabel import MultiLabelHead
    from fastai_heads.heads.regression import RegressionHead

    def make(partial=False, **fields):
        targets = [
            Target("age", 0, "regression", 2, partial=partial),
            Target("breed", 1, "category", 3, ("cat", "dog", "fox"), partial=partial),
            Target("tags", 2, "multilabel", 3, ("big", "old", "wet"), partial=partial),
        ]
        specs = {
            "breed": (ClassificationHead(**fields.get("breed", {})), targets[1]),
            "tags": (MultiLabelHead(**fields.get("tags", {})), targets[2]),
            "age": (RegressionHead(standardize=([10, 20], [2, 4]), **fields.get("age", {})), targets[0]),
        }
        return bind({name: (spec.fit(t, lambda: None), t) for name, (spec, t) in specs.items()})

    return make


@pytest.fixture
def batch():
    "(predictions in head order, targets in target order) for `three`, every prediction with its graph."
    preds = tuple(torch.randn(8, n, requires_grad=True) for n in (3, 3, 2))
    targs = (10 + torch.randn(8, 2), torch.randint(0, 3, (8,)), torch.randint(0, 2, (8, 3)).float())
    return preds, targs
