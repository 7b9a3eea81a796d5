"""Heads and trunks behind a body."""

import copy
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import torch
from fastai.vision.learner import add_head
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from fastai_heads.archs.records import TapPoint
from fastai_heads.bodies.contract import Body
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.custom import CustomHead
from fastai_heads.heads.pooled import PooledHead
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.model import Heads, MultiHeadModel, body_and_heads, build_model
from fastai_heads.modes import evaluate
from fastai_heads.trunks import Trunk

TAPS = ("layer2", "features", "pre_logits")


@pytest.fixture
def body():
    return cut_body("test_resnet", TAPS, pretrained=False)


@pytest.fixture
def sample():
    return (torch.randn(1, 3, 32, 32),)


def head(n_out=2, **options):
    return ClassificationHead(n_out=n_out, **options)


def count_pools(heads):
    "How often each head's pool runs, by name."
    calls = dict.fromkeys(heads.names, 0)

    def counted(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in heads:
        heads[name].pool.register_forward_hook(counted(name))
    return calls


@pytest.mark.parametrize("pool", ["concat", "avg"])
def test_heads_on_one_tap_equal_separate_create_heads_masks_included(pool):
    widths = {"a": 3, "b": 1, "c": 7}
    theirs = [add_head(nn.Sequential(), 12, n, concat_pool=pool == "concat")[1] for n in widths.values()]
    ours = Heads({k: PooledHead(12, n, pool) for k, n in widths.items()}, dict.fromkeys(widths, ("features",)))
    for name, other in zip(ours, theirs):
        ours[name].load_state_dict(dict(zip(ours[name].state_dict(), other.state_dict().values())))
    calls = count_pools(ours)
    x = torch.randn(6, 12, 2, 3)
    runs = []
    for run in (lambda x: ours({"features": x}), lambda x: tuple(t(x) for t in theirs)):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        sum(o.square().mean() for o in out).backward()
        runs.append((leaf.grad, out))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    params = zip((p for name in ours for p in ours[name].parameters()), (p for t in theirs for p in t.parameters()))
    assert all(torch.equal(a.grad, b.grad) for a, b in params)
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-7)
    assert calls == {"a": 1, "b": 0, "c": 0}
    ours.eval()
    assert all(torch.equal(a, t.eval()(x)) for a, t in zip(ours({"features": x}), theirs, strict=True))


def test_only_the_same_pool_of_the_same_tap_is_shared():
    modules = {
        "a": PooledHead(4, 2, "avg"),
        "b": PooledHead(4, 2, "max"),
        "c": PooledHead(4, 2, "avg"),
        "d": PooledHead(4, 2, "avg"),
    }
    heads = Heads(modules, {"a": ("low",), "b": ("low",), "c": ("high",), "d": ("low",)}).eval()
    calls = count_pools(heads)
    taps = {"low": torch.randn(2, 4, 3, 3), "high": torch.randn(2, 4, 3, 3)}
    out = heads(taps)
    assert calls == {"a": 1, "b": 1, "c": 1, "d": 0}
    wanted = [modules[k](taps["high" if k == "c" else "low"]) for k in "abcd"]
    assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))


def test_other_heads_get_their_taps_as_plain_arguments_in_order():
    class Minus(nn.Module):
        def forward(self, a, b):
            return a - b

    heads = Heads({"x": Minus(), "y": Minus()}, {"x": ("low", "high"), "y": ("high", "low")})
    low, high = torch.randn(2, 3), torch.randn(2, 3)
    x, y = heads({"low": low, "high": high})
    assert torch.equal(x, low - high) and torch.equal(y, high - low)


