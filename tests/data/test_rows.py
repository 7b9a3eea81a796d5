"""Rows as an input: fitted on the training split alone, encoded whole, refused by column and row."""

import pickle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter, ItemGetter, Normalize
from fastai.tabular.core import Categorify, FillMissing, TabularPandas
from fastcore.basics import noop

from fastai_heads.data.inputs import RowInput, dls_inputs
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import Row, RowValues, TabularBlock
from fastai_heads.errors import HeadsError

CATS, CONTS = ["kind", "site"], ["u", "v"]
N = 40


def frame() -> pd.DataFrame:
    "Forty rows, of which the first eight are for validation; `u` has gaps, and a kind of theirs is in no other."
    rng = np.random.default_rng(0)
    kinds = [*["only here"] * 2, *rng.choice(["x", "y", "z"], N - 2)]
    table = pd.DataFrame(
        {"kind": kinds, "site": rng.integers(3, 6, N), "u": rng.normal(5, 2, N), "v": rng.normal(size=N)}
    )
    table.loc[[3, 11, 30], "u"] = np.nan
    table["y"], table["z"] = rng.normal(size=N), rng.choice(["p", "q"], N)
    return table


def block(tabular=None, getter=noop) -> DataBlock:
    return DataBlock(
        blocks=(tabular or TabularBlock(CATS, CONTS), RegressionBlock, CategoryBlock),
        getters=[getter, ColReader("y"), ColReader("z")], n_inp=1, splitter=IndexSplitter(range(8)),
    )  # fmt: skip


def loaders(table=None, tabular=None, getter=noop):
    return block(tabular, getter).dataloaders(frame() if table is None else table, bs=8, num_workers=0)


@pytest.fixture(scope="module")
def dls():
    return loaders()


def whole(dl) -> Row:
    parts = list(zip(*(b[0] for b in dl)))
    return Row(torch.cat(p) for p in parts)


def test_a_batch_is_what_fastais_table_gives(dls):
    table = frame()
    to = TabularPandas(
        table.iloc[8:].reset_index(drop=True), [Categorify, FillMissing, Normalize], list(CATS), list(CONTS),
        reduce_memory=False,
    )  # fmt: skip
    known = table.assign(kind=table["kind"].where(table["kind"] != "only here"))  # pandas is about to refuse others
    valid = to.new(known.iloc[:8].reset_index(drop=True))
    valid.process()
    cats, conts = whole(dls.valid)
    assert cats.dtype == torch.int64 and conts.dtype == torch.float32
    assert cats.tolist() == valid.cats.to_numpy().tolist()
    assert torch.allclose(conts, torch.tensor(valid.conts.to_numpy()).float())
    train = whole(dls.train.new(shuffle=False, drop_last=False))
    assert train[0].tolist() == to.cats.to_numpy().tolist()
    assert torch.allclose(train[1].mean(0), torch.zeros(2), atol=1e-5), "from the training rows alone"
    assert len(dls.one_batch()) == 3 and isinstance(dls.one_batch()[0], Row)


def test_a_category_that_training_did_not_have_is_na(dls):
    assert whole(dls.valid)[0][:2, 0].tolist() == [0, 0]
    assert dls_inputs(dls) == (
        RowInput("row", cat_names=("kind", "site", "u_na"), sizes=(4, 4, 3), cont_names=("u", "v")),
    )


NEW = {"kind": "y", "site": 4, "u": 6.0, "v": 0.5}


@pytest.mark.parametrize(
    "items",
    [
        pd.DataFrame([NEW, {**NEW, "kind": "new", "u": None}]),
        [NEW, {**NEW, "kind": "new", "u": None}],
        [pd.Series(NEW), pd.Series({**NEW, "kind": "new", "u": None})],
        pd.DataFrame([NEW, {**NEW, "kind": "new", "u": None}], index=["a", "a"]).assign(other=1),
        pd.DataFrame([NEW, {**NEW, "kind": "new", "u": None}]).astype({"kind": "category"}),
    ],
    ids=["frame", "dicts", "series", "index with repeats", "categorical"],
)
def test_new_rows_need_no_labels_and_come_in_any_form(dls, items):
    (row,) = dls.test_dl(items, num_workers=0).one_batch()
    cats, conts = row
    assert cats.tolist() == [[2, 2, 1], [0, 2, 2]]
    tfm = dls.train_ds.tls[0].tfms.fs[-1]
    normalize = next(f for f in tfm.to.procs.fs if isinstance(f, Normalize))
    want = [(6.0 - normalize.means["u"]) / normalize.stds["u"], (0.5 - normalize.means["v"]) / normalize.stds["v"]]
    assert conts[0].tolist() == pytest.approx(want, rel=1e-5)
    filled = (frame()["u"].iloc[8:].median() - normalize.means["u"]) / normalize.stds["u"]
    assert conts[1, 0].item() == pytest.approx(filled, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda t: t.assign(v=t["v"].where(t.index != 1)),
            r"column 'v' has no number in row 1 \(1 in all\).*fill_new_gaps",
        ),
        (lambda t: t.rename(columns={"kind": "knid"}), r"no column 'kind' in the rows. Did you mean 'knid'"),
        (lambda t: t.assign(v=["much", "more", "most"]), r"column 'v' is to hold numbers, found 'much' \(str\)"),
        (lambda t: t.assign(v=["1", "2", "3"]), r"column 'v' is to hold numbers, found '1' \(str\)"),
        (lambda t: t.assign(site=["3", "4", "5"]), r"column 'site' held numbers in training and holds text here.*'3'"),
        (lambda t: t.assign(kind=[1, 2, 3]), r"column 'kind' held text in training and holds numbers"),
        (lambda t: t.assign(v=[0.0, np.inf, 1.0]), r"column 'v' holds an infinite number in row 1"),
    ],
)
def test_what_is_wrong_in_new_rows_is_refused_by_column_and_row(dls, change, match):
    table = pd.DataFrame([NEW] * 3)
    dls.test_dl(table)
    with pytest.raises(HeadsError, match=match):
        dls.test_dl(change(table), num_workers=0).one_batch()


