"""The smallest arch of each family of both zoos: what is claimed of every arch holds for it."""

import pytest
import timm
import torch
from timm.models._registry import _model_to_module
from torchvision import models

from fastai_heads.archs.checks import CHECKS, check_arch
from fastai_heads.archs.registry import _FAMILIES
from fastai_heads.archs.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.archs.torchvision_rows import TORCHVISION
from fastai_heads.body import Body, cut_points

CLAIMS = {c: CHECKS[c] for c in ("equality", "shapes", "one_by_one", "gradients", "survival")}
QUICK = {"test_convnext", "test_efficientnet_gn", "test_vit", "test_nfnet", "test_mambaout", "test_byobnet",
         "test_resnet", "starnet_s050", "efficientvit_m0", "ghostnet_050", "efficientvim_m1",
         "repvit_m0_9", "edgenext_xx_small", "mobilenetv3_small_050", "levit_128s"}  # fmt: skip
QUICK_TORCHVISION = {"alexnet", "resnet18", "squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "mobilenet_v3_small",
                     "mnasnet0_5", "regnet_y_400mf"}  # fmt: skip


def marked(names, quick):
    return [pytest.param(n, marks=() if n in quick else pytest.mark.zoo) for n in names]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", marked(sorted(set(SMALLEST.values())), QUICK))
def test_timm(name):
    report = check_arch(name, Body, CLAIMS)
    assert report.zoo == "timm" and report.ok, report.faults


@pytest.mark.parametrize("name", marked(SMALLEST_TORCHVISION.values(), QUICK_TORCHVISION))
def test_torchvision(name):
    report = check_arch(f"torchvision:{name}", Body, CLAIMS)
    assert report.zoo == "torchvision" and report.ok, report.faults


@pytest.mark.parametrize("name", ["xresnet18", pytest.param("xresnet18_deep", marks=pytest.mark.zoo)])
def test_fastai(name):
    report = check_arch(name, Body, CLAIMS)
    assert report.zoo == "fastai" and report.ok, report.faults


def test_every_module_of_timm_has_an_arch_here():
    assert {_model_to_module[n] for n in timm.list_models()} <= set(SMALLEST)


def test_every_row_of_torchvision_has_an_arch_here():
    assert {f.name for f in TORCHVISION} == set(SMALLEST_TORCHVISION)


def test_every_classification_arch_of_torchvision_has_a_row():
    for name in models.list_models(module=models):
        build = models.get_model_builder(name)
        with torch.device("meta"):
            try:
                net = build(**({"init_weights": True} if name in ("googlenet", "inception_v3") else {}))
            except RuntimeError:  # RegNet's initialisation wants numbers
                continue
        assert type(net) in _FAMILIES, name


def test_the_other_zoo_is_asked_for_by_name():
    assert cut_points("torchvision:resnet18").zoo == "torchvision"
    assert cut_points("timm:resnet18").zoo == "timm"
