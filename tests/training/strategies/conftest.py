"""Three heads on nested taps of a small network, in float64. Strategies are compared with a step by hand."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import fastai.callback.schedule  # noqa: F401  gives `Learner` its `fit_one_cycle`
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock, TransformBlock
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from fasttransform.transform import ItemTransform
from torch import Tensor, nn

from fastai_heads.data.partial import PartialBlock
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.learner.factory import multihead_learner

N, SIDE, BS = 16, 8, 4
TARGETS = {"kind": "category", "value": "regression", "level": "regression_2"}  # head → its target
PLAIN = {"ps": 0.0, "first_bn": False, "lin_ftrs": [], "pool": "avg", "metrics": [], "last_scale": 1.0}
"A small start makes small gradients at the taps, of which NashMTL's solver says that it may be inaccurate."


def squared(pred: Tensor, targ: Tensor) -> Tensor:
    "Compute the mean squared error in the type of the prediction. fastai's losses are float32 throughout."
    return (pred - targ.to(pred.dtype).view_as(pred)).square().mean()


class Still(Callback):
    "Leaves the validation out."

    def before_validate(self):
        raise CancelValidException


class Spy(Callback):
    "Keeps the gradients of the first step that comes to the optimizer, and ends the fit."

    order = MixedPrecision.order + 5

    def __init__(self, draws: int | None = None):  # a seed where an aggregator draws numbers
        self.draws = draws

    def after_pred(self):
        self.after_loss()

    def after_loss(self):
        if self.training and self.draws is not None:
            set_seed(self.draws)

    def before_step(self):
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        self.learn.spied = {name: None if grad is None else grad.clone() for name, grad in grads.items()}
        raise CancelFitException


def network(norm: bool = False) -> nn.Sequential:
    "Three convolutions: `one` and `two` are maps before the last."

    def block(n_in: int, n_out: int) -> nn.Sequential:
        conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.Tanh()) if norm else nn.Sequential(conv, nn.Tanh())

    maps = {"one": block(3, 4), "two": block(4, 5), "three": block(5, 6)}
    return nn.Sequential(
        OrderedDict(maps | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(6, 7)})
    )


class Cast(ItemTransform):
    "Turns images into a type, after the network has been built in float32."

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def encodes(self, batch):
        return (batch[0].to(self.dtype), *batch[1:])


def data(missing: Mapping[str, list[int]] | None = None, bs: int = BS):
    "Images with a class and two numbers, in the same order in every epoch; of some items a label is missing."
    draw, lost = torch.Generator().manual_seed(1), missing or {}
    images = torch.randn(N, 3, SIDE, SIDE, generator=draw)
    labels = {
        "kind": ["abc"[i % 3] for i in range(N)],
        "value": torch.randn(N, generator=draw).tolist(),
        "level": torch.randn(N, generator=draw).tolist(),
    }
    kinds = {"kind": CategoryBlock(vocab=["a", "b", "c"]), "value": RegressionBlock(), "level": RegressionBlock()}
    block = DataBlock(
        blocks=(TransformBlock, *(PartialBlock(b) if name in lost else b for name, b in kinds.items())),
        n_inp=1,
        get_items=lambda _: list(range(N)),
        get_x=lambda i: images[i],
        get_y=[lambda i, name=name: None if i in lost.get(name, ()) else labels[name][i] for name in TARGETS],
        splitter=lambda items: (list(range(N)), [0, 1]),
    )
    return block.dataloaders(None, bs=bs, num_workers=0, shuffle=False, drop_last=False, device="cpu")


@pytest.fixture
def small(tmp_path) -> Callable:
    """Give a function that makes a learner without dropout, with the same weights at every call. It takes a strategy,
    arguments of `multihead_learner`, changes to the three `heads`, `missing` labels, and so on."""

    def make(strategy=None, heads=lambda ours: ours, missing=None, norm=False, bs=BS, dtype=torch.float64, **kwargs):
        set_seed(3)
        ours = {
            "kind": ClassificationHead(target=0, loss=nn.CrossEntropyLoss(), **PLAIN),
            "value": RegressionHead(target=1, tap="two", loss=squared, standardize=False, **PLAIN),
            "level": RegressionHead(target=2, loss=squared, standardize=False, loss_weight=0.5, **PLAIN),
        }
        chosen = {name if spec else TARGETS[name]: spec for name, spec in heads(ours).items()}  # None: left out
        options = {"path": tmp_path, "opt_func": SGD, "wd": 0.0} | kwargs
        learn = multihead_learner(data(missing, bs), network(norm), chosen, strategy=strategy, **options)
        learn.model.to(dtype)
        learn.dls.add_tfms([Cast(dtype)], "after_batch")
        learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "heads_monitor")])
        learn.logger = lambda row: None
        learn.add_cb(Still())
        return learn

    return make


def one_step(learn, draws: int | None = None, cbs=()) -> dict[str, Tensor | None]:
    "Compute the gradient of every parameter in the first step, by name."
    learn.fit(1, 0.1, cbs=[Spy(draws), *cbs])
    return learn.spied


def inputs_and_targets(learn, batch=None) -> tuple[tuple, tuple]:
    "Take a batch apart; the first one of the training set, if none is given."
    batch = tuple(learn.dls.train.one_batch() if batch is None else batch)
    return batch[: learn.dls.n_inp], batch[learn.dls.n_inp :]


def forward(learn, batch=None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    "By hand: the taps of a batch, cut off from the body, and each head's weighted loss on them, by name."
    xs, ys = inputs_and_targets(learn, batch)
    taps = learn.model[0](*xs)
    cut = {name: tap.detach().requires_grad_() for name, tap in taps.items()}
    losses = learn.loss_func.losses(learn.model[1](cut), ys)
    weighted = [loss * head.loss_weight for loss, head in zip(losses, learn.heads.values())]
    return {name: (taps[name], cut[name]) for name in taps}, dict(zip(learn.heads.names, weighted))


def losses_of(learn, batch=None) -> dict[str, Tensor]:
    "By hand: each head's weighted loss of a batch, by name."
    xs, ys = inputs_and_targets(learn, batch)
    losses = learn.loss_func.losses(learn.model(*xs), ys)
    return {n: loss * h.loss_weight for (n, h), loss in zip(learn.heads.items(), losses)}


def rows_of(losses: Mapping[str, Tensor], variables: list[Tensor]) -> dict[str, list[Tensor | None]]:
    "By hand: the gradient of each loss."
    return {
        name: list(torch.autograd.grad(loss, variables, retain_graph=True, allow_unused=True))
        for name, loss in losses.items()
    }


def shared_by(rows: Mapping[str, list[Tensor | None]], n: int) -> list[int]:
    "By hand: the places of the variables that more than one loss reaches."
    return [i for i in range(n) if sum(row[i] is not None for row in rows.values()) > 1]


def matrix(rows: Mapping[str, list[Tensor | None]], variables: list[Tensor], places: list[int]) -> Tensor:
    "By hand: the rows over some variables, zero where a loss does not reach."
    return torch.stack(
        [
            torch.cat([(torch.zeros_like(variables[i]) if row[i] is None else row[i]).flatten() for i in places])
            for row in rows.values()
        ]
    )


def apart(a: Tensor, b: Tensor) -> float:
    "Measure the largest difference."
    return (a - b).abs().max().item() if a.numel() else 0.0


def weights(learn) -> Tensor:
    "Join all parameters in one vector."
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
