"""Networks that no row knows: their cut by hand, a step of training, and what is said where nothing can be proved."""

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from benchmarks.sweep.training import random_dls
from fastai_heads.archs.places import leaves
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.learner import multihead_learner

from .networks import WRITTEN, LeNet, Regions, TransformersStyle, TwoStreams, convs


@pytest.fixture(scope="module")
def case():
    "A function: the name of a network that is written by hand → itself, its body, and images."
    made = {}

    def get(name):
        if name not in made:
            written = WRITTEN[name]
            net = written.make().eval()
            body = cut_body(net, ("pre_logits", "features"), n_in=written.n_in).eval()
            made[name] = net, body, torch.randn(3, written.n_in, written.side, written.side)
        return made[name]

    return get


@pytest.fixture(scope="module")
def dls():
    "A function: channels and side of the images → data with a class and a number."
    made = {}
    return lambda n_in, side: made.setdefault((n_in, side), random_dls(n_in, side, 4))


def fit(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    return learn


@pytest.mark.parametrize("name", WRITTEN)
def test_its_cut_is_that_by_hand(case, name):
    written, (net, body, x) = WRITTEN[name], case(name)
    with torch.no_grad():
        taps = body(x)
        own = dict(leaves(net(x)))
        for item, said in leaves(written.answer(net, taps["pre_logits"])):
            assert torch.equal(said, own.get(item, next(iter(own.values())) if item == () else None))
        if written.vector is not None:
            assert torch.equal(written.vector(net, taps["features"]), taps["pre_logits"])
    assert (body.channels["features"], body.strides["features"]) == (written.channels, written.stride)
    assert taps["features"].shape[1] == written.channels and taps["features"].ndim == 4
    assert body.channels["pre_logits"] == taps["pre_logits"].shape[1]


@pytest.mark.parametrize("name", WRITTEN)
def test_it_trains_a_step(case, dls, name):
    written, body = WRITTEN[name], copy.deepcopy(case(name)[1]).train()
    heads = {"kind": ClassificationHead(target=0), "value": RegressionHead(target=1, tap="pre_logits")}
    learn = multihead_learner(dls(written.n_in, written.side), body, heads, metrics=[])
    before = {k: p.detach().clone() for k, p in body.named_parameters() if p.requires_grad}
    fit(learn)
    assert not [k for k, p in body.named_parameters() if k in before and torch.equal(p, before[k])]


def test_a_network_that_takes_one_size_only_says_which(case, dls):
    with pytest.raises(HeadsError, match="LeNet cannot take 32×32 pixels; the smallest side that it takes is 64"):
        multihead_learner(dls(3, 32), LeNet())


def test_what_is_taken_off_and_what_is_frozen(case):
    assert [r.name for r in case("two_classifiers")[1].removed] == ["colour.0", "colour.2", "shape"]
    auxiliary = case("auxiliary")[1]
    assert [r.name for r in auxiliary.removed] == ["fc", "idle"]
    held = {k.split(".")[1] for k, p in auxiliary.named_parameters() if not p.requires_grad}
    assert held == {"dead", "aux"}, "what runs beside the way stays and is frozen"
    assert [r.name for r in cut_body(LeNet()).removed] == ["fc1", "fc2", "fc3"]


def test_what_is_asked_for_without_a_call_stays(case):
    kept = {k.split(".")[1] for k, _ in case("asked_by_method")[1].named_parameters()}
    assert kept == {"positions", "settings", "convs"}


WRAPPED = {
    "parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "averaged": AveragedModel,
    "twice": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapper_is_taken_off(case, wrap):
    net, body, x = case("lenet")
    again = cut_body(wrap(net), ("pre_logits", "features")).eval()
    assert again.arch == "LeNet"
    assert all(torch.equal(a, b) for a, b in zip(again(x).values(), body(x).values(), strict=True))


def test_a_part_that_is_compiled_is_taken_as_it_was():
    net = TwoStreams().eval()
    x = torch.randn(2, 3, 32, 32)
    want = cut_body(net).eval()(x)["features"]
    net.fine = torch.compile(net.fine, backend="eager")
    assert torch.equal(cut_body(net).eval()(x)["features"], want)
    assert isinstance(net.fine, torch._dynamo.OptimizedModule), "the user's network is as it was"


def test_a_row_is_found_below_a_wrapper():
    assert cut_body(nn.DataParallel(models.resnet18())).strides == {"features": 32}
    assert cut_body(nn.DataParallel(timm.create_model("test_resnet"))).zoo == "timm"


def test_a_detectors_backbone_has_its_maps_for_taps():
    net, x = Regions().eval(), torch.randn(1, 3, 64, 64)
    body = cut_body(net, ("0", 32, "pool", "features")).eval()
    own = net(x)
    assert body.taps == ("0", "3", "pool", "features") and body.strides["pool"] == 64
    assert all(torch.equal(body(x)[t], own["3" if t == "features" else t]) for t in body.taps)
    with pytest.raises(HeadsError, match="it gives maps and has no classifier"):
        body.tap_name("pre_logits")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_timms_features_only_has_its_maps_for_taps(name):
    net = timm.create_model(name, features_only=True).eval()
    names, x = net.feature_info.module_name(), torch.randn(1, 3, 64, 64)
    body = cut_body(net, (*names, "features")).eval()
    assert body.taps == (*names, "features")
    assert list(body.strides.values()) == [*net.feature_info.reduction(), net.feature_info.reduction()[-1]]
    own = net(x if body.input_size is None else torch.randn(1, 3, body.input_size, body.input_size))
    assert list(body.channels.values())[:-1] == [m.shape[1] for m in own]
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(body(x).values(), [*net(x), net(x)[-1]], strict=True))
    first = cut_body(net, (names[0],)).eval()
    assert torch.equal(first(x)[names[0]], net(x)[0])


def test_features_only_trains_by_stride(dls):
    net = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3))
    heads = {"kind": ClassificationHead(target=0, tap=8), "value": RegressionHead(target=1)}
    learn = fit(multihead_learner(dls(3, 64), net, heads, metrics=[]))
    assert set(learn.model[0].taps) == {"features", net.feature_info.module_name()[1]}


