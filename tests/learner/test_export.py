"""`export` leaves auxiliary heads out, and the learner as it was."""

import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from fastai.learner import load_learner
from torch import nn
from torchjd.aggregation import UPGrad

from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import WeightedSum
from fastai_heads.trunks import Trunk


def loaded(learn, name="export.pkl"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_learner(learn.path / name)
    found.remove_cbs([cb for cb in found.cbs if cb.name == "progress"])
    return found


@pytest.fixture
def make_three(make_learner):
    "A learner of two targets with an auxiliary head that reads a trunk of its own, first in the order."

    def make(**kwargs):
        heads = {
            "aux": ClassificationHead(target="digit", train_only=True, tap="neck"),
            "ink": RegressionHead(lr_mult=2.0),
            "digit": ClassificationHead(),
        }
        trunk = {"neck": Trunk(lambda n: nn.Conv2d(n, 8, 1))}
        learn = make_learner("digit", "ink", heads=heads, trunk=trunk, **kwargs)
        learn.logger = print
        return learn

    return make


def test_auxiliary_heads_stay_at_home(make_three, table, scenes):
    learn = make_three()
    learn.fit(1)
    item, opt = scenes / table.image[0], learn.opt
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    expected = learn.predict(item)
    learn.export()
    found = loaded(learn)
    assert found.heads.names == ("ink", "digit") and [m.name for m in found.metrics] == ["ink_mae", "digit_accuracy"]
    assert not any("aux" in name or "neck" in name for name in found.model.state_dict())
    values, decoded, activated = found.predict(item)
    assert values.names == decoded.names == activated.names == ("ink", "digit")
    assert str(values) == str(expected[0])
    assert all(torch.equal(activated[name], expected[2][name]) for name in activated.names)
    assert learn.heads.names == ("aux", "ink", "digit") and learn.opt is opt and len(learn.dls.train_ds) == 32
    assert all(torch.equal(before[name], tensor) for name, tensor in learn.model.state_dict().items())
    assert str(learn.predict(item)[0]) == str(expected[0])
    learn.fit(1)


@pytest.mark.parametrize(
    ("strategy", "kind"), [("UW", WeightedSum), (Balance(UPGrad()), Balance), (None, WeightedSum)], ids=str
)
def test_a_strategy_for_fewer_heads(make_three, make_dls, strategy, kind):
    learn = make_three(strategy=strategy)
    mine = learn.strategy
    learn.export()
    assert learn.strategy is mine
    found = loaded(learn)
    assert isinstance(found.strategy, kind)
    found.dls = make_dls("digit", "ink")
    found.logger = lambda row: None
    found.fit(1)


def test_an_export_that_fails_leaves_all_as_it_was(make_three):
    learn = make_three()
    learn.fit(1)
    learn.export()
    old, dls, opt = (learn.path / "export.pkl").read_bytes(), learn.dls, learn.opt

    class Full(pickle.Pickler):
        def dump(self, obj):
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        learn.export(pickle_module=SimpleNamespace(Pickler=Full, __name__="full"))
    assert learn.dls is dls and learn.opt is opt and learn.heads.names == ("aux", "ink", "digit")
    assert (learn.path / "export.pkl").read_bytes() == old, "the old file is there"
    assert [p.name for p in learn.path.glob("*.part")] == []
    learn.fit(1)


def test_auxiliary_heads_alone_are_nothing_to_export(make_learner):
    aux = ClassificationHead(target="digit", train_only=True)
    learn = make_learner("digit", "ink", heads={"aux": aux, "digit": None, "ink": None})
    with pytest.raises(HeadsError, match="`export` leaves auxiliary heads out"):
        learn.export()