def test_any_name_has_a_place_and_the_keys_of_the_state_are_stable():
    names = ["type", "values", "train", "forward", "a"]
    heads = Heads(
        {n: nn.Linear(2, 1) for n in names}, dict.fromkeys(names, ("v",)), {"items": nn.Linear(2, 2)}, {"items": ("v",)}
    )
    assert heads.names == tuple(heads) == tuple(names) and len(heads) == 5
    keys = ["trunks.head_items.weight", "trunks.head_items.bias"]
    assert list(heads.state_dict()) == keys + [f"heads.head_{n}.{p}" for n in names for p in ("weight", "bias")]
    assert heads["type"].in_features == heads.trunk("items").in_features == 2
    assert isinstance(heads({"v": torch.randn(3, 2)}), tuple) and heads.training is True
    with pytest.raises(HeadsError, match=r"no head 'value'. There is type, values.*Did you mean 'values'"):
        heads["value"]


def test_one_head_gives_a_tuple_too():
    (out,) = Heads({"a": nn.Linear(2, 1)}, {"a": ("v",)})({"v": torch.randn(3, 2)})
    assert out.shape == (3, 1)


def test_different_taps_feed_different_heads(body, sample):
    specs = {
        "late": head(),
        "early": head(3, tap="layer2"),
        "strided": head(4, tap=8),
        "flat": head(5, tap="pre_logits"),
    }
    model = build_model(body, specs).eval()
    x = torch.randn(2, 3, 32, 32)
    taps = body(x)
    assert model[0] is body and model[1].reads == {
        "late": ("features",),
        "early": ("layer2",),
        "strided": ("layer2",),
        "flat": ("pre_logits",),
    }
    for out, (name, n_out) in zip(model(x), {"late": 2, "early": 3, "strided": 4, "flat": 5}.items(), strict=True):
        assert out.shape == (2, n_out)
        assert torch.equal(out, model[1][name](taps[model[1].reads[name][0]]))
    with pytest.raises(HeadsError, match=r"`tap='layer9'`, which test_resnet does not have. Did you mean 'layer4'"):
        build_model(body, {"a": head(tap="layer9")})


class Shapes(HeadSpec):
    "Keeps what it is told of its taps."

    def build(self, taps):
        module = First()
        module.told = taps
        return module


class First(nn.Module):
    def forward(self, first, *others):
        return first


def told(model, name="a"):
    return [(t.name, t.channels, t.stride) for t in model[1][name].told]


def test_a_trunk_is_a_tap_whose_shape_is_measured(body, sample):
    trunks = {
        "neck": Trunk(lambda c: nn.Conv2d(c, 24, 3, stride=2, padding=1), tap="layer2"),
        "flat": Trunk(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)), tap="neck"),
        "wide": Trunk(lambda c: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, 7, 1)), tap="layer2"),
        "on_flat": Trunk(lambda c: nn.Linear(c, 2 * c), tap="flat"),
        "of_vector": Trunk(lambda c: nn.Linear(c, 3), tap="pre_logits"),
    }
    spec = Shapes(tap=("neck", "flat", "wide", "on_flat", "of_vector", 8))
    model = build_model(body, {"a": spec, "b": head(tap="neck"), "c": head(tap="on_flat")}, trunks, sample)
    c = body.channels["layer2"]
    assert told(model) == [
        ("neck", 24, 16),
        ("flat", 5, None),
        ("wide", 7, 4),
        ("on_flat", 10, None),
        ("of_vector", 3, None),
        ("layer2", c, 8),
    ]
    assert model[1].trunk("neck").in_channels == c and model[1].trunk("on_flat").in_features == 5
    x, runs = torch.randn(2, 3, 32, 32), []
    model[1].trunk("neck").register_forward_hook(lambda *_: runs.append(1))
    _, b, c = model.eval()(x)
    taps = body(x)
    neck = model[1].trunks["head_neck"](taps["layer2"])
    runs.clear()
    model(x)
    assert len(runs) == 1, "computed once for all that read it"
    assert torch.equal(b, model[1]["b"](neck)) and c.shape == (2, 2)


def fpn(width: int = 8, taps=(8, 16, 32)) -> Trunk:
    return Trunk(partial(FeaturePyramidNetwork, out_channels=width), tap=taps)


