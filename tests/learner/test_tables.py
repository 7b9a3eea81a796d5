"""A learner over rows of a table: as `tabular_learner` trains, and all of the learner's calls."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter, Normalize
from fastai.learner import load_learner
from fastai.tabular.core import Categorify, FillMissing
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from fastai.torch_core import set_seed
from sklearn.datasets import load_diabetes, load_linnerud

from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.data.tabular import TabularTargets
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.learner import multihead_learner

N, PROCS = 60, [Categorify, FillMissing, Normalize]
VALID = list(range(12))


def frame() -> pd.DataFrame:
    "Make rows of which `kind` and `u` tell the targets."
    rng = np.random.default_rng(0)
    kind, u = rng.choice(["x", "y", "z"], N), rng.normal(size=N)
    table = pd.DataFrame({"kind": kind, "u": u, "v": rng.normal(5, 2, N)})
    table["species"] = np.where(u > 0, "p", np.where(kind == "x", "q", "r"))
    table["sex"] = np.where(kind == "z", "m", "f")
    table["mass"] = 4000 + 300 * u
    table.loc[[3, 20], "v"] = np.nan
    return table


def table_loaders(y_names=("species", "sex", "mass"), table=None, **kwargs):
    y_block = TabularTargets() if isinstance(y_names, tuple) else None
    names = list(y_names) if isinstance(y_names, tuple) else y_names
    return TabularDataLoaders.from_df(
        frame() if table is None else table, procs=list(PROCS), cat_names=["kind"], cont_names=["u", "v"],
        y_names=names, y_block=y_block, valid_idx=VALID, bs=8, num_workers=0, **kwargs,
    )  # fmt: skip


def block_loaders(table=None, wrap=lambda block: block):
    blocks = (TabularBlock(["kind"], ["u", "v"]), wrap(CategoryBlock()), wrap(CategoryBlock()), wrap(RegressionBlock()))
    readers = [ColReader("species"), ColReader("sex"), ColReader("mass")]
    block = DataBlock(blocks, n_inp=1, get_y=readers, splitter=IndexSplitter(VALID))
    return block.dataloaders(frame() if table is None else table, bs=8, num_workers=0)


def make_learner(dls, *args, **kwargs):
    learn = multihead_learner(dls, TabularBody(layers=[20, 10]), *args, **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    return learn


@pytest.fixture(scope="module", params=["table", "block"])
def learn(request, tmp_path_factory):
    "A trained learner of three targets on either kind of loaders."
    set_seed(0)
    made = make_learner(table_loaders() if request.param == "table" else block_loaders())
    made.path = tmp_path_factory.mktemp(request.param)
    with made.no_logging():
        made.fit(2, 1e-2)
    return made


# as fastai's own


class StepLosses(Callback):
    "Keeps the loss of every training step."

    def before_fit(self):
        self.steps = []

    def after_batch(self):
        if self.training:
            self.steps.append(self.learn.loss.item())


def steps_of(learn):
    "Train 20 steps."
    kept = StepLosses()
    set_seed(1)
    with learn.no_bar(), learn.no_logging():
        learn.fit(4, 1e-2, cbs=kept)
    return kept.steps[:20]


@pytest.mark.parametrize(
    ("y_names", "heads"),
    [("species", None), ("mass", {"mass": RegressionHead(
        standardize=False, lin_ftrs=[], first_bn=False, ps=0.0, init=None)})],
    ids=["classes", "numbers"],
)  # fmt: skip
def test_one_head_trains_as_tabular_learner_does(y_names, heads):
    theirs = tabular_learner(table_loaders(y_names), layers=[20, 10], lr=1e-2)
    ours = make_learner(table_loaders(y_names), heads)
    for mine, own in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True):
        mine.copy_(own)
    found, want = steps_of(ours), steps_of(theirs)
    assert len(found) == len(want) == 20
    assert found == pytest.approx(want, rel=1e-6)
    preds = ours.get_preds()[0][0]
    with theirs.no_bar():
        assert torch.allclose(preds, theirs.get_preds()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("data", [load_linnerud, load_diabetes])
def test_sklearn_tables_train(data):
    found = data(as_frame=True)
    names, targets = list(found.feature_names), [c for c in found.frame if c not in found.feature_names]
    dls = TabularDataLoaders.from_df(
        found.frame.astype(float), procs=[Normalize], cont_names=names, y_names=targets, valid_idx=list(range(5)),
        bs=8, num_workers=0,
    )  # fmt: skip
    learn = make_learner(dls)
    assert list(learn.heads) == targets
    with learn.no_logging():
        learn.fit(1)
    preds, targs = learn.get_preds()
    assert [p.shape for p in preds] == [(5, 1)] * len(targets)
    for name in targets:
        assert targs[name].tolist() == pytest.approx(found.frame[name].iloc[:5].tolist())


# all of the learner


def test_it_learns_and_says_so(learn):
    assert list(learn.heads) == ["species", "sex", "mass"]
    assert learn.heads.sex.vocab == ("f", "m")
    before = multihead_learner(table_loaders(), TabularBody(layers=[20, 10]))
    with before.no_bar():
        assert learn.validate()[0] < before.validate()[0]


def test_a_row_a_dict_and_a_frame_are_predicted_alike(learn):
    rows = frame()[["kind", "u", "v"]].iloc[:12]
    preds = learn.get_preds(dl=learn.dls.test_dl(rows))[0]
    listed = learn.get_preds(dl=learn.dls.test_dl([dict(row) for _, row in rows.iterrows()]))[0]
    valid = learn.get_preds()[0]
    for name in learn.heads:
        assert torch.equal(preds[name], listed[name]) and torch.allclose(preds[name], valid[name], atol=1e-6)
    for item in (rows.iloc[2], dict(rows.iloc[2])):
        values, _, activated = learn.predict(item)
        assert torch.allclose(activated.species, preds.species[2], atol=1e-6)
        assert values.species == learn.heads.species.vocab[preds.species[2].argmax()]
    many = learn.predict_many(rows, bs=5)
    assert all(torch.allclose(one[2].species, found, atol=1e-6) for one, found in zip(many, preds.species, strict=True))
    shown = learn.predict(dict(rows.iloc[2]), with_input=True)[0]
    assert shown["kind"] == rows["kind"].iloc[2] and shown["u"] == pytest.approx(rows["u"].iloc[2], rel=1e-5)


def test_rows_with_labels_are_measured(learn):
    whole = frame()
    found = learn.validate(dl=learn.dls.test_dl(whole.iloc[:12], with_labels=True))
    assert list(found) == pytest.approx(list(learn.validate()), rel=1e-5)


def test_it_is_shown(learn):
    for figure in (learn.show_batch(max_n=2), learn.show_results(max_n=2)):
        cells = [c.get_text().get_text() for ax in figure.axes for t in ax.tables for c in t.get_celld().values()]
        texts = [t.get_text() for ax in figure.axes for t in ax.texts]
        assert "kind" in cells and "u" in cells
        assert any(t.startswith("species") for t in texts) and any(t.startswith("mass") for t in texts)
    assert "TabularBody" in str(learn.summary()) and len(learn.show_heads().axes) == 1


def test_one_head_is_a_learner_of_its_own(learn):
    view = learn.head("species")
    with view.no_bar():
        assert view.validate()[0] == pytest.approx(learn.validate()[1])
        assert view.predict(frame().iloc[0])[0] == learn.predict(frame().iloc[0])[0].species


def test_weights_are_saved_and_loaded(learn):
    before = learn.get_preds()[0].mass
    learn.save("kept")
    for p in learn.model.parameters():
        p.data.add_(1)
    learn.load("kept")
    assert torch.equal(before, learn.get_preds()[0].mass)


def test_an_exported_learner_predicts_in_another_process(learn):
    learn.export("learn.pkl")
    item = frame()[["kind", "u", "v"]].to_dict("records")[1]
    again = load_learner(learn.path / "learn.pkl")
    assert torch.equal(again.predict(item)[2].mass, learn.predict(item)[2].mass)
    code = (
        "import sys; from fastai.learner import load_learner; "
        f"print(load_learner(sys.argv[1]).predict({item!r})[0].mass)"
    )
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(Path(learn.path, "learn.pkl"))],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(said.split()[-1]) == pytest.approx(float(learn.predict(item)[0].mass), rel=1e-5)


@pytest.mark.parametrize("kind", ["table", "block"])
def test_missing_labels_train_nothing_and_count_nowhere(kind):
    table = frame()
    table.loc[[1, 30], "species"], table.loc[[31, 32], "mass"] = None, np.nan
    learn = make_learner(table_loaders(table=table) if kind == "table" else block_loaders(table, PartialBlock))
    with learn.no_logging():
        learn.fit(1)
    losses = learn.get_preds(with_loss=True)[2]
    assert losses.heads.species.isnan().nonzero()[:, 0].tolist() == [1]
    assert not losses.isnan().any() and not any(p.isnan().any() for p in learn.model.parameters())


def test_a_table_body_is_never_frozen(learn):
    learn.freeze()
    try:
        assert all(p.requires_grad for p in learn.model.parameters())
    finally:
        learn.unfreeze()


def test_user_loaders_are_left_alone():
    dls = table_loaders()
    make_learner(dls)
    assert len(dls.one_batch()) == 3 and type(dls) is TabularDataLoaders


# what does not fit


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("resnet18", {}, r"`arch`: input 'row' is a row of a table, which 'resnet18' does not read. Say TabularBody"),
        (TabularBody(), {"weights": "DEFAULT"}, "`weights` is for an arch of an image"),
        (TabularBody(), {"body_kwargs": {"img_size": 64}}, "`img_size` is for an arch of an image"),
        (TabularBody(emb_szs={"kin": 3}), {}, "`emb_szs` names 'kin'.*Did you mean 'kind'"),
        ({"rows": TabularBody()}, {}, "reads input 'rows', which there is not. Did you mean 'row'"),
    ],
)
def test_an_arch_that_does_not_fit_is_refused(arch, options, said):
    with pytest.raises(HeadsError, match=said):
        multihead_learner(table_loaders(), arch, **options)


def test_a_dict_of_one_body_is_that_body():
    learn = multihead_learner(table_loaders(), {"row": TabularBody(layers=[8])}, {"sex": ClassificationHead()})
    assert learn.model[0].taps == ("row.features",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (frame()[["kind", "u"]], "no column 'v'"),
        (frame()[["kind", "u", "v"]].rename(columns={"u": "U"}), "no column 'u'.*Did you mean 'U'"),
        (frame()[["kind", "u", "v"]].assign(u=np.nan), "column 'u' has no number in row 0"),
        (frame()[["kind", "u", "v"]].assign(u="much"), "column 'u' is to hold numbers, found 'much'"),
        (frame()[["kind", "u", "v"]].assign(kind=3), "column 'kind' held text in training and holds numbers here"),
        ([{"kind": "x", "u": 1.0}], "no column 'v'"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(learn, rows, said):
    with pytest.raises(HeadsError, match=said):
        learn.dls.test_dl(rows)


def test_a_category_unseen_in_training_is_none_of_those():
    learn = make_learner(table_loaders())
    row = frame()[["kind", "u", "v"]].iloc[0]
    new, gap = learn.predict({**row, "kind": "new"}), learn.predict({**row, "kind": None})
    assert torch.equal(new[2].species, gap[2].species)
