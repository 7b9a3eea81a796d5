"""Strategies over several bodies: the same steps by hand as over one, also where an input is missing."""

from functools import partial

import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock, TransformBlock
from fastai.data.transforms import ColReader
from fastai.optimizer import SGD, Adam
from fastai.torch_core import set_seed
from fastai.vision.core import TensorImage
from fastcore.basics import noop
from torch import nn
from torchjd.aggregation import UPGrad

from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.together import On
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import Row, TabularBlock
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.disjoint import Disjoint

from . import test_balance, test_disjoint, test_scalarized
from .conftest import PLAIN, SIDE, Cast, N, Still, losses_of, network, one_step, squared

TAPS = {
    "all bodies": {"kind": "features", "value": "features", "level": "features"},
    "one body alone": {"kind": "features", "value": "row.features", "level": "photo.two"},
    "nothing shared": {"kind": "photo.features", "value": "row.features", "level": "row.layer1"},
}


class CastAll(Cast):
    "Turns images and the numbers of rows into a type."

    def encodes(self, batch):
        photo, (codes, numbers), *targets = batch
        return (photo.to(self.dtype), Row((codes, numbers.to(self.dtype))), *targets)


def data(missing: bool):
    "Images beside rows, with three targets. Of some items one of the inputs is missing, or a label."
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(N, 3, SIDE, SIDE, generator=draw)
    value, level, u = torch.randn(3, N, generator=draw).tolist()
    table = pd.DataFrame(
        {"i": range(N), "k": ["xyz"[i % 3] for i in range(N)], "u": u, "kind": ["abc"[i % 3] for i in range(N)]}
    ).assign(value=value, level=level)
    if missing:
        table = table.astype({"kind": object, "value": object})
        table.loc[[0, 5], ["k", "u"]], table.loc[[1, 6], "kind"], table.loc[[2, 7], "value"] = None, None, None
    wrap = PartialBlock if missing else noop
    block = DataBlock(
        blocks=(
            TransformBlock,
            wrap(TabularBlock(["k"], ["u"])),
            wrap(CategoryBlock(vocab=["a", "b", "c"])),
            wrap(RegressionBlock()),
            RegressionBlock,
        ),
        n_inp=2,
        getters=[lambda row: TensorImage(images[int(row["i"])]), noop, *map(ColReader, ("kind", "value", "level"))],
        splitter=lambda items: (list(range(N)), [0, 3]),
    )
    return block.dataloaders(table, bs=4, num_workers=0, shuffle=False, drop_last=False, device="cpu")


@pytest.fixture
def small(tmp_path):
    "Give a function that makes a learner of two bodies, with the same weights at every call."

    def make(strategy=None, taps="all bodies", missing=False, **kwargs):
        set_seed(3)
        reads = TAPS[taps]
        heads = {
            "kind": ClassificationHead(target=0, tap=reads["kind"], loss=nn.CrossEntropyLoss(), **PLAIN),
            "value": RegressionHead(target=1, tap=reads["value"], loss=squared, standardize=False, **PLAIN),
            "level": RegressionHead(
                target=2, tap=reads["level"], loss=squared, standardize=False, loss_weight=0.5, **PLAIN
            ),
        }
        archs = {"photo": On("image", network()), "row": TabularBody([5, 4], use_bn=False, bn_cont=False)}
        options = {"path": tmp_path, "opt_func": SGD, "wd": 0.0} | kwargs
        learn = multihead_learner(data(missing), archs, heads, strategy=strategy, **options)
        learn.model.double()
        learn.dls.add_tfms([CastAll(torch.float64)], "after_batch")
        learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "heads_monitor")])
        learn.logger = lambda row: None
        learn.add_cb(Still())
        return learn

    return make


CASES = [(taps, missing) for taps in TAPS for missing in (False, True)]


@pytest.mark.parametrize("over", ["body", "taps"])
@pytest.mark.parametrize(("taps", "missing"), CASES)
def test_balancing_equals_torchjd_by_hand(small, taps, missing, over):
    wanted = test_balance.HAND[over](small(taps=taps, missing=missing), UPGrad())
    test_balance.same(one_step(small(Balance(UPGrad(), over), taps, missing)), wanted)


@pytest.mark.parametrize("over", ["body", "taps"])
@pytest.mark.parametrize("name", test_balance.AGGREGATORS)
def test_every_aggregator_of_torchjd_goes_over_two_bodies(small, name, over):
    make = test_balance.AGGREGATORS[name]
    wanted = test_balance.HAND[over](small(), make())
    test_balance.same(one_step(small(Balance(make(), over)), 11), wanted, test_balance.CLOSE.get(name, 1e-10))


@pytest.mark.parametrize(("taps", "missing"), CASES)
def test_disjoint_training_equals_the_loop(small, taps, missing):
    learn, hand = small(Disjoint(Adam), taps, missing), small(taps=taps, missing=missing)
    learn.fit(2, test_disjoint.LR)
    test_disjoint.by_hand(hand, partial(Adam, wd=0.0), 8, {})
    test_disjoint.same(learn, hand)


@pytest.mark.parametrize("name", test_scalarized.SCALARIZERS)
def test_every_scalarizer_of_torchjd_goes_over_two_bodies(small, name):
    make = test_scalarized.SCALARIZERS[name]
    found = one_step(small(make().double(), missing=True), 11)
    wanted = test_scalarized.by_hand(small(missing=True), make().double())
    test_scalarized.same({n: g for n, g in found.items() if "strategy" not in n}, wanted)


def test_the_sum_is_the_plain_sum(small):
    hand = small(missing=True)
    sum(losses_of(hand).values()).backward()
    wanted = {name: p.grad for name, p in hand.model.named_parameters()}
    test_balance.same(one_step(small(missing=True)), wanted)
