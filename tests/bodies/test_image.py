"""The body: what it gives, what it keeps, and what it says about itself."""

import copy
import io
import pickle

import pytest
import timm
import torch
from fastai.vision.learner import _resnet_split, _xresnet_split, create_body, create_head, model_meta
from fastai.vision.models.xresnet import xresnet18, xresnet50
from torch import nn
from torchvision import models

from fastai_heads.bodies.image import ImageBody, cut_body
from fastai_heads.errors import HeadsError

SMALL = [models.resnet18, xresnet18, "resnet10t", "test_vit", "test_convnext", "test_efficientnet"]
SIDE = 64


def images(body: ImageBody, n: int = 2) -> torch.Tensor:
    side = body.input_size or SIDE
    return torch.randn(n, body.n_in, side, side)


def name_of(arch) -> str:
    return arch if isinstance(arch, str) else arch.__name__


@pytest.fixture(params=SMALL, ids=name_of)
def arch(request):
    return request.param


@pytest.mark.parametrize(
    "taps", [("features",), ("features", "pre_logits"), ("pre_logits",), ("input", "features"), None]
)
def test_every_tap_has_the_declared_channels_and_stride(arch, taps):
    taps = taps or [p.name for p in cut_body(arch, pretrained=False).points]
    body = cut_body(arch, taps, pretrained=False).eval()
    x = images(body)
    out = body(x)
    assert tuple(out) == body.taps == tuple(taps)
    for tap, t in out.items():
        assert t.shape[:2] == (2, body.channels[tap])
        assert t.ndim == (2 if body.strides[tap] is None else 4)
        if t.ndim == 4:
            assert t.shape[-1] * body.strides[tap] == x.shape[-1]


@pytest.mark.parametrize("taps", [("features",), ("features", "pre_logits"), ("pre_logits",), "first"])
def test_every_kept_parameter_gets_a_gradient_and_is_in_one_group(arch, taps):
    if taps == "first":
        taps = (cut_body(arch, pretrained=False).points[1].name,)
    body = cut_body(arch, taps, pretrained=False).train()
    sum(t.square().sum() for t in body(images(body)).values()).backward()
    assert not [k for k, p in body.named_parameters() if p.grad is None]
    early, late = body.groups()
    assert early and late
    assert sorted(map(id, (*early, *late))) == sorted(map(id, body.parameters()))


def test_the_pretrained_classifier_reads_pre_logits(arch):
    net = (timm.create_model(arch) if isinstance(arch, str) else arch()).eval()
    body = cut_body(net, ("features", "pre_logits")).eval()
    x = images(body)
    classifier = net.get_submodule(body.cut.classifier[0])
    with torch.no_grad():
        assert torch.equal(classifier(body(x)["pre_logits"]), net(x))
    assert not set(map(id, net.parameters())) & set(map(id, body.parameters())), "the user's network is not touched"


def test_what_no_tap_needs_is_not_kept():
    body = cut_body(models.resnet18, ("layer2",), pretrained=False)
    assert [r.name for r in body.removed] == ["layer3", "layer4", "avgpool", "fc"]
    assert body.left_out == ()
    assert not any(k.startswith(("net.layer3", "net.fc")) for k in body.state_dict())
    timm_body = cut_body("resnet10t", ("layer2",), pretrained=False)
    assert {r.name for r in timm_body.removed} == {"layer3", "layer4", "global_pool", "fc"}


def test_trained_layers_before_the_classifier_are_reported():
    body = cut_body("test_convnext", pretrained=False)
    assert [(r.name, r.type) for r in body.left_out] == [("head.norm", "LayerNorm2d")]
    assert cut_body("test_convnext", ("pre_logits",), pretrained=False).left_out == ()


def test_removed_is_counted_as_a_person_would():
    avgpool, fc = cut_body(models.resnet18, pretrained=False).removed
    assert (avgpool.name, avgpool.type, avgpool.layers, avgpool.params) == ("avgpool", "AdaptiveAvgPool2d", 1, 0)
    assert (fc.name, fc.type, fc.layers, fc.params) == ("fc", "Linear", 1, 513_000)