def test_a_pyramid_over_several_taps_is_read_whole_or_by_stride(sample):
    body = cut_body("test_resnet", (8, 16, 32), pretrained=False)
    specs = {"all": Shapes(tap="neck"), "some": Shapes(tap=("neck.32", "neck.8")), "one": head(tap="neck.16")}
    model = build_model(body, specs, {"neck": fpn()}, sample).eval()
    assert told(model, "all") == [(f"neck.{s}", 8, s) for s in (8, 16, 32)]
    assert told(model, "some") == [("neck.32", 8, 32), ("neck.8", 8, 8)]
    x, runs = torch.randn(2, 3, 64, 64), []
    neck = model[1].trunk("neck")
    neck.register_forward_hook(lambda *_: runs.append(1))
    finest, coarsest, one = model(x)
    assert len(runs) == 1, "computed once for all that read it"
    maps = list(neck(OrderedDict(body(x))).values())
    assert torch.equal(finest, maps[0]) and torch.equal(coarsest, maps[2])
    assert torch.equal(one, model[1]["one"](maps[1]))


def test_a_pyramid_of_a_pyramid_and_several_maps_made_one(sample):
    class Summed(nn.Module):
        def forward(self, maps):
            first, *others = maps.values()
            return first + sum(nn.functional.interpolate(m, first.shape[-2:]) for m in others)

    body = cut_body("test_resnet", (8, 16, 32), pretrained=False)
    trunks = {"neck": fpn(8), "again": fpn(6, ("neck.8", "neck.32")), "fused": Trunk(Summed(), tap=("neck", "neck.32"))}
    model = build_model(body, {"a": Shapes(tap=("again", "fused"))}, trunks, sample)
    assert told(model) == [("again.8", 6, 8), ("again.32", 6, 32), ("fused", 8, 8)]
    assert model[1].trunk_reads["fused"] == ("neck.8", "neck.16", "neck.32", "neck.32")


def test_a_trunk_on_one_tap_may_give_a_pyramid_too(body, sample):
    class Halved(nn.Module):
        def forward(self, x):
            return {"fine": x, "coarse": nn.functional.max_pool2d(x, 2)}

    model = build_model(body, {"a": Shapes(tap="neck")}, {"neck": Trunk(Halved(), tap="layer2")}, sample)
    channels = body.channels["layer2"]
    assert told(model) == [("neck.8", channels, 8), ("neck.16", channels, 16)]


def test_measuring_moves_no_statistic_and_no_mode(body, sample):
    norm = nn.BatchNorm2d(96)
    frozen = nn.Sequential(nn.BatchNorm2d(96).eval(), nn.Dropout())
    states = {m: copy.deepcopy(m.state_dict()) for m in (body, norm, frozen)}
    modes = {m: m.training for part in (body, norm, frozen) for m in part.modules()}
    trunks = {"t": Trunk(norm), "u": Trunk(frozen, tap="t")}
    build_model(body, {"a": head(tap="u")}, trunks, sample)
    for module, state in states.items():
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert modes == {m: m.training for m in modes} and not all(modes.values())
    assert not any(p.grad_fn for p in norm.parameters())


