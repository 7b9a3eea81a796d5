"""A few items are drawn once, and given as the loop gives them."""

import pytest
import torch
from fastai.data.core import DataLoaders, Datasets
from fasttransform import Transform
from torch import Tensor

from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError


class Reader:
    "Numbers of items, how often each was read, and labels of which some are missing."

    def __init__(self, size=4, blank=()):
        self.size, self.blank, self.reads = size, blank, []

    def x(self, i):
        self.reads.append(i)
        return torch.full((self.size,), float(i))

    def y(self, i):
        return torch.tensor(float("nan") if i in self.blank else float(i))

    def loaders(self, n=60, **kwargs):
        sets = [Datasets(list(range(n)), [[lambda i: self.x(i)], [lambda i: self.y(i)]]) for _ in range(2)]
        return DataLoaders.from_dsets(*sets, bs=4, num_workers=0, **kwargs)


def test_every_item_is_read_once_however_often_it_is_asked_for():
    reader = Reader()
    dls = reader.loaders()
    reader.reads.clear()
    state = torch.get_rng_state()
    sample = draw_sample(dls)
    (x,), ((again,), (y,)) = sample.inputs(), sample.batch()
    assert reader.reads == [0, 20, 40] and torch.equal(state, torch.get_rng_state())
    assert x.tolist() == [[0] * 4] and again[:, 0].tolist() == y.tolist() == [0, 20, 40]


def test_transforms_that_are_added_later_are_applied_to_what_was_drawn():
    class Add(Transform):
        def encodes(self, x: Tensor):
            return x.add_(1)  # in place: what was drawn stays

    dls = Reader().loaders()
    sample = draw_sample(dls, n=2)
    dls.add_tfms([Add()], "after_batch")
    assert [sample.batch()[0][0][:, 0].tolist() for _ in range(2)] == [[1, 31], [1, 31]]


@pytest.mark.parametrize(("size", "n"), [(4, 3), (70_000, 3), (200_001, 2)])
def test_fewer_of_what_is_large(size, n):
    assert len(draw_sample(Reader(size).loaders()).batch()[0][0]) == n


def test_a_labelled_item_is_among_them_where_labels_may_be_missing():
    dls = Reader(blank=(*range(7), 20, 40)).loaders()
    partial, whole = (Target("y", 0, "regression", partial=known) for known in (True, False))
    assert draw_sample(dls, [partial]).batch()[1][0].tolist()[-1] == 7
    assert draw_sample(dls, [whole]).batch()[1][0].isnan().all()
    assert len(draw_sample(Reader(blank=(0,)).loaders(), [partial]).batch()[1][0]) == 3, "one of the three has a label"


def test_what_makes_no_batch_and_what_fails_is_told():
    class Fails(Transform):
        def encodes(self, x: Tensor):
            raise TypeError("not so")

    class Uneven(Reader):
        def x(self, i):
            return torch.zeros(i + 1)

    with pytest.raises(HeadsError, match=r"`dls.train`: items 0, 20, 40 make no batch: .*not the same size"):
        draw_sample(Uneven().loaders())
    for event in ("after_item", "after_batch"):
        with pytest.raises(HeadsError, match=r"its transforms fail: TypeError: not so") as error:
            draw_sample(Reader().loaders(**{event: [Fails()]})).batch()
        assert error.value.parameter == "dls"
