"""A cut that would break the network: what the kept part touches stays, and what is left is run."""

import pytest
import torch
from torch import nn

from fastai_heads.archs.hooks import HooksCut
from fastai_heads.archs.proof import equality
from fastai_heads.archs.surgery import snapshot
from fastai_heads.bodies.image import cut_body
from fastai_heads.errors import HeadsError

SMALL = {"depth": 2, "embed_dim": 128, "num_heads": 2}


@pytest.mark.parametrize(
    "arch",
    ["vit_small_patch16_rope_mixed_224", "vit_small_patch16_rope_mixed_ape_224", "vit_small_patch16_rope_224",
     "vit_base_patch16_rope_reg1_gap_256", "naflexvit_base_patch16_gap"],
)  # fmt: skip
@pytest.mark.parametrize("tap", ["blocks.0", "features", "pre_logits"])
def test_positions_that_are_used_by_a_method_stay(arch, tap):
    body = cut_body(arch, (tap,), pretrained=False, **SMALL).eval()
    x = torch.randn(1, 3, body.input_size or 256, body.input_size or 256)
    with torch.no_grad():
        assert body(x)[tap].isfinite().all()
    assert not {r.name for r in body.removed} & {"rope", "embeds", "pos_embed"}


class Breaks(nn.Module):
    "Asks a module for an attribute that it has, so that it cannot be taken off."

    def __init__(self):
        super().__init__()
        self.conv, self.settings, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x) * self.settings.out_features).mean((2, 3)))


def test_a_careful_cut_leaves_what_is_asked_for():
    net = Breaks().eval()
    body = cut_body(net, ("pre_logits",)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.fc(body(x)["pre_logits"]), net(x))
    assert [r.name for r in body.removed] == ["fc"]


def test_a_cut_that_changes_what_the_taps_give_is_refused(monkeypatch):
    def spoil(self, net, *args):
        net.conv.weight = nn.Parameter(net.conv.weight * 2)

    monkeypatch.setattr(HooksCut, "prune", spoil)
    with pytest.raises(HeadsError, match=r"Breaks does not work without .*\(pre_logits differs\)"):
        cut_body(Breaks(), ("pre_logits",))


def test_of_a_large_network_the_code_runs_without_values(monkeypatch):
    monkeypatch.setattr(equality, "CHEAP", 0)
    monkeypatch.setattr(HooksCut, "prune", lambda self, net, *args: setattr(net, "conv", nn.Identity()))
    with pytest.raises(HeadsError, match="Breaks does not work without"):
        cut_body(Breaks(), ("pre_logits",))


def test_undone_a_network_is_what_it_was():
    net = Breaks()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    undo = snapshot(net)
    net.fc, net.note, net.conv.bias = nn.Identity(), 3, None
    net.conv.weight.requires_grad_(False)
    undo()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and len(net.state_dict()) == len(before)
    assert not hasattr(net, "note") and net.conv.weight.requires_grad
