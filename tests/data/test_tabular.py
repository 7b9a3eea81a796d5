"""fastai's `TabularDataLoaders` with several targets: what each is, and an element of the batch for each."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import Normalize
from fastai.tabular.core import Categorify, FillMissing
from fastai.tabular.data import TabularDataLoaders
from fastai.torch_core import set_seed
from sklearn.datasets import load_linnerud

from fastai_heads.data.inputs import dls_inputs
from fastai_heads.data.tabular import TabularTargets, from_tabular, tabular_targets
from fastai_heads.data.targets import Target, target_labels
from fastai_heads.errors import HeadsError

N = 40
SPECIES = Target("species", 0, "category", 3, ("p", "q", "r"))


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "kind": rng.choice(["x", "y", "z"], N), "u": rng.normal(size=N), "species": ["p", "q", "r", "q"] * 10,
            "sex": ["m", "f"] * 20, "mass": rng.normal(4000, 500, N), "bill": rng.normal(40, 5, N),
            "old": [True, False] * 20,
        }
    )  # fmt: skip


def loaders(y_names, y_block=None, table=None):
    return TabularDataLoaders.from_df(
        frame() if table is None else table, procs=[Categorify, FillMissing, Normalize], cat_names=["kind"],
        cont_names=["u"], y_names=y_names, y_block=y_block, valid_idx=list(range(8)), bs=8, num_workers=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("y_names", "y_block", "want"),
    [
        ("mass", None, (Target("mass", 0, "regression", 1),)),
        (["mass", "bill"], None, (Target("mass", 0, "regression", 1), Target("bill", 1, "regression", 1))),
        (["mass", "bill"], RegressionBlock(), (Target("mass", 0, "regression", 1), Target("bill", 1, "regression", 1))),
        ("species", None, (SPECIES,)),
        ("species", CategoryBlock(), (SPECIES,)),
        (["species", "sex"], "ours", (SPECIES, Target("sex", 1, "category", 2, ("f", "m")))),
        (
            ["species", "mass", "old"], "ours",
            (SPECIES, Target("mass", 1, "regression", 1), Target("old", 2, "category", 2, (False, True))),
        ),
    ],
)  # fmt: skip
def test_each_target_is_told_and_has_an_element_of_the_batch(y_names, y_block, want):
    dls = loaders(y_names, TabularTargets() if y_block == "ours" else y_block)
    assert tabular_targets(dls) == want
    apart, table = from_tabular(dls), frame()
    for dl, part in ((apart.train.new(shuffle=False, drop_last=False), table.iloc[8:]), (apart.valid, table.iloc[:8])):
        _, *ys = zip(*dl)
        ys = [torch.cat(parts) for parts in ys]
        assert len(ys) == len(want) and dl.n_inp == 1
        for target, y in zip(want, ys):
            if target.kind == "category":
                assert y.dtype == torch.int64
                assert [target.vocab[i] for i in y] == part[target.name].tolist()
            else:
                assert y.dtype == torch.float32
                assert y.tolist() == pytest.approx(part[target.name].tolist(), rel=1e-4)
            if dl is not apart.valid:
                assert torch.equal(target_labels(apart, target.index), y)
    assert len(dls.one_batch()) == 3, "the user's own are left as they are"


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai, as it takes numbers for classes
@pytest.mark.parametrize("y_names", [["species", "mass"], ["species", "sex"]])
def test_targets_with_the_classes_of_another_are_refused_and_the_answer_works(y_names):
    with pytest.raises(HeadsError, match=r"classes of .* alone.*`y_block=TabularTargets\(\)`"):
        tabular_targets(loaders(y_names))
    assert [t.name for t in tabular_targets(loaders(y_names, TabularTargets()))] == y_names


def test_tags_are_one_target():
    table = frame().assign(a=[True, False] * 20, b=[False, False, True, True] * 10)
    dls = loaders(["a", "b"], MultiCategoryBlock(encoded=True, vocab=["a", "b"]), table)
    assert tabular_targets(dls) == (Target("tags", 0, "multilabel", 2, ("a", "b")),)
    _, y = from_tabular(dls).valid.one_batch()
    assert y.dtype == torch.float32 and y.tolist() == table[["a", "b"]].iloc[:8].to_numpy(dtype=float).tolist()


def test_numbers_may_be_classes():
    table = frame().assign(grade=[3, 1, 2, 1] * 10)
    dls = loaders(["grade", "mass"], TabularTargets(categories=["grade"]), table)
    assert tabular_targets(dls)[0] == Target("grade", 0, "category", 3, (1, 2, 3))
    with pytest.raises(HeadsError, match=r"'grad' is not among `y_names`. Did you mean 'grade'"):
        loaders(["grade", "mass"], TabularTargets(categories=["grad"]), table)


def test_missing_labels_are_marked_and_left_out():
    table = frame()
    table.loc[[1, 20], "species"], table.loc[[30], "mass"] = None, np.nan
    dls = loaders(["species", "mass"], TabularTargets(), table)
    assert [t.partial for t in tabular_targets(dls)] == [True, True]
    made = from_tabular(dls)
    assert len(target_labels(made, 0)) == len(target_labels(made, 1)) == N - 8 - 1
    species = made.valid.one_batch()[1]
    assert species.tolist().index(-100) == 1


def test_rows_without_labels_and_a_copy_by_pickle():
    dls = from_tabular(loaders(["species", "mass"], TabularTargets()))
    again = pickle.loads(pickle.dumps(dls.new_empty()))
    new = frame()[["kind", "u"]].iloc[:5]
    for d in (dls, again):
        cats, conts = d.test_dl(new, num_workers=0).one_batch()[0]
        assert cats.shape == conts.shape == (5, 1)
    shown = dls.valid.decode_batch(dls.valid.one_batch())
    assert [row["kind"] for row, *_ in shown] == frame()["kind"].iloc[:8].tolist()
    assert [species for _, species, _ in shown] == frame()["species"].iloc[:8].tolist()


def test_whole_batches_hold_what_single_items_do():
    dls = from_tabular(loaders(["species", "mass"], TabularTargets()))
    whole = dls.valid.one_batch()
    single = dls.valid.do_batch([dls.valid.do_item(i) for i in range(8)])
    assert all(torch.equal(a, b) for a, b in zip(whole[0], single[0]))
    for a, b in zip(whole[1:], single[1:]):
        assert torch.equal(a, b) and type(a) is type(b)


def test_rows_are_drawn_as_fastai_draws_them():
    dls = loaders(["mass", "bill"])
    set_seed(3)
    want = torch.cat([ys[:, 0] for _, _, ys in dls.train])
    made = from_tabular(dls)
    set_seed(3)
    assert torch.equal(torch.cat([mass for _, mass, _ in made.train]), want.float())


def test_a_class_that_training_did_not_have_is_refused():
    with pytest.raises(HeadsError, match="target 'species' has the class 'new', which training did not have"):
        loaders(["species", "mass"], TabularTargets(), frame().assign(species=["new", *frame()["species"][1:]]))


def test_real_data_of_three_inputs_and_three_targets():
    data = load_linnerud(as_frame=True)
    dls = TabularDataLoaders.from_df(
        data.frame.astype(float), procs=[Normalize], cont_names=list(data.feature_names),
        y_names=list(data.target_names),
        valid_idx=list(range(4)), bs=8, num_workers=0,
    )  # fmt: skip
    assert [t.name for t in tabular_targets(dls)] == ["Weight", "Waist", "Pulse"]
    made = from_tabular(dls)
    assert dls_inputs(made)[0].cont_names == ("Chins", "Situps", "Jumps")
    (cats, conts), *ys = made.valid.one_batch()
    assert (cats.shape, conts.shape, [y.shape for y in ys]) == ((4, 0), (4, 3), [(4,)] * 3)


def test_data_of_another_kind_is_refused():
    with pytest.raises(HeadsError, match="`dls` is a TabularDataLoaders"):
        tabular_targets(object())
    with pytest.raises(HeadsError, match="no target: pass `y_names`"):
        tabular_targets(loaders(None))
