"""What careless users do: one head, forty heads, odd items, odd files, and interruptions."""

import os
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.learner import load_learner
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock

from fastai_heads.heads import BoxHead, ClassificationHead, RegressionHead
from fastai_heads.learner import MultiHeadLearner, multihead_learner

FIVE = ("digit", "tags", "ink", "centre", "box")


def same(preds, expected):
    return all(torch.equal(a, b) for a, b in zip(preds, expected, strict=True))


# how many


def test_forty_heads(scenes, table, quiet, tmp_path):
    columns = [f"digit{i}" for i in range(40)]
    table = pd.concat([table, pd.DataFrame(dict.fromkeys(columns, table.digit))], axis=1)
    block = DataBlock(
        (ImageBlock, *(CategoryBlock(vocab=list("0123456789")) for _ in columns)),
        getters=[ColReader("image", pref=scenes), *map(ColReader, columns)],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    dls = block.dataloaders(table, bs=8, num_workers=0, path=tmp_path)
    shuffled = dict.fromkeys(np.random.permutation(columns), ClassificationHead(lin_ftrs=[]))
    learn = quiet(multihead_learner(dls, "test_resnet", shuffled, pretrained=False))
    learn.fit(1)
    assert learn.heads.names == tuple(shuffled) and len(learn.recorder.metric_names) == len(learn.rows[0]) == 124
    preds, targets = learn.get_preds()
    assert preds.names != targets.names and all(torch.equal(targets[0], t) for t in targets)
    row = dict(zip(learn.recorder.metric_names, learn.rows[0], strict=True))
    for name in columns:
        correct = (preds[name].argmax(1) == targets[name]).float().mean().item()
        assert row[f"{name}_accuracy"] == pytest.approx(correct)
    learn.show_results(max_n=2)


def test_shuffled_heads_give_the_same_numbers(make_learner):
    heads = {"digit": ClassificationHead(), "ink": RegressionHead(), "box": BoxHead()}
    learn = make_learner("digit", "ink", "box", heads=heads)
    learn.fit(1)
    other = make_learner("digit", "ink", "box", heads=dict(reversed(heads.items())))
    assert other.heads.names == ("box", "ink", "digit")
    other.model.load_state_dict(learn.model.state_dict())
    assert list(other.validate()[:1]) == pytest.approx(list(learn.validate()[:1]))
    for name in heads:
        assert torch.equal(other.get_preds()[0][name], learn.get_preds()[0][name])


def test_one_image_to_validate_on(split_dls, make_learner):
    learn = make_learner(dls=split_dls([3], *FIVE))
    learn.fit(1)
    preds, targets, decoded = learn.get_preds(with_decoded=True)
    assert all(len(p) == 1 for p in (*preds, *targets, *decoded))
    learn.show_results()
    assert learn.rows[0][7] is not None and np.isfinite(learn.rows[0][7])


def test_no_image_to_validate_on(split_dls, make_learner, table):
    learn = make_learner(dls=split_dls([], "digit", "ink"))
    learn.fit(1)
    row = dict(zip(learn.recorder.metric_names, learn.rows[0], strict=True))
    assert np.isfinite(row["train_ink_loss"])
    assert row["valid_loss"] is row["valid_digit_loss"] is row["ink_mae"] is None
    assert learn.predict(table.iloc[0])[0].names == ("digit", "ink")
    learn.show_results(ds_idx=0)


# odd items


@pytest.mark.parametrize("form", ["row", "path", "text", "PILImage", "array", "bytes"])
def test_predict_takes_what_fastai_takes(make_learner, scenes, table, form):
    path = scenes / table.image[0]
    items = {
        "row": lambda: table.iloc[0],
        "path": lambda: path,
        "text": lambda: str(path),
        "PILImage": lambda: PILImage.create(path),
        "array": lambda: np.array(PILImage.create(path)),
        "bytes": path.read_bytes,
    }
    learn = make_learner(*FIVE)
    values, _, activated = learn.predict(items[form]())
    assert values.names == activated.names == FIVE
    expected = learn.get_preds(dl=learn.dls.test_dl(table.iloc[:1]))[0]
    for name in FIVE:
        torch.testing.assert_close(activated[name], expected[name][0], rtol=1e-4, atol=1e-4)


def test_predict_leaves_the_model_alone(make_learner, table):
    learn = make_learner("digit", "ink")
    before = deepcopy(learn.model.state_dict())
    assert same(learn.predict(table.iloc[0])[2], learn.predict(table.iloc[0])[2])
    assert all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())


# files and copies


