"""The check of a cut, by the network that the zoo builds: it passes what is right, and finds what is not."""

import pytest
import torch

from benchmarks.sweep import cut
from benchmarks.sweep.cut import CUT, cut_row
from benchmarks.sweep.passing import find, follows
from benchmarks.zoo import read, sweep
from fastai_heads.archs.timm_zoo import TimmCut
from fastai_heads.bodies.image import ImageBody

NO_TOKEN = "not run: the logits read other tokens beside it"
TWO_TOKENS = "not run: two tokens, each with a classifier; `pre_logits` is the mean of the two tokens"


def results(name):
    row = cut_row(name)
    return {check: row[check] for check in CUT if row[check] != "ok"}


@pytest.mark.parametrize(
    ("name", "but"),
    [
        ("test_resnet", {}),
        ("test_mambaout", {}),  # channels last
        ("shufflenet_v2_x0_5", {}),  # torchvision's, whose last map no module gives
        ("test_vit", {"map": NO_TOKEN}),
        ("pit_ti_distilled_224", {"vector": TWO_TOKENS, "map": NO_TOKEN}),
    ],
)
def test_what_is_right_passes(name, but):
    assert results(name) == but


def spoiled(tap, change):
    run = TimmCut.run

    def spoil(self, net, x, taps):
        found = run(self, net, x, taps)
        return found | {t: change(v) for t, v in found.items() if t == tap}

    return spoil


@pytest.mark.parametrize(
    ("tap", "change", "wrong"),
    [
        ("features", lambda x: x + 1e-6, {"taps", "map"}),
        ("features", lambda x: x.transpose(2, 3), {"taps", "map"}),
        ("pre_logits", lambda x: x * 1.0001, {"taps", "vector"}),
        ("features", lambda x: x.detach(), {"gradients"}),
    ],
)
def test_a_wrong_tap_is_found(monkeypatch, tap, change, wrong):
    monkeypatch.setattr(TimmCut, "run", spoiled(tap, change))
    assert set(results("test_resnet")) == wrong


@pytest.mark.parametrize("wrong", ["parameters", "state"])
def test_a_wrong_body_is_found(monkeypatch, wrong):
    make = ImageBody.__init__

    def spoil(self, network, taps, measured):
        make(self, network, taps, measured)
        if wrong == "parameters":
            self.removed = self.removed[1:]
        elif self.taps == ("features",):
            with torch.no_grad():
                next(self.net.parameters()).mul_(2)

    monkeypatch.setattr(ImageBody, "__init__", spoil)
    assert set(results("test_resnet")) == {wrong}


def test_what_cannot_be_built_is_a_fault_and_the_rest_is_not_run(monkeypatch):
    monkeypatch.setattr(cut, "find_network", lambda request: 1 / 0)
    row = cut_row("test_resnet")
    assert row["build"] == "fault: ZeroDivisionError: division by zero"
    assert {row[c] for c in CUT[1:]} == {"not run"} and row["mparams"] == "0.47"


def test_a_value_put_in_its_place_decides_the_answer():
    x, other = torch.rand(2, 1, 3, 3) - 0.5, torch.rand(2, 1, 3, 3) - 0.5

    def all_through(x):
        return torch.relu(x * 2).sum((1, 2, 3))[:, None]

    def also_beside(x):
        return all_through(x) + x[:, 0, :1, 0] * 1e-3

    for net, through in ((all_through, True), (also_beside, False)):
        out, places = find(net, x, {"map": torch.relu(x * 2), "no": x * 3})
        assert places["map"] and not places["no"]
        assert torch.equal(follows(net, other, places["map"])[0], out[0]) is through


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    table = tmp_path / "cut.csv"
    sweep(["test_resnet"], "cut", table, jobs=1, limit=120, memory=8)
    sweep(["test_vit4"], "cut", table, jobs=1, limit=0.01, memory=8)
    done, late = read(table)
    assert done["build"] == "ok" and done["shapes"] == "ok" and done["side"] == "64"
    assert late["build"] == "not run: more than 0 s" and late["taps"] == "not run: ended before"
