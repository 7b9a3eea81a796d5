"""The part of the data that one rank has; the ranks are made here one after another, in one process."""

from types import SimpleNamespace

import pytest
from fastai.data.load import DataLoader

from fastai_heads.training.ranks.joint import SharedLoader, is_shared
from fastai_heads.training.ranks.loader import RanksDL

SIZES = [(1, 4, 2), (2, 4, 3), (8, 4, 2), (9, 4, 2), (10, 4, 3), (23, 4, 2), (30, 1, 4)]  # items, batch size, ranks


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "bs", "ranks"), SIZES)
def test_the_ranks_have_parts_of_the_batches_of_one_process(n, bs, ranks, drop_last):
    data = DataLoader(list(range(n)), bs=bs, drop_last=drop_last)
    loaders = [RanksDL(data, rank=rank, world_size=ranks, device="cpu") for rank in range(ranks)]
    batches = [[(b.tolist(), dl.own_items, dl.items) for b in dl] for dl in loaders]
    assert {len(dl) for dl in loaders} == {len(b) for b in batches}
    wanted = [b.tolist() for b in DataLoader(list(range(n)), bs=bs * ranks, drop_last=drop_last)]
    joined = [[i for part, own, _ in parts for i in part[:own]] for parts in zip(*batches)]
    assert joined == wanted
    for parts, whole in zip(zip(*batches), wanted):
        assert len({len(part) for part, _, _ in parts}) == 1 and {items for _, _, items in parts} == {len(whole)}


def test_what_a_batch_is_over_all_ranks_goes_with_the_batch():
    dl = RanksDL(DataLoader(list(range(8)), bs=2), rank=0, world_size=2, device="cpu")
    assert isinstance(dl, SharedLoader) and dl.joint is None
    for turn, _ in enumerate(dl):
        assert dl.joint is None and dl.turn == turn
        dl.joint = turn
    assert dl.joint == 1
    next(iter(dl))
    assert dl.joint is None


def test_a_batch_is_shared_where_the_ranks_have_parts_of_it():
    data = DataLoader(list(range(8)), bs=2)
    assert is_shared(SimpleNamespace(dl=RanksDL(data, rank=0, world_size=2, device="cpu")))
    assert not is_shared(SimpleNamespace(dl=data)) and not is_shared(SimpleNamespace())