def test_features_only_of_a_name_is_refused():
    with pytest.raises(HeadsError, match="every map of test_resnet is a tap already; leave it out"):
        cut_body("test_resnet", pretrained=False, features_only=True)


class MyResNet(models.ResNet):
    "A subclass may have other forward code, so that it has no row."

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(torch.relu(self.trunk(x))), 1))

    def trunk(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.fixture(scope="module")
def net():
    return MyResNet(models.resnet.BasicBlock, [1, 1, 1, 1]).eval()


def test_a_traced_network_loses_nothing(net):
    body = cut_body(net, ("layer1", "features", "pre_logits")).eval()
    x = torch.randn(2, 3, 64, 64)
    out = body(x)
    assert torch.equal(net.fc(out["pre_logits"]), net(x))
    assert body.strides == {"layer1": 4, "features": 32, "pre_logits": None}
    assert [r.name for r in body.removed] == ["fc"]
    for again in (pickle.loads(pickle.dumps(body)), copy.deepcopy(body)):
        assert all(torch.equal(a, b) for a, b in zip(again(x).values(), out.values(), strict=True))


class InPlace(nn.Module):
    "Its activation overwrites what its last module gave."

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(torch.relu_(self.convs(x)).mean((2, 3)))


def test_a_tap_is_not_changed_by_later_code_in_place():
    net, x = InPlace().eval(), torch.randn(2, 3, 64, 64)
    alone = cut_body(net, ("features",)).eval()(x)["features"]
    together = cut_body(net, ("features", "pre_logits")).eval()(x)["features"]
    assert torch.equal(alone, together) and (alone < 0).any()


def test_every_kept_parameter_gets_a_gradient(net):
    for taps in (("layer2",), ("features",), ("pre_logits",)):
        body = cut_body(net, taps).train()
        body(torch.randn(2, 3, 64, 64))[taps[0]].square().sum().backward()
        assert all(p.grad is not None for p in body.parameters())
        assert all(body.groups())


def test_a_module_may_be_named_by_hand(net):
    body = cut_body(net, ("layer2.0.conv1",)).eval()
    assert body.channels == {"layer2.0.conv1": 128}
    assert "layer3" in [r.name for r in body.removed]


def test_each_call_of_a_module_that_runs_several_times_may_be_named(case):
    net, _, x = case("one_pool")
    body = cut_body(net, ("pool#0", "pool#1", "lin")).eval()
    out = body(x)
    assert list(body.strides.values()) == [2, 4, None]
    assert torch.equal(out["pool#0"], net.pool(torch.relu(net.c1(x)))) and torch.equal(out["lin"], net(x))


def test_a_small_network_for_grey_images():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    body = cut_body(net, ("features", "pre_logits")).eval()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(net.eval()[-1](body(x)["pre_logits"]), net(x))
    assert body.n_in == 1 and body.channels == {"features": 8, "pre_logits": 8}


def test_a_network_that_gives_a_map_needs_no_classifier():
    body = cut_body(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()))
    assert body.channels == {"features": 8} and body.removed == ()
    with pytest.raises(HeadsError, match="it gives a map and has no classifier"):
        body.tap_name("pre_logits")


