"""What careless users write, entry point by entry point: every refusal names what was expected and the nearest right
answer. A row of the table is (entry point, call, words that the refusal must hold)."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import timm
import torch
from fastai.callback.schedule import SchedLin
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.interpret import ClassificationInterpretation, Interpretation, SegmentationInterpretation
from fastai.learner import Learner
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from torch import nn

from fastai_heads import (
    Balance,
    BoxHead,
    ClassificationHead,
    ConflictRecorder,
    HeadsError,
    HeadsInterpretation,
    LossWeightScheduler,
    RegressionHead,
    compare_to_single,
    digits_dls,
    multihead_learner,
    show_targets,
)
from fastai_heads.data.digits import digits_block

THREE = ("digit", "ink", "box")


def quiet(learn: Learner) -> Learner:
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    return learn


@pytest.fixture(scope="module")
def s(tmp_path_factory) -> SimpleNamespace:
    "A learner of three heads, its data, its table, and files that are none of its."
    out = tmp_path_factory.mktemp("refusals")
    scenes = out / "scenes"

    def dls(*targets: str) -> DataLoaders:
        found = digits_dls(targets or THREE, bs=8, path=scenes, n=20, size=32)
        found.path = out
        return found

    def make(**kwargs) -> Learner:
        return multihead_learner(dls(), "test_resnet", **{"pretrained": False, **kwargs})

    def pair(strategy: object = None) -> Learner:
        return multihead_learner(dls("digit", "ink"), "test_resnet", pretrained=False, strategy=strategy)

    learn = quiet(make())
    table = pd.read_csv(scenes / "labels.csv", dtype={"digit": str})
    one = quiet(vision_learner(dls("digit"), "resnet10t", pretrained=False, n_out=10))
    _write_files(out, learn, one)
    return SimpleNamespace(
        out=out, scenes=scenes, dls=dls, make=make, pair=pair, learn=learn, table=table, one=one,
        interp=HeadsInterpretation.from_learner(learn), image=scenes / table.image[0],
    )  # fmt: skip


def _write_files(out: Path, learn: Learner, one: Learner) -> None:
    one.save(out / "vision")
    learn.save(out / "ours", with_opt=False)
    learn.head("digit").save(out / "view", with_opt=False)
    learn.export(out / "exported.pkl")
    shutil.copy(out / "exported.pkl", out / "exported.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), out / "foreign.pth")
    torch.save({"model": learn.model.state_dict(), "epoch": 1}, out / "checkpoint.pth")
    torch.save(nn.Linear(2, 2), out / "module.pth")
    (out / "text.pth").write_text("hello")


def from_df(s: SimpleNamespace, **kwargs) -> DataLoaders:
    return ImageDataLoaders.from_df(s.table.assign(one="a"), s.scenes, fn_col="image", bs=4, **kwargs)


BLOCK = "DataBlock(blocks=(ImageBlock, CategoryBlock, RegressionBlock), n_inp=1"
TEST_DL = "`dl=learn.dls.test_dl(items)`"

ROWS: list[tuple[str, Callable, list[str]]] = [
    # what stands for data
    ("dls", lambda s: multihead_learner(s.table, "test_resnet"), ["`dls`", "a DataFrame", BLOCK, "dataloaders(df)"]),
    ("dls", lambda s: multihead_learner(None, "test_resnet"), ["`dls`", "found None", BLOCK]),
    (
        "dls",
        lambda s: multihead_learner(digits_block(s.scenes, ("digit",)), "test_resnet"),
        ["a DataBlock", "`block.dataloaders(items)`"],
    ),
    ("dls", lambda s: multihead_learner(s.dls().train_ds, "test_resnet"), ["a Datasets", "`datasets.dataloaders("]),
    ("dls", lambda s: multihead_learner(s.dls().train, "test_resnet"), ["a TfmdDL", "`DataLoaders(train, valid)`"]),
    ("dls", lambda s: multihead_learner([s.dls().train], "test_resnet"), ["found a list", "`DataLoaders(*loaders)`"]),
    ("dls", lambda s: multihead_learner(s.scenes, "test_resnet"), ["ImageDataLoaders.from_folder(path)"]),
    ("dls", lambda s: multihead_learner(str(s.scenes), "test_resnet"), ["ImageDataLoaders.from_folder(path)"]),
    ("dls", lambda s: multihead_learner("test_resnet", s.dls()), ["the data comes first", "multihead_learner(dls, "]),
    ("dls", lambda s: multihead_learner(s.learn, "test_resnet"), ["a MultiHeadLearner", "`learn.dls`"]),
    (
        "dls",
        lambda s: multihead_learner(
            from_df(s, label_col=["digit", "ink"], y_block=[CategoryBlock, RegressionBlock]), "test_resnet"
        ),
        ["columns digit, ink", "n_inp=1", "get_y=[ColReader('digit'), ColReader('ink')]"],
    ),
    (
        "dls",
        lambda s: multihead_learner(from_df(s, label_col="one"), "test_resnet", pretrained=False),
        ["two classes", "'a' alone", "CategoryBlock(vocab="],
    ),
    ("show_targets", lambda s: show_targets(s.table), ["a DataFrame", BLOCK]),
    ("show_targets", lambda s: show_targets(s.dls(), names="a"), ["`names`", "digit, ink, box", "['a']"]),
    # heads
    ("heads", lambda s: s.make(heads=[ClassificationHead()]), ["heads={'digit': ClassificationHead()}"]),
    (
        "heads",
        lambda s: s.make(heads=[BoxHead(), ClassificationHead(loss_weight=2.0), RegressionHead]),
        ["heads={'box': BoxHead(), 'digit': ClassificationHead(loss_weight=2.0), 'ink': RegressionHead()}"],
    ),
    ("heads", lambda s: s.make(heads=RegressionHead()), ["heads={'ink': RegressionHead()}"]),
    ("heads", lambda s: s.make(heads=ClassificationHead), ["heads={'digit': ClassificationHead()}"]),
    ("heads", lambda s: s.make(heads="digit"), ["heads=['digit', 'ink', 'box']"]),
    ("heads", lambda s: s.make(heads={"digit", "ink"}), ["heads=['digit', 'ink', 'box']"]),
    (
        "heads",
        lambda s: s.make(heads={"x": ClassificationHead(target="ink")}),
        ["kind regression", "`RegressionHead(target='ink')`"],
    ),
    (
        "add_head",
        lambda s: s.learn.add_head("x", ClassificationHead(target="ink")),
        ["kind regression", "`learn.add_head('x', RegressionHead(target='ink', train_only=True))`"],
    ),
    (
        "add_head",
        lambda s: s.learn.add_head("x", ClassificationHead(target="digit", lr_mult=2.0)),
        ["`learn.add_head('x', ClassificationHead(target='digit', lr_mult=2.0, train_only=True))`"],
    ),
    ("add_head", lambda s: s.learn.add_head("x", ClassificationHead), ["`learn.add_head('x', ClassificationHead())`"]),
    ("add_head", lambda s: s.learn.add_head(BoxHead(), "x"), ["`learn.add_head('name', BoxHead())`"]),
    # strategies
    ("strategy", lambda s: s.make(strategy="CAGrad"), ["CAGrad needs c", "`CAGrad(c=…)`"]),
    ("strategy", lambda s: s.make(strategy="Balance"), ["`Balance(UPGrad())`"]),
    ("strategy", lambda s: s.make(strategy="upgrad"), ["Did you mean 'UPGrad'"]),
    ("strategy", lambda s: Balance("UPgrad"), ["`aggregator` of Balance", "Did you mean 'UPGrad'"]),
    # predictions
    ("tta", lambda s: s.learn.tta(heads="digt"), ["`heads`", "'digt'", "Did you mean 'digit'"]),
    ("tta", lambda s: s.learn.tta(heads=3), ["`heads`", "list of names", "digit, ink, box"]),
    ("tta", lambda s: s.learn.tta(heads="digit", n=0), ["`n` of `tta`", "at least 1", "found 0"]),
    ("tta", lambda s: s.learn.tta(heads="digit", beta="a"), ["`beta` of `tta`", "0.25", "'a'"]),
    ("tta", lambda s: s.learn.tta(heads="digit", dl=[1]), ["`dl`", "found a list", TEST_DL]),
    ("get_preds", lambda s: s.learn.get_preds(dl=s.table), ["`dl`", "a DataFrame", TEST_DL]),
    ("get_preds", lambda s: s.learn.get_preds(dl=[s.image]), ["`dl`", "a list", TEST_DL]),
    ("get_preds", lambda s: s.learn.get_preds(5), ["`ds_idx`", "0 (training set) or 1", "found 5", TEST_DL]),
    ("get_preds", lambda s: s.learn.get_preds("valid"), ["`ds_idx`", "'valid'", TEST_DL]),
    ("get_preds", lambda s: s.learn.get_preds(with_los=True), ["`with_los`", "Did you mean 'with_loss'"]),
    ("get_preds", lambda s: s.learn.get_preds(act=3), ["`act`", "found 3"]),
    ("get_preds", lambda s: s.learn.get_preds(cbs=3), ["`cbs`", "`SaveModelCallback()`", "found 3"]),
    (
        "get_preds",
        lambda s: s.learn.get_preds(dl=s.learn.dls.test_dl(s.table), with_loss=True),
        ["`with_loss=True` needs labels", "test_dl(items, with_labels=True)"],
    ),
    ("fit", lambda s: s.learn.fit(1, cbs=3), ["`cbs`", "`[SaveModelCallback()]`"]),
    ("cbs", lambda s: s.make(cbs=3), ["`cbs`", "`[SaveModelCallback()]`"]),
    ("validate", lambda s: s.learn.validate(dl=s.learn.dls.test_dl(s.table)), ["`validate` needs labels"]),
    ("validate", lambda s: s.learn.validate(dl=s.table), ["`dl`", "a DataFrame", TEST_DL]),
    ("predict", lambda s: s.learn.predict(None), ["`item`", "found None"]),
    ("predict", lambda s: s.learn.predict([s.image]), ["`item`", "a list", "get_preds(dl=learn.dls.test_dl(items))"]),
    ("predict", lambda s: s.learn.predict(s.table), ["`item`", "`predict(df.iloc[0])`"]),
    ("predict", lambda s: s.learn.predict("nowhere.png"), ["`item`", "no file 'nowhere.png'"]),
    ("predict", lambda s: s.learn.predict(s.scenes), ["`item`", "is a folder"]),
    ("predict", lambda s: s.learn.predict(torch.zeros(3, 32, 32)), ["(height, width, 3) of uint8", "(3, 32, 32)"]),
    ("test_dl", lambda s: s.learn.dls.test_dl(None), ["`items`", "found None", "`test_dl([item])`"]),
    ("test_dl", lambda s: s.learn.dls.test_dl(3), ["`items`", "found 3", "`test_dl([item])`"]),
    ("test_dl", lambda s: s.learn.dls.test_dl(s.image), ["`test_dl([item])`", "`get_image_files(folder)`"]),
    ("test_dl", lambda s: s.learn.test_dl(str(s.image)), ["`test_dl([item])`", "`get_image_files(folder)`"]),
    ("test_dl", lambda s: s.learn.test_dl(s.table.iloc[0]), ["found one row", "`test_dl(df.iloc[:1])`"]),
    ("test_dl", lambda s: s.learn.test_dl([object()]), ["`items`", "each a Series, Path, str", "found object"]),
    ("test_dl", lambda s: s.learn.test_dl(s.table, batch_sise=4), ["`batch_sise`", "Did you mean 'batch_size'"]),
    (
        "test_dl",
        lambda s: s.learn.test_dl(s.table.rename(columns={"image": "images"})),
        ["no column 'image'", "Did you mean 'images'"],
    ),
    (
        "test_dl",
        lambda s: s.learn.test_dl(s.table.drop(columns="ink"), with_labels=True),
        ["no column 'ink'", "It has image"],
    ),
    # fastai's tools of one target
    *(
        (cls.__name__, lambda s, cls=cls: cls.from_learner(s.learn), [f"{cls.__name__}.from_learner(learn.head("])
        for cls in (Interpretation, ClassificationInterpretation, SegmentationInterpretation)
    ),
    # views
    ("show_results", lambda s: s.learn.show_results(max_n="a"), ["`max_n`", "'a'"]),
    ("show_results", lambda s: s.learn.show_results(ncols=0), ["`ncols`", "at least 1", "found 0"]),
    ("show_results", lambda s: s.learn.show_results(figsize=3), ["`figsize`", "figsize=(12, 8)", "found 3"]),
    ("show_results", lambda s: s.learn.show_results(imsize=-1), ["`imsize`", "above 0"]),
    ("show_results", lambda s: s.learn.show_results(figsiz=(3, 3)), ["`figsiz`", "Did you mean 'figsize'"]),
    ("show_results", lambda s: s.learn.show_results(ctxs=[]), ["`ctxs` has no meaning", "returned"]),
    ("show_results", lambda s: s.learn.show_results(double=True), ["`double` has no meaning", "panel"]),
    ("show_results", lambda s: s.learn.show_results(show=False), ["`show` has no meaning"]),
    ("show_results", lambda s: s.learn.show_results(dl=3), ["`dl`", "found 3", TEST_DL]),
    ("show_batch", lambda s: s.learn.show_batch(ds_idx=7), ["`ds_idx`", "found 7"]),
    ("show_batch", lambda s: s.learn.show_batch(return_fig=True), ["`return_fig` has no meaning", "always returned"]),
    ("plot_top_losses", lambda s: s.interp.plot_top_losses("digit"), ["`k`", "head='digit'"]),
    ("plot_top_losses", lambda s: s.interp.plot_top_losses(-1), ["`k`", "found -1"]),
    ("plot_top_losses", lambda s: s.interp.plot_top_losses([0, 99]), ["`k`", "0 to 3", "found 99"]),
    ("interpretation", lambda s: s.interp.show_results("a"), ["`idxs`", "0 to 3", "'a'"]),
    ("interpretation", lambda s: s.interp.top_losses(2.5), ["`k`", "found 2.5"]),
    ("interpretation", lambda s: s.interp.plot_confusion_matrix(True), ["`head`", "found True", "digit"]),
    ("interpretation", lambda s: s.interp.plot_confusion_matrix("digit", cmap="blues"), ["`cmap`", "'Blues'"]),
    ("interpretation", lambda s: s.interp.plot_confusion_matrix("digit", figsiz=1), ["`figsiz`", "'figsize'"]),
    ("interpretation", lambda s: s.interp.most_confused("digit", min_val="a"), ["`min_val`", "'a'"]),
    ("interpretation", lambda s: s.interp.classification_report("digit", digit=3), ["`digit`", "'digits'"]),
    ("interpretation", lambda s: s.interp.plot_regression("ink", figsiz=1), ["`figsiz`", "'figsize'"]),
    ("interpretation", lambda s: HeadsInterpretation.from_learner(s.learn, dl=[1]), ["`dl`", TEST_DL]),
    ("interpretation", lambda s: HeadsInterpretation.from_learner(s.learn, 5), ["`ds_idx`", "found 5"]),
    # files
    (
        "load",
        lambda s: s.learn.load(s.out / "vision"),
        ["what a `vision_learner` saves", "learn.load_vision_weights(", "head='digit')"],
    ),
    ("load", lambda s: s.learn.load(s.out / "vision", strict=False), ["learn.load_vision_weights("]),
    ("load", lambda s: s.learn.load(s.out / "foreign"), ["of another network (conv1.", "multihead_learner(dls, net)"]),
    ("load", lambda s: s.learn.load(s.out / "foreign", strict=False), ["of another network (conv1."]),
    ("load", lambda s: s.learn.load(s.out / "checkpoint"), ["a dict of model, epoch", "torch.load(file)['model']"]),
    ("load", lambda s: s.learn.load(s.out / "view"), ["a view of one head", "`learn.head('digit').load(file)`"]),
    ("load", lambda s: s.learn.load(s.out / "exported"), ["`learn.export` wrote", "load_learner("]),
    ("load", lambda s: s.learn.load(s.out / "exported.pkl"), ["adds '.pth'", "load_learner("]),
    ("load", lambda s: s.learn.load(s.out / "module"), ["a whole object", "torch.save(net.state_dict(), file)"]),
    ("load", lambda s: s.learn.load(s.out / "text"), ["no file that torch wrote"]),
    ("load", lambda s: s.learn.load(s.out / "oours"), ["there is no", "Did you mean 'ours'"]),
    ("load", lambda s: s.learn.load(None), ["`file`", "found None"]),
    ("load", lambda s: s.learn.load(s.out / "ours", strict="no"), ["`strict`", "'no'"]),
    ("load", lambda s: s.learn.load(s.out / "ours", stric=False), ["`stric`", "Did you mean 'strict'"]),
    ("load", lambda s: s.learn.load(s.out / "ours", with_opt=True), ["`with_opt=True`", "`with_opt=False`"]),
    (
        "load_vision_weights",
        lambda s: s.learn.load_vision_weights(s.out / "ours", "digit"),
        ["a learner with several heads", "`learn.load("],
    ),
    ("export", lambda s: s.learn.export(None), ["`fname`", "found None"]),
    ("export", lambda s: s.learn.export(s.out / "none" / "a.pkl"), ["`fname`", "no folder"]),
    # callbacks
    ("LossWeightScheduler", lambda s: LossWeightScheduler("digit"), ["`scheds`", "SchedLin(1, .1)", "'digit'"]),
    ("LossWeightScheduler", lambda s: LossWeightScheduler({}), ["`scheds`", "SchedLin(1, .1)"]),
    (
        "LossWeightScheduler",
        lambda s: s.pair().fit(1, cbs=LossWeightScheduler({"digit": lambda: 1})),
        ["`scheds['digit']`", "cannot be called so"],
    ),
    (
        "LossWeightScheduler",
        lambda s: s.one.fit(1, cbs=LossWeightScheduler({"digit": SchedLin(1, 0.1)})),
        ["`multihead_learner`", "found Learner"],
    ),
    ("ConflictRecorder", lambda s: s.one.fit(1, cbs=ConflictRecorder()), ["`multihead_learner`", "found Learner"]),
    # compare_to_single
    ("compare", lambda s: compare_to_single(s.learn, 1), ["`learn_factory`", "`lambda strategy: multihead_learner("]),
    ("compare", lambda s: compare_to_single(lambda: 1, 1), ["`learn_factory`", "`lambda strategy: "]),
    ("compare", lambda s: compare_to_single(s.pair, 1, strategies=3), ["`strategies`", "{'sum': None, 'UW': UW}"]),
    ("compare", lambda s: compare_to_single(s.pair, 1, strategies={"a": "uw"}), ["`strategies['a']`", "'UW'"]),
    ("compare", lambda s: compare_to_single(s.pair, 1, metrics="accuracy"), ["`metrics`", "a dict of head"]),
    ("compare", lambda s: compare_to_single(s.pair, 1, fit=3), ["`fit`", "number of epochs"]),
    ("compare", lambda s: compare_to_single(s.pair, 1, folder=3), ["`folder`", "found 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), [row[1:] for row in ROWS], ids=[f"{i}-{r[0]}" for i, r in enumerate(ROWS)])
def test_a_refusal_says_what_to_do(s, call, words):
    weights = {name: tensor.clone() for name, tensor in s.learn.model.state_dict().items()}
    with pytest.raises(HeadsError) as refusal:
        call(s)
    said = str(refusal.value)
    assert all(word in said for word in words), f"{words} in: {said}"
    assert not re.search(r"object at 0x|\n.*\n", said), said
    assert s.learn.heads.names == THREE and len(s.learn.dls.train_ds) == 16, "nothing has changed"
    assert all(torch.equal(weights[name], tensor) for name, tensor in s.learn.model.state_dict().items())


def test_what_a_refusal_names_does_work(s):
    one = ClassificationInterpretation.from_learner(quiet(s.learn.head("digit")))
    assert one.confusion_matrix().sum() == 4
    for loader in (s.learn.dls.test_dl([]), s.learn.test_dl([])):
        assert [len(p) for p in s.learn.get_preds(dl=loader)[0]] == [0, 0, 0]
    assert s.learn.dls.test_dl(s.table, with_labels=True).dataset.n_inp == 1
    preds, _ = s.learn.tta(heads="digit", n=1)
    assert torch.equal(preds.digit, s.learn.tta(heads=["digit"], n=1)[0].digit)
    head = s.learn.add_head("x", RegressionHead(target="ink", train_only=True))
    assert head.target.name == "ink"
    s.learn.drop_head("x")
