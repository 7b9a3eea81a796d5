"""Checkpoints, packages, sizes and channels that do not fit, or that are made to."""

import fastai.vision.models.xresnet as fastai_xresnet
import pytest
import timm
import torch
from torchvision import models
from torchvision.models import ResNet18_Weights

from fastai_heads.archs import fastai_zoo
from fastai_heads.archs.channels import adapt_weight
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError


@pytest.fixture
def torchvision_file(torch_home):
    "Where torch.hub keeps resnet18's weights."
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]


def timm_file(arch, state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    return {"arch": arch, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}


def test_numbers_that_are_not_finite_are_refused_by_key(torchvision_file, tmp_path):
    state = models.resnet18().state_dict()
    state["layer2.0.conv1.weight"][0, 0] = float("nan")
    torch.save(state, torchvision_file)
    with pytest.raises(HeadsError, match=r"resnet18 \(IMAGENET1K_V1\) .* not finite in layer2\.0\.conv1\.weight\."):
        cut_body(models.resnet18)
    state = timm.create_model("test_resnet").state_dict()
    state["layer3.0.bn1.running_var"][1] = float("inf")
    with pytest.raises(HeadsError, match=r"not finite in layer3\.0\.bn1\.running_var\."):
        cut_body(**timm_file("test_resnet", state, tmp_path))


def test_keys_that_timms_checkpoint_lacks_are_named(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state["other.weight"] = state.pop("layer1.0.conv1.weight")
    with pytest.raises(HeadsError, match=r"(?s)test_resnet.*layer1\.0\.conv1\.weight.*other\.weight"):
        cut_body(**timm_file("test_resnet", state, tmp_path))


def test_a_package_that_is_missing_is_named(monkeypatch):
    def build(*args, **kwargs):
        raise ImportError("no module named 'sevenths'", name="sevenths")

    monkeypatch.setattr(timm, "create_model", build)
    for arch in ("test_resnet", build):
        with pytest.raises(HeadsError, match=r"needs a package that is missing.*pip install sevenths"):
            cut_body(arch, pretrained=False)


@pytest.mark.parametrize(("arch", "typo"), [("vit_tiny_patch16_224", "img_siz"), (models.resnet18, "zero_init")])
def test_a_typo_in_an_option_of_the_arch(arch, typo):
    with pytest.raises(HeadsError, match=rf"could not.*unexpected keyword argument '{typo}'"):
        cut_body(arch, pretrained=False, **{typo: 1})


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "gmlp_ti16_224", "efficientvit_m0"])
def test_an_arch_of_a_fixed_size_takes_another(arch):
    body = cut_body(arch, pretrained=False, img_size=96).eval()
    assert body.input_size == 96
    assert body(torch.randn(2, 3, 96, 96))["features"].shape[1] == body.channels["features"]
    with pytest.raises(HeadsError, match=f"{arch} takes 96×96 pixels only, found 224×224"):
        body.check_inputs((torch.empty(3, 224, 224),))


def test_positions_of_a_checkpoint_are_interpolated(tmp_path):
    given = timm_file("test_vit", timm.create_model("test_vit").state_dict(), tmp_path)
    whole, half = cut_body(**given), cut_body(**given, img_size=80)
    assert whole.net.pos_embed.shape[1] == 100 + 1 and half.net.pos_embed.shape[1] == 25 + 1
    assert torch.equal(whole.net.pos_embed[:, 0], half.net.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("arch", "size", "says"),
    [
        ("vit_tiny_patch16_224", "large", "vit_tiny_patch16_224 takes 224×224 pixels only"),
        ("crossvit_tiny_240", 96, "cannot take 96×96 pixels"),
    ],
)
def test_a_size_that_cannot_be_is_named(arch, size, says):
    with pytest.raises(HeadsError, match=rf"(?s)img_size={size!r}.*{says}"):
        cut_body(arch, pretrained=False, img_size=size)


@pytest.fixture
def fastais(monkeypatch):
    "Weights of fastai's xresnet50 that its loader would have downloaded."
    state = fastai_xresnet.xresnet50().state_dict()
    monkeypatch.setattr(fastai_zoo, "load_state_dict_from_url", lambda *args, **kwargs: {"model": state})
    return state


def test_fastais_weights_are_those_that_fastai_loads(fastais, monkeypatch):
    asked = []
    monkeypatch.setattr(
        fastai_xresnet, "load_state_dict_from_url", lambda url, **kwargs: asked.append(url) or {"model": fastais}
    )
    theirs = fastai_xresnet.xresnet50(pretrained=True).state_dict()
    body = cut_body("xresnet50")
    assert asked == [fastai_zoo.FASTAI_WEIGHTS["xresnet50"]]
    assert all(torch.equal(t, theirs[k]) for k, t in body.net.state_dict().items())


def test_keys_that_fastais_checkpoint_lacks_are_named(fastais):
    fastais["other.weight"] = fastais.pop("4.0.convpath.0.0.weight")
    with pytest.raises(HeadsError, match=r"xresnet50 .*4\.0\.convpath\.0\.0\.weight.*other\.weight"):
        cut_body("xresnet50")


def test_fastais_checkpoint_of_another_shape(fastais):
    with pytest.raises(HeadsError, match=r"(?s)checkpoint of xresnet50 does not fit.*size mismatch"):
        cut_body("xresnet50", n_out=10)


def test_what_fastai_cannot_build_is_no_arch():
    for name in fastai_zoo.BROKEN:
        with pytest.raises(TypeError):
            getattr(fastai_xresnet, name)()
        with pytest.raises(HeadsError, match=f"{name}.*neither"):
            cut_body(name)


def test_other_channels_with_fastais_weights(fastais):
    grey = torch.randn(2, 1, 32, 32)
    three, one = (cut_body("xresnet50", ("stem",), n_in=n).eval() for n in (3, 1))
    torch.testing.assert_close(one(grey)["stem"], three(grey.expand(-1, 3, -1, -1))["stem"])
    for n_in in (2, 4):
        body = cut_body("xresnet50", ("stem",), n_in=n_in)
        assert torch.equal(body.net[0][0].weight, adapt_weight(fastais["0.0.weight"], n_in))


@pytest.mark.parametrize("n_in", [1, 2, 4])
def test_other_channels_with_timms_weights_are_timms(n_in, tmp_path):
    torch.manual_seed(3)
    given = timm_file("test_resnet", timm.create_model("test_resnet").state_dict(), tmp_path)
    body = cut_body(**given, n_in=n_in).eval()
    file = given["pretrained_cfg_overlay"]
    theirs = timm.create_model("test_resnet", pretrained=True, in_chans=n_in, pretrained_cfg_overlay=file).eval()
    x = torch.randn(2, n_in, 64, 64)
    assert torch.equal(body(x)["features"], theirs.forward_features(x)) and body.mean is None