def test_an_exported_learner_predicts_the_same_in_another_process(make_learner, make_dls, table, scenes, tmp_path):
    heads = {"digit": ClassificationHead(label_smoothing=0.1), "ink": RegressionHead(lr_mult=2)}
    learn = make_learner(*FIVE, heads=heads)
    learn.fit(1)
    learn.logger = print  # a function of a test cannot be found in another process
    learn.export("whole.pkl")
    assert len(learn.dls.train_ds) == 32, "the learner keeps its data"
    expected = learn.predict(str(scenes / table.image[0]))
    torch.save(dict(expected[2].pairs()), tmp_path / "expected.pt")
    script = f"""
import torch, warnings
from fastai.learner import load_learner
warnings.simplefilter("ignore")
learn = load_learner({str(tmp_path / "whole.pkl")!r})
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=False)
learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
values, decoded, activated = learn.predict({str(scenes / table.image[0])!r})
assert activated.names == tuple(expected), activated.names
for name in expected:
    assert torch.equal(activated[name], expected[name]), name
print(type(learn).__name__, values.digit, list(learn.heads))
print(learn.summary())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"MultiHeadLearner {expected[0].digit} {list(learn.heads)}")
    assert "with 5 heads" in run.stdout
    learn.fit(1)
    assert len(learn.rows) == 1, "the learner trains on after an export"


def test_an_exported_learner_trains_on_with_data(make_learner, make_dls):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=2.0)})
    learn.logger = print
    learn.fit(1)
    learn.export()
    again = load_learner(learn.path / "export.pkl")
    assert isinstance(again, MultiHeadLearner) and again.dls.device == torch.device("cpu")
    again.dls = make_dls("digit", "ink")
    assert same(again.get_preds()[0], learn.get_preds()[0])
    again.fit(1)
    assert not same(again.get_preds()[0], learn.get_preds()[0])


def test_a_copy_is_a_learner_of_its_own(make_learner):
    learn = make_learner("digit", "ink")
    learn.fit(1)
    expected = learn.get_preds()[0]
    copy = deepcopy(learn)
    assert copy.heads.digit.module is copy.model[1]["digit"]
    assert copy.heads.digit.module is not learn.heads.digit.module
    assert copy.loss_func.heads is copy.heads and copy.recorder.learn is copy
    assert same(copy.get_preds()[0], expected)
    copy.heads.ink.loss_weight = 0.0
    copy.fit(1)
    assert not same(copy.get_preds()[0], expected)
    assert same(learn.get_preds()[0], expected) and learn.heads.ink.loss_weight == 1


# interruptions


class Interrupt(Callback):
    "Raises in the middle of an epoch."

    def __init__(self, error, training=True):
        self.error, self.when = error, training

    def after_loss(self):
        if self.training is self.when and self.iter == (2 if self.when else 0):
            raise self.error


@pytest.mark.parametrize("training", [True, False], ids=["training", "validating"])
@pytest.mark.parametrize("fit", ["fit", "fit_one_cycle", "fine_tune"])
def test_an_interrupted_learner_goes_on(make_learner, training, fit):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=2.0)})
    callbacks = [type(cb) for cb in learn.cbs]
    with pytest.raises(KeyboardInterrupt):
        getattr(learn, fit)(1, cbs=Interrupt(KeyboardInterrupt(), training))
    assert [type(cb) for cb in learn.cbs] == callbacks
    learn.get_preds()
    learn.fit(1)
    assert all(np.isfinite(v) for v in learn.rows[-1][:-1])
    assert len(learn.recorder.losses) == len(learn.recorder.losses_by_head["ink"]) == 4


def test_interrupted_predictions_leave_the_loss_as_it_was(make_learner):
    learn = make_learner("digit", "ink")
    with pytest.raises(KeyboardInterrupt):
        learn.get_preds(with_loss=True, cbs=Interrupt(KeyboardInterrupt(), training=False))
    assert learn.loss_func.reduction == "mean"
    learn.fit(1)
    assert len(learn.rows) == 1


def test_a_fit_that_a_callback_cancels_keeps_what_was_trained(make_learner):
    learn = make_learner("digit", "ink")
    learn.fit(3, cbs=Interrupt(CancelFitException()))
    assert learn.rows == [] and len(learn.recorder.losses_by_head["digit"]) == 2
    learn.fit(1)
    assert len(learn.rows) == 1


@pytest.mark.parametrize("columns", [["digit", "digit"], ["a", "a", "b"]])
def test_a_column_may_be_a_target_twice(scenes, table, columns, tmp_path, quiet):
    table = table.assign(a=table.digit, b=table.digit)
    block = DataBlock(
        (ImageBlock, *(CategoryBlock(vocab=list("0123456789")) for _ in columns)),
        getters=[ColReader("image", pref=scenes), *map(ColReader, columns)],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    dls = block.dataloaders(table, bs=8, num_workers=0, path=tmp_path)
    with pytest.warns(match=f"the target of column '{columns[0]}' is named '{columns[0]}_2'"):
        learn = quiet(multihead_learner(dls, "test_resnet", pretrained=False))
    assert learn.heads.names == (columns[0], f"{columns[0]}_2", *columns[2:])
