"""`multihead_learner`: what it takes, what it makes of it, and what it refuses."""

import pytest
import torch
from fastai.data.transforms import Normalize
from fastai.metrics import accuracy, mae
from fastai.vision.models.xresnet import xresnet18
from torch import nn
from torchvision import models
from torchvision.models import ResNet18_Weights

from fastai_heads.bodies.image import cut_body
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.trunks import Trunk

STATS = ResNet18_Weights.DEFAULT.transforms()


@pytest.fixture
def weights(torch_home):
    "What a download of resnet18's weights would have left; the network that they are of."
    net = models.resnet18()
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    return net


def normalizers(dls):
    return [[f for f in dl.after_batch.fs if isinstance(f, Normalize)] for dl in dls.loaders]


# archs


@pytest.mark.parametrize("arch", [xresnet18, "test_vit", "resnet10t", models.resnet18, "test_convnext"])
def test_every_zoo_gives_a_learner(make_learner, arch):
    learn = make_learner("digit", "ink", arch=arch)
    assert isinstance(learn, MultiHeadLearner)
    inputs, *_ = learn.dls.one_batch()
    digit, ink = learn.model(inputs)
    assert digit.shape == (8, 10) and ink.shape == (8, 1)


def test_a_network_that_is_built_keeps_its_weights(make_dls, quiet):
    net = models.resnet18()
    learn = quiet(multihead_learner(make_dls("digit"), net))
    assert torch.equal(learn.model[0].net.conv1.weight, net.conv1.weight)
    assert all(p.requires_grad for p in learn.model.parameters()), "not known to be pretrained, so not frozen"
    assert normalizers(learn.dls) == [[], []]
    learn.fit(1)
    assert not torch.equal(learn.model[0].net.conv1.weight, net.conv1.weight), "a copy is trained, not the user's"


def test_a_body_is_used_as_it_is(make_dls):
    body = cut_body(models.resnet18, pretrained=False)
    assert multihead_learner(make_dls("digit"), body).model[0] is body


@pytest.mark.parametrize("wrong", [{"pretrained": False}, {"weights": "DEFAULT"}])
def test_weights_of_a_network_that_is_built_cannot_be_chosen(make_dls, wrong):
    name = next(iter(wrong))
    for arch in (models.resnet18(), cut_body("test_resnet", pretrained=False)):
        with pytest.raises(HeadsError, match=f"`{name}.*` cannot be used: `arch` is a {type(arch).__name__}"):
            multihead_learner(make_dls("digit"), arch, **wrong)


def test_options_of_the_arch_reach_it(make_learner):
    learn = make_learner("digit", arch="vit_tiny_patch16_224", body_kwargs={"img_size": 32})
    assert learn.model[0].input_size == 32
    assert learn.model(learn.dls.one_batch()[0])[0].shape == (8, 10)


# pretrained


def test_pretrained_weights_are_loaded_frozen_and_normalised(make_dls, weights):
    learn = multihead_learner(make_dls("digit", "ink"), models.resnet18)
    assert torch.equal(learn.model[0].net.conv1.weight, weights.conv1.weight)
    assert learn.opt.frozen_idx == 2
    assert not learn.model[0].net.conv1.weight.requires_grad
    assert all(p.requires_grad for p in learn.model[1].parameters())
    found = normalizers(learn.dls)
    assert [len(n) for n in found] == [1, 1]
    for normalize in (n[0] for n in found):
        torch.testing.assert_close(normalize.mean.view(-1).cpu(), torch.tensor(STATS.mean))
        torch.testing.assert_close(normalize.std.view(-1).cpu(), torch.tensor(STATS.std))


def test_the_batch_is_normalised_by_the_statistics_once(make_dls, weights):
    plain, dls = make_dls("digit"), make_dls("digit")
    for _ in range(2):
        multihead_learner(dls, models.resnet18)
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in (STATS.mean, STATS.std))
    expected = (torch.Tensor(plain.valid.one_batch()[0]).cpu() - mean) / std
    torch.testing.assert_close(torch.Tensor(dls.valid.one_batch()[0]).cpu(), expected, rtol=1e-5, atol=1e-5)


