"""From `heads=` to specs: names, targets, and every contradiction between them."""

import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock, ImageDataLoaders
from torch import nn

from fastai_heads.data.targets import Target, dls_targets
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    CustomHead,
    MultiLabelHead,
    PointHead,
    RegressionHead,
)
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.specs import name_specs

TARGETS = (
    Target("digit", 0, "category", 10, tuple("0123456789")),
    Target("ink", 1, "regression", 1),
    Target("box", 2, "box", 4),
)
DIGIT, INK, BOX = TARGETS


def kinds(heads):
    return [(name, type(spec), target.name) for name, (spec, target) in name_specs(heads, TARGETS).items()]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (None, [("digit", ClassificationHead, "digit"), ("ink", RegressionHead, "ink"), ("box", BoxHead, "box")]),
        (["a", "b", "c"], [("a", ClassificationHead, "digit"), ("b", RegressionHead, "ink"), ("c", BoxHead, "box")]),
        (("a", "ink", "digit"),
         [("a", ClassificationHead, "digit"), ("ink", RegressionHead, "ink"), ("digit", BoxHead, "box")]),
        ({}, [("digit", ClassificationHead, "digit"), ("ink", RegressionHead, "ink"), ("box", BoxHead, "box")]),
        ({"ink": RegressionHead()},
         [("ink", RegressionHead, "ink"), ("digit", ClassificationHead, "digit"), ("box", BoxHead, "box")]),
        ({"ink": None, "box": None}, [("digit", ClassificationHead, "digit")]),
        ({"a": BoxHead(target="box"), "b": ClassificationHead(target=0), "ink": None},
         [("a", BoxHead, "box"), ("b", ClassificationHead, "digit")]),
        ({"aux": ClassificationHead(target="digit", train_only=True), "ink": None, "box": None},
         [("aux", ClassificationHead, "digit"), ("digit", ClassificationHead, "digit")]),
    ],
    ids=["none", "list", "swapped", "empty", "some", "left out", "by target", "auxiliary"],
)  # fmt: skip
def test_every_form_of_heads(heads, expected):
    assert kinds(heads) == expected


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ("digit", "`heads` is None, a list of names .* or a dict of name to spec, found str: 'digit'"),
        (3, "found int: 3"),
        (ClassificationHead(), "found ClassificationHead"),
        (["a"], r"names every target in order: 3 of them \(digit, ink, box\), found 1 names: \['a'\]"),
        (["a", "a", "b"], "`heads` names two targets 'a'"),
        ({"digt": ClassificationHead()},
         r"`heads\['digt'\]`: there is no target 'digt'\. Targets: digit, ink, box\. Did you mean 'digit'"),
        ({"a": ClassificationHead()}, "Pass `target=` if head 'a' is to predict another one"),
        ({"a": ClassificationHead(target="dgit")}, "there is no target 'dgit'.*Did you mean 'digit'"),
        ({"a": ClassificationHead(target=3)}, r"`heads\['a'\]`: `target=3` is out of range: there are 3 targets"),
        ({"a": ClassificationHead(target=-1)}, "`target=-1` is out of range"),
        ({"age": None}, r"`heads\['age'\]`: there is no target 'age'"),
        ({"digit": None, "ink": None, "box": None}, "`heads` leaves every target out"),
        ({"digit": 3}, r"`heads\['digit'\]` is a spec such as `ClassificationHead\(\)`, or None .* found 3"),
        ({"digit": ClassificationHead},
         r"is the class ClassificationHead: make it a spec with `ClassificationHead\(\)`"),
        ({"digit": nn.Linear(1, 1)}, r"`heads\['digit'\]` is a spec, found Linear: wrap it in `CustomHead\(…\)`"),
        ({"a": ClassificationHead(target=0), "b": ClassificationHead(target="digit")},
         "'a' and 'b' both decode target 'digit': pass `train_only=True`"),
        ({"digit": ClassificationHead(), "b": ClassificationHead(target=0)},
         "'digit' and 'b' both decode target 'digit'"),
        ({"digit": RegressionHead(target="ink")},
         "`heads\\['digit'\\]` is not the head that decodes target 'digit', and bears its name"),
        ({"digit": ClassificationHead(train_only=True)},
         "`heads\\['digit'\\]` is not the head that decodes target 'digit'"),
    ],
)  # fmt: skip
def test_heads_and_targets_that_contradict_each_other(heads, says):
    with pytest.raises(HeadsError, match=says):
        name_specs(heads, TARGETS)