@pytest.mark.parametrize(
    ("change", "tabular", "match"),
    [
        (lambda t: t.assign(v=t["v"].where(t.index != 2)), None, r"column 'v' has no number in row 2"),
        (lambda t: t.drop(columns="site"), None, "no column 'site'"),
        (lambda t: t, TabularBlock(CATS, CONTS, [FillMissing, Normalize]), "put `Categorify` among them"),
        (lambda t: t, TabularBlock(CATS, CONTS, [Categorify, Normalize]), "put `FillMissing` among them"),
    ],
)
def test_what_is_wrong_in_the_data_is_refused_when_the_loaders_are_made(change, tabular, match):
    with pytest.raises(HeadsError, match=match):
        loaders(change(frame()), tabular)


@pytest.mark.parametrize("columns", [((), ()), (["a"], ["a"]), (["a", "a"], [])])
def test_columns_are_named_once(columns):
    with pytest.raises(HeadsError, match="each once"):
        TabularBlock(*columns)


def test_a_new_gap_is_filled_where_the_block_says_so():
    table = frame()
    dls = loaders(tabular=TabularBlock(CATS, CONTS, fill_new_gaps=True))
    (row,) = dls.test_dl([{**NEW, "v": None}, {**NEW, "v": table["v"].iloc[8:].median()}], num_workers=0).one_batch()
    assert row[1][0].tolist() == pytest.approx(row[1][1].tolist())


def test_rows_may_come_through_a_getter():
    rows = [(i, dict(r)) for i, r in enumerate(frame()[[*CATS, *CONTS]].to_dict("records"))]
    both = DataBlock(
        blocks=(TabularBlock(CATS, CONTS), RegressionBlock), getters=[ItemGetter(1), ItemGetter(0)], n_inp=1,
        splitter=IndexSplitter(range(8)),
    ).dataloaders(rows, bs=8, num_workers=0)  # fmt: skip
    assert all(torch.allclose(a.float(), b.float()) for a, b in zip(whole(both.valid), whole(loaders().valid)))


def test_columns_may_be_in_any_order():
    a, b = (whole(loaders(tabular=TabularBlock(c, n)).valid) for c, n in ((CATS, CONTS), (CATS[::-1], CONTS[::-1])))
    assert torch.equal(a[0][:, [1, 0, 2]], b[0]) and torch.equal(a[1].flip(1), b[1])


def test_a_missing_row_has_its_own_code():
    table = frame()
    table.loc[[2, 20], [*CATS, *CONTS]] = np.nan
    table["site"] = table["site"].astype("Int64")
    dls = loaders(table, PartialBlock(TabularBlock(CATS, CONTS)))
    cats, conts = whole(dls.valid)
    gone = torch.arange(8) == 2
    assert torch.equal((cats == -1).all(1), gone) and torch.equal(conts.isnan().all(1), gone)
    assert dls_inputs(dls)[0].partial and not dls_inputs(loaders())[0].partial
    shown = dls.valid.decode_batch(dls.valid.one_batch())[2][0]
    assert set(shown.values()) == {"–"}


def test_a_row_decodes_to_its_values_and_shows_as_a_table(dls, capsys):
    table, shown = frame(), dls.valid.decode_batch(dls.valid.one_batch())
    for i, (row, *_) in enumerate(shown):
        assert isinstance(row, RowValues)
        assert row["site"] == table["site"][i] and row["v"] == pytest.approx(table["v"][i], rel=1e-4)
        assert row["kind"] == (table["kind"][i] if i > 1 else "#na#")
    dls.show_batch(max_n=2)
    assert "kind:" in capsys.readouterr().out
    _, ax = plt.subplots()
    assert shown[4][0].show(ctx=ax) is ax
    texts = [c.get_text().get_text() for c in ax.tables[0].get_celld().values()]
    assert {"kind", str(table["kind"][4]), "v", f"{table['v'][4]:.4g}"} <= set(texts)
    assert list(shown[4][0].show(ctx=pd.Series({"text": "a"})).index) == ["text", "kind", "site", "u_na", "u", "v"]


def test_it_pickles_without_its_rows(dls):
    again = pickle.loads(pickle.dumps(dls.new_empty()))
    a, b = (d.test_dl([NEW], num_workers=0).one_batch()[0] for d in (dls, again))
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_frame_is_encoded_whole():
    table = pd.concat([frame()] * 3, ignore_index=True)
    dls = loaders(table)
    tfm = dls.train_ds.tls[0].tfms.fs[-1]
    calls = []
    encode = tfm.encode_frame
    tfm.encode_frame = lambda rows: calls.append(len(rows)) or encode(rows)
    dl = dls.test_dl(table.drop(columns=["y", "z"]))
    whole(dl)
    assert calls == [len(table)]