def test_data_that_is_normalised_already_stays_as_it_is(scenes, weights):
    own = Normalize.from_stats((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    dls = digits_dls(path=scenes, n=40, size=32, bs=8, batch_tfms=[own])
    multihead_learner(dls, models.resnet18)
    assert [len(n) for n in normalizers(dls)] == [1, 1]
    assert normalizers(dls)[0][0].mean.view(-1).tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("kwargs", [{"normalize": False}, {"pretrained": False}])
def test_nothing_is_normalised_without_a_reason(make_dls, weights, kwargs):
    dls = make_dls("digit")
    multihead_learner(dls, models.resnet18, **kwargs)
    assert normalizers(dls) == [[], []]


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT", ResNet18_Weights.IMAGENET1K_V1])
def test_weights_by_name(make_dls, weights, name):
    learn = multihead_learner(make_dls("digit"), models.resnet18, weights=name)
    assert learn.model[0].weights == "IMAGENET1K_V1"
    assert torch.equal(learn.model[0].net.conv1.weight, weights.conv1.weight)


def test_pretrained_weights_train_by_fine_tune(make_dls, weights, quiet):
    learn = quiet(multihead_learner(make_dls("digit", "ink"), models.resnet18))
    learn.fine_tune(1)
    assert len(learn.rows) == 2 and learn.opt.frozen_idx == 0
    assert not torch.equal(learn.model[0].net.conv1.weight, weights.conv1.weight)


def test_what_is_refused_leaves_the_data_as_it_was(make_dls, weights):
    dls = make_dls("digit")
    wrong = {"neck": Trunk(lambda n: "no module")}
    with pytest.raises(HeadsError, match="made 'no module'"):
        multihead_learner(dls, models.resnet18, {"digit": ClassificationHead(tap="neck")}, trunk=wrong)
    assert normalizers(dls) == [[], []]


# what is refused


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loss_func", r"`heads=\{name: ClassificationHead\(loss=…\)\}`"),
        ("splitter", "a head's own rate is `lr_mult=` of its spec"),
        ("n_out", r"ClassificationHead\(n_out=…\)"),
        ("cut", r"name taps instead.*cut_points\(arch\)"),
        ("custom_head", r"CustomHead\(module\)"),
        ("concat_pool", "pool='avg'"),
        *((name, rf"ClassificationHead\({name}=…\)") for name in ("lin_ftrs", "ps", "first_bn", "y_range", "init")),
        ("pretraned", "Did you mean 'pretrained'"),
        ("metric", "Did you mean 'metrics'"),
        ("weight", "Did you mean 'weights'"),
        ("trunks", "Did you mean 'trunk'"),
        ("optfunc", "Did you mean 'opt_func'"),
        ("xyz", "$"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_gets_the_right_one(make_dls, name, says):
    with pytest.raises(HeadsError, match=rf"^`{name}` is not a parameter of `multihead_learner`[.:].*{says}"):
        multihead_learner(make_dls("digit"), "test_resnet", pretrained=False, **{name: None})


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("resnt18", "`arch='resnt18'` is neither in timm nor.* Did you mean 'resnet18'"),
        (3, "`arch`: expected a name, a function or an nn.Module, found int"),
        (None, "found NoneType"),
        (lambda: 3, "<lambda> gave int, expected an nn.Module"),
    ],
)
def test_an_unknown_arch_gets_the_nearest(make_dls, arch, says):
    with pytest.raises(HeadsError, match=says):
        multihead_learner(make_dls("digit"), arch, pretrained=False)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"weights": "IMAGENET1K_V7"}, "found 'IMAGENET1K_V7'. Did you mean 'IMAGENET1K_V1'"),
        ({"weights": "DEFAULT", "pretrained": False}, "`weights=DEFAULT` contradicts `pretrained=False`"),
        ({"n_in": 0, "pretrained": False}, "`n_in` is the number of an image.s channels, at least one, found 0"),
        ({"n_in": 1, "pretrained": False}, "`n_in`: the body of resnet18 takes images of 1 channels, found 3"),
        ({"body_kwargs": {"n_in": 3}}, "`body_kwargs`.*`n_in` is none: pass `n_in=` to `multihead_learner`"),
        ({"body_kwargs": {"taps": "layer4"}}, "`body_kwargs`.*`taps` is none: they follow from `tap=` of the heads"),
        ({"body_kwargs": {"layrs": 3}, "pretrained": False}, "resnet18 could not be built with .*layrs"),
    ],
)  # fmt: skip
def test_what_the_arch_cannot_take_is_refused(make_dls, kwargs, says):
    with pytest.raises(HeadsError, match=says):
        multihead_learner(make_dls("digit"), models.resnet18, **kwargs)


def test_fastais_archs_without_weights_say_so(make_dls):
    with pytest.raises(HeadsError, match="`pretrained=True`: fastai has no weights for xresnet18; say pre"):
        multihead_learner(make_dls("digit"), xresnet18)