@pytest.mark.parametrize(
    ("name", "better"),
    [("eye colour", "eye_colour"), ("3d", "_3d"), ("class", "class_"), ("count", "count_"), ("items", "items_"),
     ("train", "train_"), ("names", "names_"), ("type", "type_"), ("", "target"), (None, "None_")],
)  # fmt: skip
def test_a_bad_name_gets_a_good_one(name, better):
    with pytest.raises(HeadsError, match=rf"`heads`: the name .* Did you mean '{better}'"):
        name_specs({name: ClassificationHead(target=0)}, TARGETS)
    with pytest.raises(HeadsError, match=f"Did you mean '{better}'"):
        name_specs([name, "b", "c"], TARGETS)


# on real data


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ({"digit": RegressionHead()},
         r"`heads\['digit'\]`: RegressionHead needs a target of kind regression, and target 'digit' is of kind cat"),
        ({"tags": ClassificationHead()}, r"`heads\['tags'\]`: ClassificationHead needs .* category, and .* multilabel"),
        ({"ink": ClassificationHead()}, r"`heads\['ink'\]`.*is of kind regression"),
        ({"centre": BoxHead()}, r"`heads\['centre'\]`.*kind box.*is of kind point"),
        ({"box": PointHead()}, r"`heads\['box'\]`.*kind point.*is of kind box"),
        ({"digit": MultiLabelHead()}, r"`heads\['digit'\]`.*kind multilabel.*is of kind category"),
        ({"digit": ClassificationHead(n_out=11)},
         r"`heads\['digit'\]`: `n_out=11` of ClassificationHead contradicts target 'digit': its vocabulary has 10"),
        ({"tags": MultiLabelHead(n_out=2)}, r"`n_out=2` .*its vocabulary has 7"),
        ({"ink": RegressionHead(n_out=2)}, r"`n_out=2` of RegressionHead contradicts target 'ink': it needs 1"),
        ({"box": BoxHead(n_out=5)}, r"`n_out=5` of BoxHead contradicts target 'box': it needs 4"),
        ({"digit": CustomHead(nn.Flatten, n_out=3)}, r"`n_out=3` of CustomHead contradicts target 'digit'"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_their_target(make_dls, heads, says):
    with pytest.raises(HeadsError, match=says):
        multihead_learner(make_dls("digit", "tags", "ink", "centre", "box"), "test_resnet", heads, pretrained=False)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "much", None])
@pytest.mark.parametrize("field", ["loss_weight", "lr_mult"])
def test_weights_are_finite_numbers_of_at_least_nothing(field, value):
    with pytest.raises(HeadsError, match=f"`{field}` of ClassificationHead is a finite number of at least 0, found"):
        ClassificationHead(**{field: value})


def test_numbers_of_numpy_are_numbers(make_learner, table):
    weights = table.ink.describe()[["std", "mean"]].astype("float32") / 100
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(loss_weight=weights["std"])})
    learn.heads.digit.loss_weight = weights["mean"]
    learn.fit(1)
    assert learn.heads.digit.loss_weight == pytest.approx(float(weights["mean"]))


def block(columns, **kwargs):
    "A DataBlock of an image and one class per column."
    blocks = (ImageBlock, *(CategoryBlock for _ in columns))
    getters = [ColReader("image"), *map(ColReader, columns)]
    return DataBlock(blocks, getters=getters, splitter=ColSplitter("is_valid"), **kwargs)


@pytest.fixture
def frame(scenes, table):
    "The scenes' rows with columns whose names mean something already."
    table["image"] = [str(scenes / f) for f in table.image]
    table["class"] = table["type"] = table["eye colour"] = table["2nd"] = table.digit
    return table[table.digit.isin(set(table.digit[~table.is_valid]))]