def test_trunks_train_with_the_heads(body, sample):
    model = build_model(body, {"a": head(tap="t"), "b": head()}, {"t": Trunk(nn.Conv2d(96, 8, 1))}, sample)
    early, late, last = body_and_heads(model)
    assert [early, late] == body.groups()
    trunk = list(model[1].trunk("t").parameters())
    assert {*trunk, *model[1]["a"].parameters(), *model[1]["b"].parameters()} == set(last)
    assert sum(map(len, (early, late, last))) == len(list(model.parameters()))
    sum(o.square().mean() for o in model(torch.randn(4, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in trunk)


@pytest.mark.parametrize(
    ("trunks", "says"),
    [
        ({"features": Trunk(nn.Identity())}, r"`trunk` 'features' has the name of a tap of test_resnet"),
        ({"t": Trunk(nn.Identity(), tap="layr2")}, r"`tap='layr2'`.*Did you mean 'layer2'"),
        ({"t": Trunk(nn.Identity(), tap=7)}, r"`tap=7`: test_resnet has no tap at that stride"),
        ({"t": Trunk(nn.Identity(), tap="u"), "u": Trunk(nn.Identity())}, r"`trunk` 't' reads trunk 'u'.*before"),
        ({"t": Trunk(lambda c: c)}, r"`module` of Trunk is a function that makes an nn.Module, and it made 96"),
        ({"t": Trunk(nn.Flatten(2))}, r"`trunk` 't' gives a map.*or a vector.*found \(1, 96, 1\)"),
    ],
    ids=str,
)
def test_trunks_that_cannot_be_are_refused(body, sample, trunks, says):
    with pytest.raises(HeadsError, match=says):
        build_model(body, {"a": head(tap="t")}, trunks, sample)


class Twice(nn.Module):
    def forward(self, maps):
        first = next(iter(maps.values()))
        return {"a": first, "b": first}


@pytest.mark.parametrize(
    ("trunks", "tap", "says"),
    [
        ({"t": fpn()}, "t", r"`tap='t'` of ClassificationHead: .*'t.8', 't.16', 't.32'"),
        ({"t": fpn()}, "t.4", r"`tap='t.4'`: trunk 't' gives t.8, t.16, t.32"),
        ({"t": Trunk(Twice(), tap=(8, 16))}, "t", r"`trunk` 't' gives maps of different strides, found \[8, 8\]"),
    ],
    ids=["a pooled head on all levels", "a level that is not there", "two levels of one stride"],
)
def test_pyramids_that_cannot_be_read_are_refused(sample, trunks, tap, says):
    body = cut_body("test_resnet", (8, 16, 32), pretrained=False)
    with pytest.raises(HeadsError, match=says):
        build_model(body, {"a": head(tap=tap)}, trunks, sample)


def test_a_trunk_that_gives_several_tensors_is_refused(body, sample):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(HeadsError, match=r"`trunk` 't' gives a map.*found tuple"):
        build_model(body, {"a": head(tap="t")}, {"t": Trunk(Two())}, sample)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"module": 3}, r"`module` of Trunk is an nn.Module or a function.*found 3"),
        ({"module": nn.Identity(), "tap": None}, r"`tap` of Trunk is a tap's name or a stride.*found None"),
        ({"module": nn.Identity(), "tap": ("a",)}, r"`tap` of Trunk.*a tuple of several, found \('a',\)"),
        ({"module": nn.Identity(), "tap": True}, r"`tap` of Trunk.*found True"),
    ],
    ids=str,
)
def test_refusals_of_a_trunks_fields(options, says):
    with pytest.raises(HeadsError, match=says):
        Trunk(**options)


def test_survives_copy_pickle_and_state(body, sample):
    trunks = {"t": Trunk(nn.Conv2d(96, 8, 1))}
    specs = {
        "a": head(tap="t"),
        "b": head(),
        "c": CustomHead(nn.Linear(body.channels["pre_logits"], 3), tap="pre_logits"),
    }
    model = build_model(body, specs, trunks, sample).eval()
    again = build_model(copy.deepcopy(body), specs | {"c": copy.deepcopy(specs["c"])}, trunks, sample).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert all(torch.equal(a, b) for a, b in zip(other(x), model(x), strict=True))


def test_trunks_that_nothing_reads_go(body, sample):
    def trunk(tap):
        return Trunk(nn.Identity(), tap=tap)

    trunks = {"neck": trunk("features"), "necktie": trunk("neck"), "other": trunk("features")}
    specs = {"a": head(tap="necktie"), "b": head(tap="other"), "c": head()}
    model = build_model(body, specs, trunks, sample)
    model[1].drop_unread()
    assert list(model[1].trunk_reads) == ["neck", "necktie", "other"]
    model[1].drop("b")
    model[1].drop_unread()
    assert list(model[1].trunk_reads) == ["neck", "necktie"] and len(model[1].trunks) == 2
    model[1].drop("a")
    model[1].drop_unread()
    assert not model[1].trunk_reads and not len(model[1].trunks) and "neck" not in model[1].shapes
    with evaluate(model):
        assert len(model(*sample)) == 1


