"""The weights of a fastai `vision_learner` in a learner with several heads, and files that do not fit."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from fastai.vision.learner import vision_learner
from fastai.vision.models.xresnet import xresnet18
from torchvision import models

from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import ClassificationHead, RegressionHead


@pytest.fixture(scope="module")
def stock(scenes, quiet, tmp_path_factory):
    "A `vision_learner` whose batch norms have seen some data, and its file with the optimizer's state."
    learn = quiet(vision_learner(digits_dls(path=scenes, n=40, size=32, bs=8), models.resnet18, pretrained=False))
    learn.path = tmp_path_factory.mktemp("stock")
    learn.fit(1)
    learn.file = learn.save("stock")
    learn.preds = learn.get_preds()[0]
    return learn


def state_of(learn):
    return copy.deepcopy(learn.model.state_dict())


def assert_unchanged(learn, before):
    after = learn.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("with_opt", [True, False])
def test_a_saved_vision_learner_predicts_the_same_here(stock, make_learner, with_opt):
    file = stock.save("with" if with_opt else "without", with_opt=with_opt)
    learn = make_learner("digit", arch=models.resnet18)
    assert not torch.equal(learn.get_preds()[0].digit, stock.preds)
    assert learn.load_vision_weights(file) is learn
    assert torch.equal(learn.get_preds()[0].digit, stock.preds)


@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_a_name_stands_for_a_file_of_the_learner(stock, make_learner, suffix):
    learn = make_learner("digit", arch=models.resnet18)
    learn.path = stock.path
    learn.load_vision_weights(f"stock{suffix}")
    assert torch.equal(learn.get_preds()[0].digit, stock.preds)


def test_one_head_of_several_takes_them(stock, make_learner):
    learn = make_learner("ink", "digit", arch=models.resnet18)
    ink = copy.deepcopy(learn.heads.ink.module.state_dict())
    learn.load_vision_weights(stock.file, head="digit")
    assert torch.equal(learn.get_preds()[0].digit, stock.preds)
    assert all(torch.equal(v, ink[k]) for k, v in learn.heads.ink.module.state_dict().items())


def test_loading_trains_on_from_there(stock, make_learner):
    learn = make_learner("digit", arch=models.resnet18).load_vision_weights(stock.file)
    before = state_of(learn)
    learn.fit(1)
    assert not torch.equal(before["0.net.conv1.weight"], learn.model.state_dict()["0.net.conv1.weight"])


@pytest.mark.parametrize(
    ("kwargs", "head", "says"),
    [
        ({"arch": xresnet18}, None, "another arch"),
        ({"arch": models.resnet34}, None, "the body has 216 tensors and the file 120"),
        ({"heads": {"digit": ClassificationHead(lin_ftrs=[])}}, None, "the head has 6 tensors and the file 12"),
        ({"heads": {"digit": ClassificationHead(lin_ftrs=[64])}}, None, r"layers\.2\.weight has shape \(64, 1024\)"),
        ({"targets": ("digit", "ink")}, None, "which head takes the head's weights: one of digit, ink"),
        ({"targets": ("digit", "ink")}, "digt", "Did you mean 'digit'"),
        ({"targets": ("digit", "tags")}, "tags", r"of the file \(10, 512\)"),
        ({"targets": ("digit", "ink")}, "ink", "the head has 14 tensors and the file 12"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_has_changed(stock, make_learner, kwargs, head, says):
    kwargs = {"arch": models.resnet18, **kwargs}
    learn = make_learner(*kwargs.pop("targets", ("digit",)), **kwargs)
    before = state_of(learn)
    with pytest.raises(HeadsError, match=says):
        learn.load_vision_weights(stock.file, head)
    assert_unchanged(learn, before)


def write_junk(file):
    file.write_text("not weights")


def write_list(file):
    torch.save([1, 2], file)


def write_numbered(file):
    torch.save({0: torch.ones(1)}, file)


def write_nothing(file):
    torch.save({}, file)


def write_module(file):
    torch.save(torch.nn.Linear(1, 1), file)


@pytest.mark.parametrize("write", [write_junk, write_list, write_numbered, write_nothing, write_module])
@pytest.mark.parametrize("how", ["load", "load_vision_weights"])
def test_a_file_that_holds_no_weights_is_refused(make_learner, write, how):
    learn = make_learner("digit")
    file = learn.path / "junk.pth"
    write(file)
    before = state_of(learn)
    with pytest.raises(HeadsError, match=r"`file`: junk\.pth holds no weights"):
        getattr(learn, how)(file)
    assert_unchanged(learn, before)


def test_a_file_that_is_not_there_is_named(make_learner):
    with pytest.raises(HeadsError, match=r"`file`: there is no .*models.nowhere\.pth"):
        make_learner("digit").load_vision_weights("nowhere")


def test_weights_of_our_own_are_told_apart(make_learner):
    learn = make_learner("digit")
    state = {f"encoder.{key}": value for key, value in learn.model.state_dict().items()}
    torch.save(state, learn.path / "renamed.pth")
    with pytest.raises(HeadsError, match=r"its keys are \['encoder\.0\."):
        learn.load_vision_weights(learn.path / "renamed.pth")


# `learn.load`


def test_saved_weights_load_and_predict_the_same(make_learner):
    learn = make_learner("digit", "ink")
    learn.fit(1)
    expected = learn.get_preds()[0]
    file = learn.save("whole")
    other = make_learner("digit", "ink")
    other.load(file)
    assert all(torch.equal(a, b) for a, b in zip(other.get_preds()[0], expected, strict=True))
    assert other.opt.state_dict()["state"], "the optimizer's state came with it"


def test_a_disk_that_fills_leaves_the_old_file(make_learner, monkeypatch):
    learn = make_learner("digit")
    file = learn.save("whole")
    before = file.read_bytes()

    def fill(state, file, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match="No space"):
        learn.save("whole")
    assert file.read_bytes() == before and [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_folder_that_is_not_there_is_refused(make_learner):
    with pytest.raises(HeadsError, match=r"`file`: there is no folder .*elsewhere"):
        make_learner("digit").save("elsewhere/whole")


class Hostile:
    "What runs code where it is unpickled."

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("with_opt", [True, False])
def test_code_in_a_file_does_not_run(make_learner, tmp_path, with_opt):
    learn, trace = make_learner("digit"), tmp_path / "ran"
    state = {**learn.model.state_dict(), "more": Hostile(trace)}
    torch.save({"model": state, "opt": {}} if with_opt else state, tmp_path / "hostile.pth")
    for load in (learn.load, learn.load_vision_weights):
        with pytest.raises(HeadsError, match="holds no weights"):
            load(tmp_path / "hostile.pth")
    with pytest.raises(HeadsError, match="holds no weights"):
        learn.load(tmp_path / "hostile.pth", weights_only=False)
    assert not trace.exists()


def test_the_rates_of_heads_are_saved_with_the_optimizer(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=5.0)})
    learn.fit_one_cycle(1, 1e-2)
    learn.save("whole")
    other = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=5.0)})
    other.load("whole")
    assert list(other.opt.hypers.attrgot("lr")) == list(learn.opt.hypers.attrgot("lr"))
    weight = next(other.heads.ink.parameters())
    assert "sqr_avg" in other.opt.state[weight]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"arch": "test_vit"}, r"does not fit the body: the file lacks 0\.net\.(conv1|bn1)"),
        ({"heads": {"ink": None}}, r"does not fit head ink: it is not in the file"),
        (
            {"heads": {"digit": ClassificationHead(lin_ftrs=[64])}},
            r"head digit: .* has shape \(512, \d+\), in the file \(64, \d+\)",
        ),
    ],
)
def test_weights_of_another_model_leave_this_one_as_it_is(make_learner, other, says):
    make_learner("digit", "ink", **other).save("other")
    learn = make_learner("digit", "ink")
    before = state_of(learn)
    with pytest.raises(HeadsError, match=says):
        learn.load("other")
    assert_unchanged(learn, before)


def test_what_is_missing_may_be_left_as_it_is(make_learner):
    source = make_learner("digit", "ink", heads={"ink": None})
    source.save("other", with_opt=False)
    learn = make_learner("digit", "ink")
    ink = copy.deepcopy(learn.heads.ink.module.state_dict())
    with warnings.catch_warnings(record=True) as caught:  # not `pytest.warns`, which raises fastai's own again
        warnings.simplefilter("always")
        learn.load("other", strict=False, with_opt=False)
    said = [str(w.message) for w in caught if w.category is HeadsWarning]
    assert said == ["left as they are: head ink: it is not in the file"]
    assert torch.equal(learn.get_preds()[0].digit, source.get_preds()[0].digit)
    assert all(torch.equal(v, ink[k]) for k, v in learn.heads.ink.module.state_dict().items())
