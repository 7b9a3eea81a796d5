"""The pass over the items in which taps are stored."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fastai.data.load import SkipItemException

from fastai_heads.bodies.stored import StoredBody
from fastai_heads.data.stored import Column
from fastai_heads.data.tap_cache import TapCache
from fastai_heads.errors import HeadsError
from fastai_heads.learner.filling import Filling, put


@pytest.fixture
def fill(make_learner):
    "Store the taps of a loader in memory."
    learn = make_learner("digit")
    body = StoredBody.of(learn.model[0], learn.model[1].pools())

    def run(**kwargs):
        sizes, store = [], body.store
        body.store = lambda *inputs: sizes.append(len(inputs[0])) or store(*inputs)
        dl = learn.dls.train.new(**kwargs)
        stored = Filling(body, dl, 1, None, nullcontext, False).store(TapCache(learn.path / "taps"), "key")
        body.store = store
        return stored, sizes, learn, dl

    return run


def test_batches_of_training_are_whole(fill):
    assert fill(bs=12)[1] == [12, 12, 12]
    assert fill(bs=12, drop_last=False)[1] == [12, 12, 8]
    assert fill(bs=12, drop_last=False, shuffle=False)[1] == [12, 12, 8]


def test_every_item_is_at_its_place_and_nothing_else_has_changed(fill):
    stored, _, learn, dl = fill(bs=12)
    _, y = zip(*(dl.do_item(i) for i in range(32)))
    assert torch.equal(stored.targets[0][np.arange(32)], torch.stack(y)) and learn.model.training
    assert all(m.training for m in learn.model.modules()) and dl.shuffle


def test_items_that_are_skipped_are_refused(fill):
    dataset = fill()[2].dls.train_ds

    def skips(i):
        if i == 3:
            raise SkipItemException
        return dataset[i]

    with pytest.raises(HeadsError, match="`cache`: the data skips items"):
        fill(bs=8, create_item=skips)


def test_batches_of_several_sizes_are_refused():
    column = Column.empty(4, torch.zeros(2, 5, 4, 4))
    with pytest.raises(HeadsError, match=r"`cache`: tap 'features' is \(5, 4, 4\) in one batch and \(5, 4, 8\)"):
        put(column, np.arange(2), torch.zeros(2, 5, 4, 8), "features")