class Scaled(Body):
    "A body of two inputs that gives a vector and a map."

    arch, points, taps_of = "scaled", (TapPoint("v", "v", 2), TapPoint("m", "m", 3, 4)), ("v", "m")

    def __init__(self):
        super().__init__()
        self.use_taps(self.taps_of)

    def forward(self, row, image):
        return self.through_taps({"v": row * 2, "m": image[..., ::4, ::4]})

    def groups(self):
        return [[], []]

    def check_inputs(self, inputs):
        pass


def test_the_model_has_names_takes_any_number_of_inputs_and_measures_trunks():
    body, inputs = Scaled(), (torch.randn(2, 2), torch.randn(2, 3, 16, 16))
    specs = {"a": Shapes(tap=("t", "u", "v"))}
    trunks = {
        "t": Trunk(nn.AvgPool2d(2), tap="m"),
        "u": Trunk(lambda c: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5)), tap="t"),
    }
    model = build_model(body, specs, trunks, inputs)
    assert isinstance(model, MultiHeadModel) and isinstance(model, nn.Sequential)
    assert model.body is model[0] is body and model.heads is model[1]
    assert told(model) == [("t", 3, 8), ("u", 5, None), ("v", 2, None)]
    (out,) = model(*inputs)
    assert torch.equal(out, nn.functional.avg_pool2d(inputs[1][..., ::4, ::4], 2))
    assert list(model[:1](*inputs)) == ["v", "m"], "a part of it is a network, too"
    assert body.size_of(inputs) == "(2, 2), (2, 3, 16, 16)" and not list(body.other_sizes(inputs))


def test_files_that_a_plain_sequential_wrote_load(body, sample):
    model = build_model(body, {"a": head(tap="t"), "b": head(3)}, {"t": Trunk(nn.Conv2d(96, 8, 1))}, sample)
    old = {f"0.net.{k}": v for k, v in body.net.state_dict().items()}
    old |= {"1.trunks.head_t.weight": torch.randn(8, 96, 1, 1), "1.trunks.head_t.bias": torch.randn(8)}
    for name, width, n_out in (("a", 16, 2), ("b", 192, 3)):
        start = f"1.heads.head_{name}.layers."
        norms = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for layer, n in ((0, width), (4, 512)):
            old |= {f"{start}{layer}.{k}": torch.full((n,), v) for k, v in norms.items()}
            old[f"{start}{layer}.num_batches_tracked"] = torch.tensor(3)
        old |= {f"{start}2.weight": torch.randn(512, width), f"{start}6.weight": torch.randn(n_out, 512)}
    assert str(model.load_state_dict(old)) == "<All keys matched successfully>"
    assert torch.equal(model.heads.trunk("t").bias, old["1.trunks.head_t.bias"])


def test_a_part_of_the_heads_has_the_trunks_that_they_need(body, sample):
    trunks = {
        "neck": fpn(8, ("layer2", "features")),
        "tie": Trunk(nn.Identity(), tap="neck.8"),
        "c": Trunk(nn.Identity()),
    }
    specs = {"a": head(tap="tie"), "b": head(tap="c"), "d": head(tap="neck.32")}
    heads = build_model(body, specs, trunks, sample).eval().heads
    one, two = heads.only("a"), heads.only("d", "b")
    assert list(one.trunk_reads) == ["neck", "tie"] and list(two.trunk_reads) == ["neck", "c"]
    assert one["a"] is heads["a"] and one.trunk("neck") is heads.trunk("neck") and two.names == ("d", "b")
    assert heads.names == ("a", "b", "d") and list(heads.trunk_reads) == ["neck", "tie", "c"] and "tie" in heads.shapes
    with evaluate(body):
        taps = body(*sample)
        a, b, d = heads(taps)
        assert torch.equal(one(taps)[0], a) and [*map(torch.equal, two(taps), (d, b))] == [True, True]
    with pytest.raises(HeadsError, match=r"no head 'e'. There is a, b, d"):
        heads.only("e")
