"""`fit_heads` and `fine_tune(cache=True)`: the fit on stored taps is, bit for bit, that with the body in evaluation."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.torch_core import set_seed
from fastai.vision.augment import Flip, Resize
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from PIL import Image
from torch import nn

from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.blocks import BoxBlock  # noqa: F401
from fastai_heads.data.digits import blank_labels, digits_block
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.tap_cache import TapCache
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead, SegmentationHead
from fastai_heads.learner import multihead_learner
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.trunks import Trunk


class StepLosses(Callback):
    "The loss of every batch, in training and in validation."

    def before_fit(self):
        self.seen = getattr(self, "seen", [])

    def after_loss(self):
        self.seen.append(self.learn.loss.item())


def still(fit):
    "A frozen fit with the body in evaluation."

    def run(learn):
        learn.freeze()
        fit(learn, cbs=BnFreeze())

    return run


def trained(learn, way):
    "Train from one seed, and give every loss."
    losses = StepLosses()
    learn.add_cb(losses)
    set_seed(3)
    way(learn)
    return losses.seen


def check_twins(make, plain, cached):
    "Two learners from one start: one trained with its body in evaluation, one on stored taps. All is equal."
    ours, theirs = make(), make(train_bn=False)
    before = {name: t.clone() for name, t in ours.model[0].state_dict().items()}
    assert trained(theirs, plain) == trained(ours, cached)
    mine, other = ours.model.state_dict(), theirs.model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    return ours, before


@pytest.fixture
def make(make_learner):
    "Make a learner from a seed: `make('digit', heads=…)()` gives equal ones."

    def by(*targets, **kwargs):
        def one(**more):
            set_seed(1)
            return make_learner(*targets, **kwargs, **more)

        return one

    return by


FIT = {
    "fit": (lambda learn, cbs: learn.fit(2, 1e-2, cbs=cbs), lambda learn: learn.fit_heads(2, 1e-2)),
    "cycle": (
        lambda learn, cbs: learn.fit_one_cycle(2, 1e-2, pct_start=0.5, cbs=cbs),
        lambda learn: learn.fit_heads(2, 1e-2, pct_start=0.5),
    ),
}
JOINED = {"digit": ClassificationHead(tap=("layer2", "features")), "ink": RegressionHead(tap="layer3", pool="avg")}
NECK = {"neck": Trunk(lambda channels: nn.Conv2d(channels, 8, 1))}
CASES = {
    "pooled": (("digit", "tags", "ink"), {}),
    "vector": (("digit",), {"heads": {"digit": ClassificationHead(tap="pre_logits")}}),
    "joined": (("digit", "ink"), {"heads": JOINED}),
    "mask": (("digit", "mask"), {"heads": {"digit": ClassificationHead(), "mask": SegmentationHead(decoder="fpn")}}),
    "boxes": (("digit", "boxes"), {}),
    "points": (("centre", "box"), {}),
    "trunk": (("digit", "ink"), {"trunk": NECK, "heads": {"digit": ClassificationHead(tap="neck"), "ink": None}}),
    "balance": (("digit", "ink"), {"strategy": "UPGrad", "trunk": NECK,
                "heads": {"digit": ClassificationHead(tap="neck"), "ink": RegressionHead(tap="neck")}}),
    "balance taps": (("digit", "ink"), {"strategy": Balance("UPGrad", over="taps")}),
    "UW": (("digit", "ink"), {"strategy": "UW"}),
    "lr_mult": (("digit", "ink"), {"heads": {"digit": ClassificationHead(lr_mult=3), "ink": RegressionHead()}}),
    "classes": (("digit", "digit"), {}),
}  # fmt: skip


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("case", [c for c in CASES if c != "classes"])
def test_it_is_the_fit_with_the_body_in_evaluation(make, case, cache):
    targets, kwargs = CASES[case]
    plain, _ = FIT["fit"]
    ours, before = check_twins(make(*targets, **kwargs), still(plain), lambda learn: learn.fit_heads(2, 1e-2, cache))
    assert all(torch.equal(t, before[name]) for name, t in ours.model[0].state_dict().items())
