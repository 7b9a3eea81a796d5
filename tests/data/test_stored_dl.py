"""A loader over what is stored goes through the items as the loader that it stands for."""

import numpy as np
import pytest
import torch
from fastai.callback.data import WeightedDL
from fastai.torch_core import set_seed

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.stored import Column
from fastai_heads.data.stored_dl import Stored, StoredDL


def places(n, views=1):
    "Store the place of every item."
    values = torch.arange(n * views)[:, None].float()
    column = Column.empty(n * views, values)
    column[np.arange(n * views)] = values
    return Stored({"features": column}, (column,), views)


@pytest.fixture
def source(tmp_path):
    def make(**kwargs):
        set_seed(0)
        return digits_dls(path=tmp_path, n=20, size=32, bs=4).train.new(**kwargs)

    return make


@pytest.mark.parametrize("kwargs", [{}, {"drop_last": False}, {"shuffle": False}, {"cls": WeightedDL}], ids=str)
def test_the_order_is_that_of_the_loader(source, kwargs):
    ours, theirs = StoredDL(source(**kwargs), places(16)), source(**kwargs)
    theirs.create_item = lambda i: i
    theirs.after_item = theirs.before_batch = theirs.after_batch = lambda x: x
    theirs.create_batch, theirs.retain = list, lambda res, b: res
    assert len(ours) == len(theirs)
    for seed in (1, 2):
        set_seed(seed)
        wanted = [list(b) for b in theirs]
        state = torch.get_rng_state()
        set_seed(seed)
        found = list(ours)
        assert [b[1][:, 0].tolist() for b in found] == wanted and torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(taps["features"], y) for taps, y in found)


def test_views_are_drawn_for_each_item(source):
    dl = StoredDL(source(), places(16, views=4))
    epochs = [torch.cat([y[:, 0] for _, y in dl]) for _ in range(3)]
    assert all(sorted((e % 16).tolist()) == list(range(16)) for e in epochs)
    assert len(torch.cat(epochs).unique()) > 16


def test_what_is_made_of_it_reads_items(source):
    dl = StoredDL(source(), places(16))
    assert not isinstance(dl.new(shuffle=False), StoredDL) and dl.new(shuffle=False).one_batch()[0].ndim == 4
    assert dl.after_batch(dl.do_batch([dl.do_item(0)]))[0].ndim == 4 and dl.vocab == dl.source.vocab