def test_survives_pickle_copy_state_and_export(arch):
    body = cut_body(arch, ("features", "pre_logits"), pretrained=False).eval()
    x = images(body)
    want = body(x)
    other = cut_body(arch, ("features", "pre_logits"), pretrained=False).eval()
    other.load_state_dict(body.state_dict())
    for again in (pickle.loads(pickle.dumps(body)), copy.deepcopy(body), other):
        assert all(torch.equal(a, b) for a, b in zip(again(x).values(), want.values(), strict=True))
    buffer = io.BytesIO()
    torch.save(body, buffer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(t.isfinite().all() for t in body(x).values())


@pytest.mark.parametrize("arch", [models.resnet18, "test_vit"], ids=name_of)
def test_exports(arch):
    body = cut_body(arch, ("features", "pre_logits"), pretrained=False).eval()
    x = images(body)
    program = torch.export.export(body, (x,)).module()
    for a, b in zip(program(x).values(), body(x).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tap_can_be_hooked():
    body = cut_body(models.resnet18, ("input", "layer1", "features"), pretrained=False).eval()
    seen = {}
    for name, m in body.tap_modules.items():
        m.register_forward_hook(lambda _m, _i, o, name=name: seen.setdefault(name, o))
    out = body(images(body))
    assert list(seen) == ["tap_input", "tap_layer1", "tap_features"]
    assert all(a is b for a, b in zip(seen.values(), out.values(), strict=True))


@pytest.mark.parametrize(
    ("arch", "split"),
    [(models.resnet18, _resnet_split), (models.resnet50, _resnet_split), (xresnet18, _xresnet_split),
     (xresnet50, _xresnet_split)],
    ids=["resnet18", "resnet50", "xresnet18", "xresnet50"],
)  # fmt: skip
def test_groups_are_fastais_split(arch, split):
    net = arch()
    ours = cut_body(net)
    fastais = nn.Sequential(create_body(net, cut=model_meta[arch]["cut"]), create_head(8, 2))
    theirs = split(fastais)[:2]
    for mine, other in zip(ours.groups(), theirs, strict=True):
        assert len(mine) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(mine, other))
    assert [p.shape for p in ours.parameters()] == [p.shape for p in fastais[0].parameters()]


def test_a_body_is_itself():
    body = cut_body("resnet10t", ("features", 8), pretrained=False)
    assert cut_body(body, ("features", "layer2")) is body
    with pytest.raises(HeadsError, match="cut it again from the arch"):
        cut_body(body, ("pre_logits",))


def test_a_stride_is_the_deepest_tap_there():
    body = cut_body("test_vit", pretrained=False)
    assert body.tap_name(16) == "blocks.5"
    assert cut_body(models.resnet18, (4, 32), pretrained=False).taps == ("layer1", "layer4")


def test_strides_of_maps_that_shrink_to_one_cell_are_measured_on_larger_images():
    body = cut_body("xresnet18_deeper", [f"layer{i}" for i in range(1, 9)], pretrained=False)
    assert list(body.strides.values()) == [4, 8, 16, 32, 64, 128, 256, 512]


@pytest.mark.parametrize(
    ("taps", "says"),
    [(("layer9",), "Did you mean 'layer4'"), ((7,), "strides: 2, 4, 8, 16, 32"), ((), "is empty"), ((True,), "stem")],
)
def test_a_wrong_tap_says_which_there_are(taps, says):
    with pytest.raises(HeadsError, match=says):
        cut_body(models.resnet18, taps, pretrained=False)


def test_check_input_names_what_is_wrong():
    body = cut_body("vit_tiny_patch16_224", pretrained=False)
    body.check_inputs((torch.empty(3, 224, 224),))
    assert body.input_size == body.min_size == 224
    with pytest.raises(HeadsError, match="224×224 pixels only, found 128×128"):
        body.check_inputs((torch.empty(8, 3, 128, 128),))
    with pytest.raises(HeadsError, match="images of 3 channels, found 1"):
        body.check_inputs((torch.empty(1, 224, 224),))
    resnet = cut_body(models.resnet18, pretrained=False)
    assert resnet.input_size is None and resnet.min_size == 1
    resnet.check_inputs((torch.empty(3, 28, 28),))


def test_building_leaves_the_mode_and_the_random_state_of_the_arch():
    torch.manual_seed(0)
    plain = models.resnet18()
    after = torch.rand(1)
    torch.manual_seed(0)
    body = cut_body(models.resnet18, pretrained=False)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(body.net.conv1.weight, plain.conv1.weight)
    assert all(m.training for m in body.modules())


@pytest.mark.parametrize(
    ("arch", "part"), [(models.resnet18, "layer2"), ("test_resnet", "layer2.0"), ("test_vit", "blocks.2")], ids=str
)
def test_checkpointed_activations_are_computed_again_and_give_the_same_gradients(arch, part):
    calls, gradients = [], []
    for again in (False, True):
        torch.manual_seed(0)
        body = cut_body(arch, pretrained=False, grad_checkpointing=again).train()
        ran = []
        body.net.get_submodule(part).register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        x = images(body)
        body(x)["features"].square().sum().backward()
        calls.append(len(ran))
        gradients.append([p.grad for p in body.parameters()])
    assert calls == [1, 2]
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(
    ("arch", "says"),
    [("vgg11", "timm's VGG does not have it"), (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "Sequential has no row")],
    ids=["timm", "traced"],
)
def test_checkpointing_that_an_arch_does_not_have_is_refused(arch, says):
    with pytest.raises(HeadsError, match=f"`grad_checkpointing`: .*{says}"):
        cut_body(arch, pretrained=isinstance(arch, nn.Module), grad_checkpointing=True)


def test_sizes_are_said_in_pixels_and_larger_ones_are_made_to_try():
    body = cut_body("test_resnet", pretrained=False)
    inputs = (torch.randn(2, 3, 70, 40),)
    assert body.size_of(inputs) == "70×40 pixels" and body.input_names == ("image",)
    assert [x.shape for (x,) in body.other_sizes(inputs)][:2] == [(1, 3, 64, 64), (1, 3, 96, 96)]
    body.input_size = 64  # as of an arch that takes one size alone
    assert list(body.other_sizes(inputs)) == []


@pytest.mark.parametrize(("arch", "side", "cells"), [("levit_128s", 64, 1), ("volo_d1_224", 96, 6)])
def test_a_ready_network_of_one_size_that_does_not_say_which(arch, side, cells):
    body = cut_body(timm.create_model(arch, img_size=side, num_classes=2), ("features",))
    assert body.input_size == side and body.strides == {"features": side // cells}
    assert body.eval()(torch.zeros(1, 3, side, side))["features"].shape[-1] == cells


def test_a_ready_network_that_takes_no_image_is_refused():
    net = timm.create_model("test_vit")
    net.blocks[0].attn.qkv = nn.Linear(3, 3)
    with pytest.raises(HeadsError, match=r"`arch`: test_vit cannot take 160×160 pixels: mat1 and mat2"):
        cut_body(net)
