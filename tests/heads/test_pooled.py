"""A pooled head is fastai's `create_head`, bit for bit."""

from dataclasses import replace

import pytest
import torch
from fastai.layers import Flatten
from fastai.vision.learner import add_head, create_head
from fastcore.foundation import L
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.pooled import PooledHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import TapShape

WIDTH = 12
MAP = TapShape("features", WIDTH, 32)
VECTOR = TapShape("pre_logits", WIDTH, None)
OPTIONS = [
    {},
    {"lin_ftrs": []},
    {"lin_ftrs": [16]},
    {"lin_ftrs": (16, 8)},
    {"ps": 0},
    {"ps": 0.25},
    {"ps": [0.3]},
    {"ps": [0.1, 0.6]},
    {"ps": L(0.1, 0.6)},
    {"ps": (0.1, 0.2, 0.3), "lin_ftrs": [16, 8]},
    {"first_bn": False},
    {"bn_final": True},
    {"lin_first": True},
    {"lin_first": True, "ps": [0.2, 0.5], "lin_ftrs": [16], "bn_final": True, "first_bn": False},
    {"lin_first": True, "lin_ftrs": []},
    {"y_range": (-2.0, 5.0)},
    {"init": None},
    {"init": nn.init.xavier_uniform_},
]


def fastais(n_out, concat_pool=True, pool=True, init=nn.init.kaiming_normal_, **options):
    "What `vision_learner` puts on a body. In lists, as `create_head` wants them, and copied, as it pops from `ps`."
    options |= {k: list(options[k]) for k in ("lin_ftrs", "ps") if isinstance(options.get(k), list | tuple)}
    return add_head(
        nn.Sequential(), WIDTH, n_out, init=init, concat_pool=concat_pool, pool=pool and concat_pool is not None,
        **options,
    )[1]  # fmt: skip