def test_names_come_from_columns_and_what_had_to_change_is_said(frame):
    columns = ["digit", "class", "type", "eye colour", "2nd", "items"]
    frame["items"] = frame.digit
    dls = block(columns, n_inp=1).dataloaders(frame, bs=8, num_workers=0)
    with pytest.warns(HeadsWarning) as caught:
        learn = multihead_learner(dls, "test_resnet", pretrained=False)
    assert learn.heads.names == ("digit", "class_", "type_", "eye_colour", "_2nd", "items_")
    said = [str(w.message) for w in caught if w.category is HeadsWarning]
    assert "the target of column 'eye colour' is named 'eye_colour'" in said
    assert len(said) == 5
    preds, _ = learn.get_preds()
    assert torch.equal(preds.eye_colour, preds["eye_colour"]) and torch.equal(preds.class_, preds[1])
    assert learn.heads.items_.vocab == learn.heads.digit.vocab


def test_data_that_swallowed_a_target_is_refused(frame):
    dls = block(["digit", "type"]).dataloaders(frame, bs=8, num_workers=0)
    assert dls.n_inp == 2, "fastai counts all blocks but the last as inputs when `getters` are given"
    with pytest.raises(
        HeadsError,
        match=r"takes 2 of its 3 blocks as inputs \(`n_inp=2`\), among them block 1 \(category\)\. Pass `n_inp=1`",
    ):
        multihead_learner(dls, "test_resnet", pretrained=False)


def test_data_without_a_target_is_refused(frame):
    dls = block([]).dataloaders(frame, bs=8, num_workers=0)
    with pytest.raises(
        HeadsError, match=r"`dls` has no target: 1 block\(s\), 1 of them input .* such as `CategoryBlock`"
    ):
        multihead_learner(dls, "test_resnet", pretrained=False)


def test_data_of_two_images_is_refused(frame):
    two = DataBlock(
        (ImageBlock, ImageBlock, CategoryBlock),
        getters=[ColReader("image"), ColReader("image"), ColReader("digit")],
        splitter=ColSplitter("is_valid"),
    )
    with pytest.raises(HeadsError, match=r"2 inputs, image .*`arch=\{'image': 'resnet18', 'image_2': 'resnet18'\}`"):
        multihead_learner(two.dataloaders(frame, bs=8, num_workers=0), "test_resnet", pretrained=False)


@pytest.mark.parametrize("wrong", [None, 3, "dls", nn.Linear(1, 1)])
def test_what_is_no_data_is_refused(wrong):
    with pytest.raises(HeadsError, match="`dls` holds fastai `Datasets`"):
        multihead_learner(wrong, "test_resnet", pretrained=False)


def test_image_dataloaders_work_as_data_blocks_do(frame, scenes, quiet, tmp_path):
    df = frame.assign(image=[f"images/{f.rsplit('/', 1)[-1]}" for f in frame.image])
    dls = ImageDataLoaders.from_df(
        df, scenes, fn_col="image", label_col="digit", valid_col="is_valid", bs=8, num_workers=0
    )
    dls.path = tmp_path
    learn = quiet(multihead_learner(dls, "test_resnet", pretrained=False))
    learn.fit(1)
    assert [t.kind for t in dls_targets(dls)] == ["category"]
    assert learn.predict(df.iloc[0])[0][0] in dls.vocab
    numbers = ImageDataLoaders.from_df(
        df, scenes, fn_col="image", label_col=["ink", "count"], y_block=RegressionBlock(2), valid_col="is_valid", bs=8,
        num_workers=0,
    )  # fmt: skip
    heads = {dls_targets(numbers)[0].name: RegressionHead(standardize=False)}
    learn = multihead_learner(numbers, "test_resnet", heads, pretrained=False)
    assert learn.get_preds()[0][0].shape == (len(numbers.valid_ds), 2)


def test_a_head_of_another_kind_is_told_the_right_one(make_learner):
    with pytest.raises(
        HeadsError, match=r"`heads\['digit'\]`: RegressionHead needs.*Did you mean `ClassificationHead\(\)`"
    ):
        make_learner("digit", heads={"digit": RegressionHead()})