def test_a_map_for_each_class_is_the_classifiers():
    net = nn.Sequential(convs(), nn.Conv2d(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    body = cut_body(net).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net[1:](body(x)["features"]), net(x))
    assert body.channels == {"features": 12} and body.cut.no_vector == "1 reads maps"


class TwoAnswers(nn.Module):
    "A mask and a class of one map; no vector holds both."

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.mask, self.kind = nn.Conv2d(16, 2, 1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.backbone(x)
        return {"mask": self.mask(x), "kind": self.kind(x.mean((2, 3)))}


def test_two_answers_of_one_map():
    body = cut_body(TwoAnswers())
    assert body.channels == {"features": 16} and [r.name for r in body.removed] == ["mask", "kind"]
    with pytest.raises(HeadsError, match="no layer reads all of its output as one vector"):
        body.tap_name("pre_logits")


class Rows(nn.Module):
    "Rows of the map are read one after another."

    def __init__(self):
        super().__init__()
        self.c2, self.rnn = convs(), nn.GRU(12 * 8, 8, batch_first=True)

    def forward(self, x):
        return self.rnn(self.c2(x).permute(0, 3, 1, 2).flatten(2))[0][:, -1]


class TwoBranches(nn.Module):
    "Two maps that meet as vectors."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = convs(), convs(8), nn.Linear(20, 4)

    def forward(self, x):
        return self.out(torch.cat([self.a(x).mean((2, 3)), self.b(x).mean((2, 3))], 1))


class Unlike(nn.Module):
    "What it gives is the same for every image."

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.out = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.zeros_like(self.c2(self.c1(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "says", "tap"),
    [
        (Rows, "rnn reads a sequence that is made of its last map", "c2"),
        (TwoBranches, "its output passes through no single map", "pre_logits"),
        (Unlike, "what it gives does not depend on the image", "c2"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 2)),
            "through no single map",
            "pre_logits",
        ),
    ],
    ids=["rows", "branches", "constant", "no_map"],
)
def test_what_cannot_be_proved_proposes_a_tap_that_works(dls, net, says, tap):
    torch.manual_seed(0)
    with pytest.raises(HeadsError, match=f"could not be proved: .*{says}") as error:
        multihead_learner(dls(3, 32), net())
    call = re.search(r"heads=\{…: (ClassificationHead\(tap='(.+?)'\))\}", str(error.value))
    assert call[2] == tap
    spec = {"kind": ClassificationHead(target=0, tap=call[2]), "value": RegressionHead(target=1, tap=call[2])}
    learn = fit(multihead_learner(dls(3, 32), net(), spec, metrics=[]))
    assert learn.recorder.losses[-1].isfinite()


def test_hidden_states_are_no_answers(case):
    net, body, x = case("transformers")
    assert isinstance(net, TransformersStyle) and len(dict(leaves(net(x)))) == 4
    assert body.removed[0].name == "classifier"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_network_is_refused_with_what_to_give():
    says = "is scripted, and scripted code cannot be listened to or cut. Give the network that it was scripted from"
    for net in (torch.jit.script(convs()), nn.Sequential(torch.jit.script(convs()), nn.Flatten())):
        with pytest.raises(HeadsError, match=says):
            cut_body(net)


def test_what_takes_no_images_says_so():
    with pytest.raises(HeadsError, match="takes no batch of images"):
        cut_body(nn.Linear(5, 2))