def assert_same(ours, theirs, x):
    "Weights, then output, statistics and gradients in training with its dropout, then output in evaluation."
    assert [t.shape for t in ours.state_dict().values()] == [t.shape for t in theirs.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    found = []
    for head in (ours, theirs):
        torch.manual_seed(7)
        out = head.train()(x)
        out.square().mean().backward()
        found.append((out, *(p.grad for p in head.parameters()), *head.buffers(), head.eval()(x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("n_out", [1, 10])
@pytest.mark.parametrize("pool", ["concat", "avg"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_create_head(options, pool, n_out):
    torch.manual_seed(1)
    theirs = fastais(n_out, concat_pool=pool == "concat", **options)
    torch.manual_seed(1)
    ours = ClassificationHead(n_out=n_out, pool=pool, last_scale=1.0, **options).build((MAP,))
    assert_same(ours, theirs, torch.randn(6, WIDTH, 3, 4))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_regression_without_standardising_equals_create_head(options):
    torch.manual_seed(1)
    theirs = fastais(2, **options)
    torch.manual_seed(1)
    ours = RegressionHead(n_out=2, standardize=False, last_scale=1.0, **options).build((MAP,))
    assert_same(ours, theirs, torch.randn(6, WIDTH, 3, 4))


def test_max_pool_is_the_maximum_of_the_map():
    torch.manual_seed(1)
    theirs = nn.Sequential(nn.AdaptiveMaxPool2d(1), Flatten(), *create_head(WIDTH, 4, pool=False, concat_pool=False))
    torch.manual_seed(1)
    ours = ClassificationHead(n_out=4, pool="max", init=None, last_scale=1.0).build((MAP,))
    assert_same(ours, theirs, torch.randn(6, WIDTH, 3, 4))


@pytest.mark.parametrize("pool", ["concat", None])
def test_a_vector_is_not_pooled(pool):
    torch.manual_seed(1)
    theirs = fastais(4, pool=False, concat_pool=False)
    torch.manual_seed(1)
    ours = ClassificationHead(n_out=4, pool=pool, last_scale=1.0).build((VECTOR,))
    assert_same(ours, theirs, torch.randn(6, WIDTH))
    assert ours.pool_name is None and not list(ours.pool.children())


HEADS = {
    "class": ClassificationHead(n_out=3),
    "tags": MultiLabelHead(n_out=3),
    "number": RegressionHead(n_out=2, standardize=((0.0, 1.0), (1.0, 2.0))),
    "point": PointHead(n_out=2),
    "box": BoxHead(n_out=4),
    "two taps": ClassificationHead(n_out=3, tap=("layer3", "features")),
    "linear": ClassificationHead(n_out=3, lin_ftrs=[]),
    "linear first": ClassificationHead(n_out=3, lin_first=True),
    "batch norm last": ClassificationHead(n_out=3, bn_final=True),
    "torch's start": ClassificationHead(n_out=3, init=None),
}


@pytest.mark.parametrize("scale", [None, 0.2, 0])
@pytest.mark.parametrize("name", HEADS)
def test_the_last_layers_weights_alone_start_smaller_than_create_heads(name, scale):
    taps = (MAP,) * len(HEADS[name].taps)
    torch.manual_seed(1)
    theirs = replace(HEADS[name], last_scale=1.0).build(taps).state_dict()
    torch.manual_seed(1)
    ours = (HEADS[name] if scale is None else replace(HEADS[name], last_scale=scale)).build(taps).state_dict()
    last = [key for key in theirs if key.endswith(".weight")][-1]
    assert ours.keys() == theirs.keys() and bool(theirs[last].any())
    assert torch.equal(ours.pop(last), theirs.pop(last) * (0.05 if scale is None else scale))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_loss_begins_near_that_of_no_prediction():
    torch.manual_seed(1)
    x, targets = torch.randn(256, WIDTH, 2, 2), torch.randn(256, 1)
    heads = (RegressionHead(n_out=1, standardize=((0.0,), (1.0,)), last_scale=scale) for scale in (0.05, 1.0))
    small, fastais = (nn.functional.mse_loss(head.build((MAP,))(x), targets).item() for head in heads)
    none = targets.square().mean().item()
    assert small == pytest.approx(none, rel=0.05) and fastais > 2 * none


def test_other_masks_are_drawn_with_another_seed():
    head, x = PooledHead(WIDTH, 4).train(), torch.randn(6, WIDTH, 2, 2)
    outs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        outs.append(head(x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_a_map_needs_a_pool():
    with pytest.raises(HeadsError, match=r"`pool=None` of ClassificationHead is for vectors.*'layer3' is a map"):
        ClassificationHead(n_out=2, pool=None, tap="layer3").build((TapShape("layer3", 4, 16),))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": "averge"}, r"`pool`.*'concat', 'avg', 'max' or None, found 'averge'. Did you mean 'avg'"),
        ({"pool": True}, r"`pool`.*found True"),
        ({"pool": ["avg"]}, r"`pool`.*found \['avg'\]"),
        ({"y_range": (3, 1)}, r"`y_range`.*low < high, found \(3, 1\)"),
        ({"y_range": (1, 1)}, r"`y_range`.*found \(1, 1\)"),
        ({"y_range": (0, 1, 2)}, r"`y_range`.*found \(0, 1, 2\)"),
        ({"y_range": 5}, r"`y_range`.*found 5"),
        ({"y_range": ("a", "b")}, r"`y_range`.*found \('a', 'b'\)"),
        ({"y_range": (0, float("inf"))}, r"`y_range`.*inf"),
        ({"ps": 1.0}, r"`ps`.*\[0, 1\).*found 1.0"),
        ({"ps": -0.1}, r"`ps`.*found -0.1"),
        ({"ps": "0.5"}, r"`ps`.*found '0.5'"),
        ({"ps": None}, r"`ps`.*found None"),
        ({"ps": [0.1, 0.2, 0.3]}, r"`ps`.*each of its 2 linear layers, found \[0.1, 0.2, 0.3\]"),
        ({"ps": [0.1, 0.2], "lin_ftrs": []}, r"`ps`.*each of its 1 linear layers"),
        ({"lin_ftrs": 512}, r"`lin_ftrs`.*such as \[512\], found 512"),
        ({"lin_ftrs": [0]}, r"`lin_ftrs`.*found \[0\]"),
        ({"lin_ftrs": [64.0]}, r"`lin_ftrs`.*found \[64.0\]"),
        ({"lin_ftrs": "64"}, r"`lin_ftrs`.*found '64'"),
        ({"init": "kaiming"}, r"`init`.*found 'kaiming'"),
        ({"last_scale": -0.1}, r"`last_scale`.*at least 0, found -0.1"),
        ({"last_scale": None}, r"`last_scale`.*found None"),
        ({"last_scale": True}, r"`last_scale`.*found True"),
    ],
    ids=str,
)
def test_refusals_name_the_field_and_what_was_found(options, says):
    with pytest.raises(HeadsError, match=says):
        ClassificationHead(**options)
