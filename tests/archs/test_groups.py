"""Parameter groups by depth: what the late half of an arch is, and what `freeze_to(-2)` trains."""

import pytest
from timm.models._manipulate import group_with_matcher

from benchmarks.sweep.training import random_dls
from fastai_heads.bodies.image import cut_body
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.learner import multihead_learner


@pytest.mark.parametrize("arch", ["test_vit", "resnet10t", "test_convnext"])
def test_timms_halves_are_by_its_own_depth(arch):
    body = cut_body(arch, pretrained=False)
    depths = group_with_matcher(body.net.named_parameters(), body.net.group_matcher(coarse=False), reverse=True)
    early, late = ({id(p) for p in group} for group in body.groups())
    early_depths = {depths[k] for k, p in body.net.named_parameters() if id(p) in early}
    late_depths = {depths[k] for k, p in body.net.named_parameters() if id(p) in late}
    assert max(early_depths) < min(late_depths)
    assert abs(len(early_depths) - len(late_depths)) <= 1


@pytest.mark.parametrize(
    ("arch", "first_late"),
    [("test_vit", "blocks.3"), ("resnet10t", "layer3"), ("torchvision:resnet18", "layer3"), ("xresnet18", "4")],
)
def test_freeze_to_trains_the_late_half_and_the_heads(arch, first_late):
    heads = {"kind": ClassificationHead(target=0), "value": RegressionHead(target=1)}
    side = cut_body(arch, pretrained=False).input_size or 64
    learn = multihead_learner(random_dls(3, side), arch, heads, pretrained=False, train_bn=False)
    learn.freeze_to(-2)
    body = learn.model[0]
    names = [k for k, _ in body.net.named_parameters()]
    start = next(i for i, k in enumerate(names) if k.startswith(f"{first_late}."))
    trained = [k for k, p in body.net.named_parameters() if p.requires_grad]
    assert trained == names[start:] and 0 < start < len(names)
    assert all(p.requires_grad for k, p in learn.model.named_parameters() if k.startswith("1."))
