"""The smallest arch of each family of both zoos: what is claimed of every arch holds for it, and it trains a step."""

import pytest
import timm
import torch
from timm.models._registry import _model_to_module
from torchvision import models

from benchmarks.sweep.training import training_step
from fastai_heads.archs.points import arch_points
from fastai_heads.archs.proof.checks import CHECKS, check_arch
from fastai_heads.archs.proof.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.archs.registry import _FAMILIES
from fastai_heads.archs.segmentation_rows import SEGMENTATION
from fastai_heads.archs.torchvision_rows import TORCHVISION
from fastai_heads.bodies.image import ImageBody

# torch, of LeViT's and EfficientFormer's caches of their attention's biases: the exported program computes them
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? .* assigned during export:UserWarning")

ALL = {**CHECKS, "training": training_step}
EVERY = [*sorted(set(SMALLEST.values())), *(f"torchvision:{n}" for n in SMALLEST_TORCHVISION.values()), "xresnet18"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", EVERY)
def test_every_claim_holds_in_a_small_configuration(name):
    report = check_arch(name, ImageBody, ALL, shrink=True)
    assert report.ok, report.faults


@pytest.mark.zoo
@pytest.mark.parametrize("name", EVERY)
def test_every_claim_holds(name):
    report = check_arch(name, ImageBody, ALL)
    assert report.ok, report.faults


def test_every_module_of_timm_has_an_arch_here():
    assert {_model_to_module[n] for n in timm.list_models()} <= set(SMALLEST)


def test_every_row_of_torchvision_has_an_arch_here():
    assert {f.name for f in (*TORCHVISION, *SEGMENTATION)} == set(SMALLEST_TORCHVISION)


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
    assert arch_points("torchvision:resnet18").zoo == "torchvision"
    assert arch_points("timm:resnet18").zoo == "timm"
