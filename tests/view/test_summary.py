"""The summary: what was removed, kept and added, counted by other means."""

import pytest
import timm
import torch
from fastai.vision.models.xresnet import xresnet18
from torch import nn
from torchvision import models
from torchvision.models import ResNet18_Weights

from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.trunks import Trunk


def layers(module):
    "Modules that do something and hold no others."
    idle = (nn.Identity, nn.Sequential, nn.ModuleDict)
    return sum(not list(m.children()) and not isinstance(m, idle) for m in module.modules())


def params(module):
    return sum(p.numel() for p in module.parameters())


def rows(summary):
    "The table as dicts, by the first column."
    names = ("head", "target", "tap", "layers", "output", "params", "trainable", "loss", "weight")
    return {row[0]: dict(zip(names, row, strict=True)) for row in summary.rows}


def test_the_first_lines_answer_the_newcomers_question(make_learner):
    lines = str(make_learner("digit", "ink", arch=models.resnet18).summary()).splitlines()
    whole = models.resnet18()
    kept = nn.Sequential(*list(whole.children())[:-2])
    assert params(whole.fc) == 513_000
    assert lines[0] == "resnet18 (torchvision, not pretrained) with 2 heads"
    assert lines[1] == "Removed: 2 layers with 513,000 parameters: avgpool (AdaptiveAvgPool2d), fc (Linear)"
    assert lines[2] == (
        f"Kept:    {layers(kept)} layers with {params(kept):,} parameters in the body, "
        "tapped at features (512 channels at stride 32)"
    )
    digit = 1024 * 2 + 1024 * 512 + 512 * 2 + 512 * 10  # batch norm, linear, batch norm, linear: no biases
    # two pools, flatten, batch norm, dropout, linear, ReLU, batch norm, dropout, linear; `ink` also its unit
    assert lines[3] == f"Added:   21 layers with {digit + digit - 512 * 9:,} parameters in 2 heads"


@pytest.mark.parametrize("arch", [models.resnet18, xresnet18, "test_resnet", "test_vit", "resnet10t"])
def test_nothing_is_lost_between_removed_and_kept(make_learner, arch):
    learn = make_learner("digit", arch=arch)
    whole = timm.create_model(arch) if isinstance(arch, str) else arch()
    body = learn.model[0]
    removed, left_out = (sum(r.params for r in part) for part in (body.removed, body.left_out))
    assert params(body) + removed + left_out == params(whole)
    assert f"{removed:,} parameters: " in learn.summary().first[1]
    assert f"with {params(body):,} parameters in the body" in learn.summary().first[2]


def test_trained_layers_that_are_left_out_are_said(make_learner):
    learn = make_learner("digit", arch="test_convnext")
    assert learn.summary().first[-1].startswith("Trained before the classifier and left out: 1 layer with")
    assert learn.summary().first[-1].endswith("head.norm (LayerNorm2d); `tap='pre_logits'` keeps them")
    kept = make_learner("digit", arch="test_convnext", heads={"digit": ClassificationHead(tap="pre_logits")})
    assert len(kept.summary().first) == 4
    assert "a vector" in kept.summary().first[2]


def test_every_head_has_a_row(make_learner):
    learn = make_learner("digit", "tags", "ink", "centre", "box", arch=models.resnet18)
    found = rows(learn.summary())
    assert list(found) == ["digit", "tags", "ink", "centre", "box"]
    expected = {"digit": (10, "CrossEntropyLoss"), "tags": (7, "BCEWithLogitsLoss"), "ink": (1, "MSELoss"),
                "centre": (2, "MSELoss"), "box": (4, "L1Loss")}  # fmt: skip
    for name, (n_out, loss) in expected.items():
        module = learn.model[1][name]
        assert found[name] == {
            "head": name, "target": name, "tap": "features", "layers": str(layers(module)), "output": f"bs × {n_out}",
            "params": f"{params(module):,}", "trainable": "yes", "loss": loss, "weight": "1",
        }  # fmt: skip


@pytest.fixture
def rich(make_learner):
    heads = {
        "sort": ClassificationHead(tap="neck", target="digit", loss_weight=0.25),
        "aux": ClassificationHead(target="digit", tap="layer2", train_only=True),
        "ink": RegressionHead(tap=8),
    }
    trunk = {"neck": Trunk(lambda channels: nn.Sequential(nn.Conv2d(channels, 16, 1), nn.ReLU()))}
    return make_learner("digit", "ink", heads=heads, trunk=trunk, arch=models.resnet18)


