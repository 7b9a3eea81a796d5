"""A bundle: what is written, what is refused before anything is, what is read, and what is never done."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from fastai.data.transforms import Normalize
from fastai.vision.augment import Resize, aug_transforms
from fasttransform import Transform
from safetensors.torch import load_file, save
from torch import nn

from fastai_heads.archs.registry import register_arch
from fastai_heads.errors import HeadsError
from fastai_heads.export.answers import as_plain
from fastai_heads.export.bundle import load_bundle, save_bundle
from fastai_heads.export.files import MANIFEST, WEIGHTS, read_json
from fastai_heads.heads import ClassificationHead, CustomHead
from fastai_heads.heads.said import register_module
from fastai_heads.trunks import Trunk

KEPT = Path(__file__).parent / "bundle_1"  # written by the first version


@pytest.fixture(scope="module")
def learn(make_images):
    return make_images(("digit", "ink"), item_tfms=Resize(32))


@pytest.fixture
def folder(learn, tmp_path):
    return save_bundle(learn, tmp_path / "bundle", license="apache-2.0", notes="Digits.")


def change(folder: Path, edit) -> None:
    "Change a manifest, or what is written."
    said = json.loads((folder / MANIFEST).read_text())
    edit(said)
    (folder / MANIFEST).write_text(json.dumps(said))


def test_weights_are_kept_to_the_bit(images, tmp_path):
    folder = save_bundle(images, tmp_path / "b")
    found, own = load_file(folder / WEIGHTS), images.model.state_dict()
    assert all(torch.equal(t, own[name]) and t.dtype == own[name].dtype for name, t in found.items())
    assert not any("head_extra" in name for name in found) and {n for n in own if "head_extra" not in n} == set(found)
    loaded = load_bundle(folder).network.network.state_dict()
    assert all(torch.equal(t, loaded[name]) for name, t in found.items())


def test_half_precision_stays(make_images, tmp_path):
    learn = make_images(("digit",))
    learn.model.bfloat16()
    with pytest.raises(HeadsError, match=r"cannot be|is not this network"):  # images are float32, and it fails on them
        save_bundle(learn, tmp_path / "b")


def test_the_files(folder, learn):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", MANIFEST, WEIGHTS]
    said = json.loads((folder / MANIFEST).read_text())
    assert said["schema"] == 1 and said["license"] == "apache-2.0" and "torch" in said["versions"]
    assert said["weights"]["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and "Digits." in card and "| ink | numbers |" in card


def test_a_bundle_of_version_1_loads():
    predictor = load_bundle(KEPT)
    said = json.loads((KEPT / "expected.json").read_text())
    found = as_plain(predictor(KEPT / "digit.png"))
    assert found["digit"]["label"] == said["digit"]["label"] and found["ink"] == pytest.approx(said["ink"], rel=1e-5)


def test_a_folder_that_is_there_is_kept(learn, folder, tmp_path, monkeypatch):
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(HeadsError, match="overwrite=True"):
        save_bundle(learn, folder)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_bundle(learn, folder, overwrite=True)
    monkeypatch.undo()
    assert (folder / WEIGHTS).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["bundle"]
    save_bundle(learn, folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(HeadsError, match="is no bundle"):
        save_bundle(learn, tmp_path / "mine", overwrite=True)


def test_no_pickle_anywhere(images, tmp_path, scenes, rows, monkeypatch):
    def never(*_, **__):
        raise AssertionError("pickle")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, never)
    folder = save_bundle(images, tmp_path / "b")
    assert load_bundle(folder)(scenes / rows.image[0]).names


def test_it_serves_without_a_learner_and_with_nothing_the_file_names(folder):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from fastai_heads import load_bundle\n"
        f"load_bundle({str(folder)!r})\n"
        "print([m for m in sys.modules if m.startswith(('fastai_heads.learner', 'fastai_heads.view', 'fastai.text'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# what cannot be said


class Twice(Transform):
    order = 1

    def encodes(self, x: torch.Tensor):
        return x


def double(x):
    return x


@pytest.mark.parametrize("bad", [Twice(), double, lambda x: x], ids=["class", "function", "lambda"])
def test_an_unknown_transform_is_refused_by_name(make_images, tmp_path, bad):
    learn = make_images(("digit",), item_tfms=[Resize(32), bad])
    with pytest.raises(HeadsError, match=r"`item_tfms` holds (Twice|double|<lambda>)"):
        save_bundle(learn, tmp_path / "b")
    assert not list(tmp_path.iterdir())


class Own(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.lin = nn.Linear(n, 10)

    def forward(self, x):
        return self.lin(x.mean((2, 3)))


def make_own(n: int) -> nn.Module:
    return Own(n)


def test_a_module_of_no_registry_is_refused_by_name(make_images, tmp_path, scenes, rows):
    learn = make_images(("digit",), heads={"digit": CustomHead(make_own)})
    with pytest.raises(HeadsError, match=r"heads\['digit'\]`: `module` of CustomHead is a function 'make_own'"):
        save_bundle(learn, tmp_path / "b")
    register_module(make_own)
    predictor = load_bundle(save_bundle(learn, tmp_path / "b"))
    assert predictor(scenes / rows.image[0]).digit.label == learn.predict(rows.iloc[0])[0].digit


def test_trunks(make_images, tmp_path, scenes, rows):
    head = {"digit": ClassificationHead(tap="neck")}
    learn = make_images(("digit",), heads=head, trunk={"neck": Trunk(lambda n: Own(n))})
    with pytest.raises(HeadsError, match=r"trunk\['neck'\]"):
        save_bundle(learn, tmp_path / "b")


def test_a_lambda_is_refused_by_name(make_images, tmp_path):
    loss = lambda pred, targ: nn.functional.cross_entropy(pred, targ)  # noqa: E731
    learn = make_images(("digit",), heads={"digit": ClassificationHead(loss=loss)})
    with pytest.raises(HeadsError, match="`loss` of ClassificationHead is a lambda"):
        save_bundle(learn, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def small_net(pretrained=False) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def test_a_network_of_no_registry_wants_its_function(make_images, tmp_path, scenes, rows):
    learn = make_images(("digit",), arch=small_net)
    folder = save_bundle(learn, tmp_path / "b")
    with pytest.raises(HeadsError, match="of no registry: pass the function"):
        load_bundle(folder)
    path = scenes / rows.image[0]
    for arch in (small_net, small_net()):
        assert load_bundle(folder, arch=arch)(path).digit.label == learn.predict(rows.iloc[0])[0].digit
    with pytest.raises(HeadsError, match="do not fit"):
        load_bundle(folder, arch=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *list(small_net())[1:4], nn.Linear(4, 3)))


def test_a_registered_network_needs_none(make_images, tmp_path, scenes, rows):
    register_arch("bundled_net", small_net)
    learn = make_images(("digit",), arch="bundled_net")
    predictor = load_bundle(save_bundle(learn, tmp_path / "b"))
    assert predictor(scenes / rows.image[0]).digit.label == learn.predict(rows.iloc[0])[0].digit


def test_normalisation_and_augmentation_are_said_or_left_at_home(scenes, rows, tmp_path):
    from fastai_heads.data.digits import digits_block
    from fastai_heads.learner import multihead_learner

    tfms = [*aug_transforms(size=32), Normalize.from_stats([0.5] * 3, [0.2] * 3)]
    dls = digits_block(scenes, ("digit",), item_tfms=Resize(40)).new(batch_tfms=tfms)
    learn = multihead_learner(dls.dataloaders(rows, bs=8, num_workers=0), "resnet10t", pretrained=False)
    with pytest.raises(HeadsError, match="`batch_tfms` holds"):  # `aug_transforms(size=)` crops the validation set, too
        save_bundle(learn, tmp_path / "b")


# what is read


def flipped(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def linked(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / WEIGHTS)


def deep(folder):
    (folder / MANIFEST).write_text('{"schema": 1, "a": ' + "[" * 100 + "]" * 100 + "}")


def deeper(folder):
    (folder / MANIFEST).write_text('{"a": ' + "[" * 200_000)


def other(folder):
    weights = save({"x": torch.zeros(3)})
    (folder / WEIGHTS).write_bytes(weights)
    said = {"sha256": hashlib.sha256(weights).hexdigest(), "tensors": {"x": ["F32", [3]]}}
    change(folder, lambda m: m.update(weights=said))


def arch(name, **options):
    def edit(m):
        m["network"]["body"].update(arch=name, options=options)

    return lambda folder: change(folder, edit)


def spec(**fields):
    return lambda folder: change(folder, lambda m: m["network"]["heads"]["digit"]["spec"].update(fields))


HOSTILE = {
    "flipped": (flipped, "damaged or was exchanged"),
    "cut": (cut, "do not fill the file"),
    "linked": (linked, "leads out of"),
    "deep": (deep, "deeper than 40"),
    "deeper": (deeper, "deeper than 40"),
    "other": (other, "do not fit the network"),
    "later": (lambda f: change(f, lambda m: m.update(schema=2)), "install a later one"),
    "no schema": (lambda f: change(f, lambda m: m.update(schema="1")), "is no manifest"),
    "no network": (lambda f: change(f, lambda m: m.pop("network")), "`network` is a dict, found nothing"),
    "twice": (lambda f: (f / MANIFEST).write_text('{"schema": 1, "schema": 1}'), "given twice"),
    "nan": (lambda f: (f / MANIFEST).write_text('{"schema": NaN}'), "no number of JSON"),
    "not json": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    "gone": (lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors"),
    "hub": (arch("timm:hf-hub:a/b"), "name of an arch of a registry"),
    "file": (arch("timm:resnet10t", checkpoint_path="/etc/passwd"), "no option that a bundle may have"),
    "weights": (arch("torchvision:resnet18", weights="DEFAULT"), "no option that a bundle may have"),
    "unknown": (arch("timm:resnet10u"), "Did you mean"),
    "huge": (arch("timm:resnet10t", base_width=10**9), "cannot be|do not fit|could not"),
    "many": (spec(n_out=2**50), "cannot be built|do not fit"),
    "import": (spec(loss={"called": "os:system"}), "there is no place to look up 'os'"),
    "private": (spec(loss={"called": "torch.nn:_reduction"}), "may be named"),
    "builtin": (spec(loss={"called": "torch.nn:exec"}), "may be named"),
    "module": (spec(loss={"called": "fastai.losses:torch"}), "may be named"),
    "field": (spec(banana=1), "`banana` is not a parameter"),
    "kind": (spec(kind="pickle"), "there is no kind of head 'pickle'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_with_a_bundle_is_said(folder, name):
    spoil, said = HOSTILE[name]
    spoil(folder)
    with pytest.raises(HeadsError, match=said):
        load_bundle(folder)


@pytest.mark.parametrize("limit", ["MAX_MANIFEST", "MAX_WEIGHTS", "MAX_ITEMS", "MAX_TEXT", "MAX_HEADER"])
def test_limits(folder, monkeypatch, limit):
    monkeypatch.setattr(f"fastai_heads.export.files.{limit}", 10)
    with pytest.raises(HeadsError, match=r"at most|more than|cut off"):
        load_bundle(folder)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(HeadsError, match="there is no folder"):
        load_bundle(tmp_path / "none")
    with pytest.raises(HeadsError, match="`folder` is a path"):
        load_bundle(3)
    with pytest.raises(HeadsError, match="pass `learner=True`"):
        load_bundle(tmp_path, dls=3)
    with pytest.raises(HeadsError, match="is the data that"):
        load_bundle(tmp_path, learner=True)
    with pytest.raises(HeadsError, match="given twice"):
        read_json(b'{"a": 1, "a": 2}', "x")


# to train on


def test_a_learner_goes_on(folder, learn, make_images, rows):
    new = make_images(("digit", "ink"), item_tfms=Resize(32)).dls
    found = load_bundle(folder, learner=True, dls=new, strategy="UW")
    found.remove_cbs([cb for cb in found.cbs if cb.name == "progress"])
    found.logger = lambda row: None
    assert str(found.predict(rows.iloc[0])[0]) == str(learn.predict(rows.iloc[0])[0])
    assert [m.name for m in found.metrics] == [m.name for m in learn.metrics] and "UW" in str(found.strategy)
    found.fit(1, 1e-3)
    with pytest.raises(HeadsError, match="there is no target 'ink'"):
        load_bundle(folder, learner=True, dls=make_images(("digit",)).dls)


def test_where_the_weights_came_from_stays_at_home(make_images, tmp_path):
    torch.manual_seed(2)
    file = tmp_path / "theirs.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    options = {"pretrained_cfg_overlay": {"file": str(file)}}
    learn = make_images(("digit",), Resize(32), "test_resnet", pretrained=True, body_kwargs=options)
    folder = save_bundle(learn, tmp_path / "b")
    assert str(tmp_path) not in (folder / MANIFEST).read_text()
    file.unlink()
    loaded = load_bundle(folder).network.network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in learn.model.state_dict().items())
