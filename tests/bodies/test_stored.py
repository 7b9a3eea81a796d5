"""What is stored of a body gives its taps again, bit for bit."""

import pytest
import torch
from torch import nn

from fastai_heads.bodies.image import cut_body
from fastai_heads.bodies.stored import StoredBody, held_taps
from fastai_heads.modes import evaluate


@pytest.fixture
def body():
    return cut_body("test_resnet", ("layer2", "features"), pretrained=False)


def test_maps_and_pooled_vectors_come_back(body):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stored, x = StoredBody.of(body, {"features": {"avg": pool}}), torch.randn(3, 3, 32, 32)
    with evaluate(body):
        kept, taps = stored.store(x), body(x)
        given = stored.give(kept)
    assert list(kept) == ["layer2", ("features", "avg")] and stored.live is None and stored.networks() == [body]
    assert torch.equal(given["layer2"], taps["layer2"])
    assert torch.equal(given["features", "avg"], pool(taps["features"])) and "features" not in given


def test_hooks_on_taps_see_stored_ones(body):
    stored, seen = StoredBody.of(body, {}), []
    body.tap_modules["tap_layer2"].register_forward_hook(lambda *args: seen.append(args[2].shape))
    with evaluate(body):
        kept = stored.store(torch.randn(2, 3, 32, 32))
        stored.give(kept)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_a_body_that_trains_is_not_stored(body, monkeypatch):
    assert held_taps(body) == ("layer2", "features")
    monkeypatch.setattr(type(body), "held", lambda self: [])
    assert held_taps(body) == ()
