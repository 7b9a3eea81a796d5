"""A tuple that also answers by name."""

import copy
import pickle

import numpy as np
import pytest
import torch
from fastai.torch_core import apply, to_detach, to_np
from fastcore.basics import tuplify
from fastcore.xtras import is_listy

from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple


@pytest.fixture
def preds():
    return HeadTuple([torch.arange(3.0), "a", None], ["digit", "tags", "_2nd"])


def test_place_attribute_and_key_are_the_same(preds):
    assert preds[0] is preds.digit is preds["digit"]
    assert preds[-1] is preds._2nd is None and preds["tags"] == "a"
    assert preds.names == ("digit", "tags", "_2nd")
    assert list(preds.pairs()) == list(preds.asdict().items()) == list(zip(preds.names, preds))


def test_is_a_tuple(preds):
    assert isinstance(preds, tuple) and is_listy(preds) and tuplify(preds) == preds
    assert HeadTuple((1, 2), "ab") == (1, 2) and hash(HeadTuple((1, 2), "ab")) == hash((1, 2))
    digit, *others = preds
    assert digit is preds.digit and others == ["a", None]
    assert {"digit", "tags", "count"} <= set(dir(preds)) and preds.count("a") == 1


def test_a_slice_is_a_plain_tuple(preds):
    assert type(preds[:2]) is tuple and preds[1:] == ("a", None)


def test_survives_copies_and_pickles(preds):
    ways = [copy.copy, copy.deepcopy, *(lambda p, v=v: pickle.loads(pickle.dumps(p, v)) for v in range(2, 6))]
    for way in ways:
        again = way(preds)
        assert type(again) is HeadTuple and again.names == preds.names
        assert torch.equal(again.digit, preds.digit) and again.tags == "a"
    assert copy.deepcopy(preds).digit is not preds.digit


@pytest.mark.parametrize(
    "rebuild", [to_detach, to_np, lambda p: apply(lambda t: t + 1, p)], ids=["detach", "np", "apply"]
)
def test_what_fastai_rebuilds_is_a_plain_tuple(rebuild):
    again = rebuild(HeadTuple([torch.arange(3.0), torch.ones(2)], ["a", "b"]))
    assert type(again) is tuple and len(again) == 2 and np.asarray(again[1]).shape == (2,)


def test_an_unknown_name_gets_its_closest_matches(preds):
    with pytest.raises(HeadsError, match=r"no head 'digits'. There is digit, tags, _2nd. Did you mean 'digit'"):
        preds["digits"]
    with pytest.raises(AttributeError, match=r"no head 'tag'.*Did you mean 'tags'"):
        _ = preds.tag
    assert not hasattr(preds, "zebra") and getattr(preds, "zebra", 5) == 5
    with pytest.raises(IndexError):
        preds[3]


def test_a_name_for_every_value():
    with pytest.raises(HeadsError, match="`names` has 1 names for 2 values"):
        HeadTuple((1, 2), ["a"])


def test_shows_its_names():
    assert repr(HeadTuple([3, "x"], ["digit", "tag"])) == "(digit=3, tag='x')"


def test_what_a_tensor_has_is_said_to_be_a_heads():
    preds = HeadTuple([1, 2], ["digit", "ink"])
    with pytest.raises(AttributeError, match=r"no head 'argmax'\. There is digit, ink\..*`\.digit\.argmax`"):
        _ = preds.argmax
