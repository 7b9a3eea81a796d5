"""One training step of two heads, on the smallest arch of each family of the registry."""

import pytest
import torch

from benchmarks.sweep.training import training_step
from fastai_heads.archs.checks import OK, check_arch
from fastai_heads.archs.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.body import Body

QUICK = {"test_convnext", "test_efficientnet_gn", "test_vit", "test_nfnet", "test_mambaout", "test_byobnet",
         "test_resnet", "xresnet18", "torchvision:resnet18", "torchvision:squeezenet1_1",
         "torchvision:mobilenet_v3_small"}  # fmt: skip
LARGE = {"beit", "deepseek_vit", "gemma4_vit", "mobilenetv5", "naflexvit", "nasnet", "pnasnet", "qwen3_vit",
         "vision_transformer_sam"}  # fmt: skip
"Families of which even the smallest takes long; the sweep has them."
NAMES = [
    *sorted(arch for family, arch in SMALLEST.items() if family not in LARGE),
    *(f"torchvision:{n}" for n in SMALLEST_TORCHVISION.values()),
    "xresnet18",
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.zoo) for n in NAMES])
def test_a_step_with_two_heads(name):
    assert check_arch(name, Body, {"training": training_step}).results == {"training": OK}