@pytest.mark.parametrize(
    ("tap", "says"),
    [
        ("layer9", r"`heads\['digit'\]`: `tap='layer9'`, which resnet18 does not have\. Did you mean 'layer4'"),
        (7, r"`heads\['digit'\]`: `tap=7`: resnet18 has no tap at that stride\. Its strides: 2, 4, 8, 16, 32"),
    ],
)
def test_an_unknown_tap_says_who_reads_it(make_dls, tap, says):
    heads = {"digit": ClassificationHead(tap=tap)}
    with pytest.raises(HeadsError, match=says):
        multihead_learner(make_dls("digit", "ink"), models.resnet18, heads, pretrained=False)
    trunk = {"neck": Trunk(nn.Identity(), tap=tap)}
    with pytest.raises(HeadsError, match=says.replace(r"heads\['digit'\]", r"trunk\['neck'\]")):
        multihead_learner(
            make_dls("digit"), models.resnet18, {"digit": ClassificationHead(tap="neck")}, trunk=trunk, pretrained=False
        )


@pytest.mark.parametrize(
    ("trunk", "tap", "says"),
    [
        ({"neck": nn.Identity()}, "neck", r"`trunk\['neck'\]` is a `Trunk\(module, tap=…\)`, found Identity"),
        ({"neck": Trunk(nn.Identity())}, "features", r"`trunk\['neck'\]` is read by no head: pass `tap='neck'`"),
        ({"layer1": Trunk(nn.Identity())}, "layer1", "`trunk` 'layer1' has the name of a tap of resnet18"),
        (Trunk(nn.Identity()), "neck", r"`trunk` is a dict of name to `Trunk\(module, tap=…\)`, found Trunk"),
        ({"my neck": Trunk(nn.Identity())}, "my neck", "`trunk`: the name 'my neck' is not an identifier.*'my_neck'"),
        ({"neck": Trunk(nn.Flatten(0))}, "neck", r"gives a map \(B, C, H, W\) or a vector \(B, C\), found \(512,\)"),
    ],
)
def test_a_trunk_that_cannot_stand_is_refused(make_dls, trunk, tap, says):
    heads = {"digit": ClassificationHead(tap=tap)}
    with pytest.raises(HeadsError, match=says):
        multihead_learner(make_dls("digit"), models.resnet18, heads, trunk=trunk, pretrained=False)


def test_images_that_are_too_small_are_refused(make_dls):
    with pytest.raises(HeadsError, match="image size: alexnet cannot take 32×32 pixels; the smallest side"):
        multihead_learner(make_dls("digit"), models.alexnet, pretrained=False)
    with pytest.raises(HeadsError, match="image size: vit_tiny_patch16_224 takes 224×224 pixels only, found 32×32"):
        multihead_learner(make_dls("digit"), "vit_tiny_patch16_224", pretrained=False)


def test_metrics_that_no_head_takes_are_refused(make_dls):
    with pytest.raises(HeadsError, match=r"`metrics`: no head takes mae\. Heads: digit \(category\)"):
        multihead_learner(make_dls("digit"), "test_resnet", pretrained=False, metrics=[accuracy, mae])


def test_a_refused_learner_leaves_no_trace(make_dls, quiet):
    dls = make_dls("digit", "ink")
    state = torch.get_rng_state()
    with pytest.raises(HeadsError):
        multihead_learner(dls, "test_resnet", {"ink": RegressionHead(n_out=2)}, pretrained=False)
    assert torch.equal(state, torch.get_rng_state())
    quiet(multihead_learner(dls, "test_resnet", pretrained=False)).fit(1)


def test_learner_options_reach_fastai(make_learner, tmp_path):
    learn = make_learner(
        "digit", path=tmp_path / "here", model_dir="there", wd=0.3, train_bn=False, moms=(0.8, 0.7, 0.8)
    )
    assert learn.path == tmp_path / "here" and learn.model_dir == "there" and learn.moms == (0.8, 0.7, 0.8)
    learn.fit(1)
    assert learn.opt.hypers[0]["wd"] == 0.3
    learn.freeze()
    assert not any(p.requires_grad for p in learn.model[0].parameters())


@pytest.mark.parametrize(
    ("heads", "tap", "head", "parameter"),
    [
        ({"digit": ClassificationHead(tap="layr2")}, "layr2", "digit", "tap"),
        ({"digit": ClassificationHead(tap=7)}, 7, "digit", "tap"),
        ({"digit": ClassificationHead(class_weights=[1.0])}, None, "digit", "class_weights"),
    ],
    ids=["a name", "a stride", "a field"],
)
def test_a_refusal_says_in_data_what_it_is_about(make_dls, heads, tap, head, parameter):
    with pytest.raises(HeadsError) as found:
        multihead_learner(make_dls(), "test_resnet", heads, pretrained=False)
    assert (found.value.tap, found.value.head, found.value.parameter) == (tap, head, parameter)
