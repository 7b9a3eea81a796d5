"""Batches of rows taken whole equal those made item by item."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastcore.basics import noop

from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.loaders import with_test_dl
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import Row, TabularBlock

N = 26


def frame():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"kind": rng.choice(list("xyz"), N), "u": rng.normal(size=N), "v": rng.normal(size=N)})
    gaps = np.where(np.arange(N) % 4 == 1, np.nan, rng.normal(size=N))
    return table.assign(mood=rng.choice(["p", "q"], N), n=gaps, tags=["a;b", "b"] * (N // 2))


TARGETS = {
    "classes and numbers": ([CategoryBlock, RegressionBlock], [ColReader("mood"), ColReader("u")]),
    "tags": ([MultiCategoryBlock], [ColReader("tags", label_delim=";")]),
    "two numbers": ([RegressionBlock], [ColReader(["u", "v"])]),
    "some missing": ([PartialBlock(RegressionBlock)], [ColReader("n")]),
    "a function": ([CategoryBlock], [lambda row: row["mood"] * 2]),
}


def loaders(name, num_workers=0):
    blocks, getters = TARGETS[name]
    block = DataBlock(
        (TabularBlock("kind", ["u", "v"]), *blocks), n_inp=1, get_x=noop, get_y=getters,
        splitter=IndexSplitter(list(range(8))),
    )  # fmt: skip
    return inspect_data(block.dataloaders(frame(), bs=5, num_workers=num_workers)).dls


def flat(batch):
    return [t for part in batch for t in (part if isinstance(part, Row) else [part])]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_batches_are_those_of_items(name, split):
    found = []
    for whole in (True, False):
        dl = getattr(loaders(name), split)
        assert dl.whole is not None
        dl.whole = dl.whole if whole else None
        dl.rng.seed(3)
        found.append([list(dl), list(dl)])
    for a, b in zip(*([batch for epoch in epochs for batch in epoch] for epochs in found), strict=True):
        for ours, theirs in zip(flat(a), flat(b), strict=True):
            assert type(ours) is type(theirs) and ours.dtype == theirs.dtype
            assert torch.equal(ours.nan_to_num(9e9), theirs.nan_to_num(9e9))
        assert isinstance(a[0], Row) and type(a) is type(b)


def test_each_target_is_read_once():
    read = []
    block = DataBlock(
        (TabularBlock("kind", "u"), CategoryBlock), n_inp=1, get_x=noop, splitter=IndexSplitter([0, 1]),
        get_y=lambda row: read.append(row.name) or row["mood"],
    )  # fmt: skip
    dl = inspect_data(block.dataloaders(frame(), bs=5, num_workers=0)).dls.train
    list(dl)
    read.clear()
    assert len(list(dl)) == 4 and not read


def test_workers_take_them_too():
    dls = loaders("classes and numbers", num_workers=1)
    assert len(list(dls.train)) == 3 and dls.train.whole.targets is not None


def test_rows_without_labels_are_taken_whole():
    dls = with_test_dl(loaders("classes and numbers"))
    dl = dls.test_dl(frame())
    assert dl.whole is not None and [len(flat(b)[0]) for b in dl] == [5, 5, 5, 5, 5, 1]


def test_items_that_change_on_the_way_are_read_one_by_one():
    dl = loaders("classes and numbers").train
    assert dl.new(after_item=[lambda o: o]).whole is None and dl.new(bs=3).whole is dl.whole