def test_trunks_and_auxiliary_heads_are_named_as_such(rich):
    summary = rich.summary()
    found = rows(summary)
    assert list(found) == ["neck (trunk)", "sort", "aux (auxiliary)", "ink"]
    assert found["neck (trunk)"]["tap"] == "features" and found["neck (trunk)"]["params"] == f"{512 * 16 + 16:,}"
    assert found["sort"]["tap"] == "neck" and found["sort"]["target"] == "digit" and found["sort"]["weight"] == "0.25"
    assert found["aux (auxiliary)"]["tap"] == found["ink"]["tap"] == "layer2", "a stride is said by its tap's name"
    assert "in 3 heads and 1 trunk" in summary.first[3]
    assert "tapped at features (512 channels at stride 32), layer2 (128 channels at stride 8)" in summary.first[2]
    assert "Loss: 0.25 * sort (CrossEntropyLoss) + 1 * aux (CrossEntropyLoss) + 1 * ink (MSELoss)" in summary.last


def test_what_is_frozen_is_counted(rich):
    whole, norms = params(rich.model), sum(
        params(m) for m in rich.model[0].modules() if isinstance(m, nn.BatchNorm2d)
    )  # fmt: skip
    assert f"Parameters: {whole:,}, of them trainable {whole:,}" in rich.summary().last
    rich.freeze()
    last = rich.summary().last
    assert f"Parameters: {whole:,}, of them trainable {params(rich.model[1]) + norms:,}" in last
    assert "Groups: 3 (the heads are the last), frozen up to #2" in last
    assert rows(rich.summary())["ink"]["trainable"] == "yes"
    for p in rich.heads.ink.module.parameters():
        p.requires_grad_(False)
    assert rows(rich.summary())["ink"]["trainable"] == "0"
    rich.unfreeze()
    assert "Groups: 3 (the heads are the last), none frozen" in rich.summary().last


def test_the_training_settings_are_said(rich):
    last = rich.summary().last
    assert "Optimizer: Adam" in last
    assert last[-1].removeprefix("Callbacks: ").split(", ") == [type(cb).__name__ for cb in rich.cbs.sorted("order")]


def test_weights_in_use_are_named(make_dls, torch_home):
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(models.resnet18().state_dict(), folder / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    summary = multihead_learner(make_dls("digit"), models.resnet18).summary()
    assert summary.first[0] == "resnet18 (torchvision, weights IMAGENET1K_V1) with 1 head"


def test_text_is_a_table_and_html_escapes(rich):
    summary = rich.summary()
    text = str(summary).splitlines()
    start = text.index("") + 1
    assert text[start].split() == ["head", "target", "tap", "layers", "output", "params", "trainable", "loss", "weight"]
    assert set(text[start + 1]) == {"─"}
    place = text[start].index("tap")
    assert all(line[place - 1] == " " and line[place] != " " for line in text[start + 2 : start + 6])
    assert repr(summary) == str(summary)
    html = summary._repr_html_()
    assert html.count("<tr>") == 5 and html.count("<th>") == 9 and html.count("<td>") == 36
    assert "<td>aux (auxiliary)</td>" in html


def test_html_escapes_what_users_wrote(make_learner):
    def loss(pred, targ):
        return nn.functional.cross_entropy(pred, targ)

    loss.__name__ = "<b>loss</b>"
    html = make_learner("digit", heads={"digit": ClassificationHead(loss=loss, metrics=[])}).summary()._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;loss&lt;/b&gt;" in html


def test_looking_changes_nothing(rich):
    rich.model.train()
    before = {k: v.clone() for k, v in rich.model.state_dict().items()}
    state = torch.get_rng_state()
    rich.summary()
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in rich.model.modules())
    assert all(torch.equal(v, before[k]) for k, v in rich.model.state_dict().items())


def test_rows_add_up(rich):
    summary = rich.summary()
    for column, total in (("layers", layers(rich.model[1])), ("params", params(rich.model[1]))):
        assert sum(int(row[column].replace(",", "")) for row in rows(summary).values()) == total
    assert f"Added:   {layers(rich.model[1])} layers with {params(rich.model[1]):,} parameters" in summary.first[3]


def test_a_head_on_a_vector_has_no_pool_to_count(make_learner):
    learn = make_learner("digit", heads={"digit": ClassificationHead(tap="pre_logits")})
    assert rows(learn.summary())["digit"]["layers"] == "7"
