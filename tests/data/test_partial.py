"""Missing labels: let through by `PartialBlock`, found in batches, refused without it."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock, TransformBlock
from fastai.data.transforms import Categorize, ColReader, IndexSplitter, IntToFloatTensor
from fastai.torch_core import TensorCategory, TensorMultiCategory
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage, PILMask, TensorBBox, TensorMask, TensorPoint
from fastai.vision.data import ImageBlock, MaskBlock, PointBlock

from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.missing import Missing, is_missing, labelled, missing_share
from fastai_heads.data.partial import KnownTags, Partial, PartialBlock, PartialReader
from fastai_heads.data.present import check_complete
from fastai_heads.errors import HeadsError

NAMES = ["kind", "tags", "ink", "centre", "box", "mask"]
GAPS = {"kind": [0, 2], "tags": [0, 3], "ink": [1, 2], "centre": [0, 1], "box": [3, 4], "mask": [0, 7]}  # rows
BLOCKS = {
    "kind": CategoryBlock,
    "tags": MultiCategoryBlock,  # a function, as a block that is made keeps the vocabulary of its first data
    "ink": RegressionBlock(),
    "centre": PointBlock,
    "box": BoxBlock(),
    "mask": lambda: MaskBlock(["paper", "ink"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("partial")
    for i in range(8):
        PILImage.create(np.full((32, 40, 3), 30 * i, dtype=np.uint8)).save(path / f"{i}.png")
        PILMask.create(np.full((32, 40), i % 2, dtype=np.uint8)).save(path / f"m{i}.png")
    return path


def full_table():
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(8)],
            "kind": list("zaababab"),
            "tags": ["x y", "x", "y", "w", "x", "", "x", "y"],  # "": a label, no tag applies
            "ink": np.arange(8.0) + 10,
            "centre": [f"{i + 2} 16" for i in range(8)],
            "box": [f"{i} 2 {i + 20} 30" for i in range(8)],
            "mask": [f"m{i}.png" for i in range(8)],
        }
    )


def table():
    df = full_table().astype({name: object for name in NAMES if name != "ink"})
    for name, rows in GAPS.items():
        df.loc[rows, name] = None
    return df


def readers(folder):
    return {
        "kind": ColReader("kind"),
        "tags": ColReader("tags", label_delim=" "),
        "ink": ColReader("ink"),
        "centre": NumbersReader("centre"),
        "box": ColReader("box"),
        "mask": ColReader("mask", pref=folder),
    }


def loaders(folder, df, names=NAMES, wrap=PartialBlock, **kwargs):
    blocks = [wrap(BLOCKS[name]) if wrap else BLOCKS[name] for name in names]
    getters = [ColReader("image", pref=folder), *(readers(folder)[name] for name in names)]
    block = DataBlock([ImageBlock, *blocks], getters=getters, n_inp=1, splitter=IndexSplitter([6, 7]), **kwargs)
    return block.dataloaders(df, bs=6, val_bs=2, num_workers=0, shuffle=False, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("value", "share"),
    [
        (None, 1),
        (float("nan"), 1),
        (np.float64("nan"), 1),
        (pd.NA, 1),
        (pd.NaT, 1),
        ("", 1),
        ("  ", 1),
        ([None, float("nan")], 1),
        (np.full((1, 2), np.nan), 1),
        (torch.tensor(float("nan")), 1),
        ([3.0, None], 0.5),
        (torch.tensor([1.0, 2.0, 3.0, float("nan")]), 0.25),
        ([], 0),
        (["", "a"], 0),
        ("nan", 0),
        (0, 0),
        (False, 0),
        (np.zeros((4, 4), dtype=np.uint8), 0),
        ([[1.0, 2.0], [3.0, 4.0]], 0),
        (object(), 0),
    ],
)
def test_what_is_missing(value, share):
    assert missing_share(value) == share and is_missing(value) is (share == 1)


def test_labelled_finds_the_gaps_of_every_encoding():
    nan = float("nan")
    for target, want in (
        (torch.tensor([1, -100, 0]), [1, 0, 1]),
        (torch.tensor([1.0, nan]), [1, 0]),
        (torch.tensor([[nan, 1.0], [nan, nan]]), [1, 0]),
        (torch.tensor([[[nan, nan]], [[0.0, 0.0]]]), [0, 1]),
        (torch.stack([torch.full((2, 2), 255), torch.tensor([[255, 255], [255, 0]])]), [0, 1]),
        (TensorMask(torch.full((1, 2, 2), 255, dtype=torch.uint8)), [0]),
        (torch.zeros(0, dtype=torch.long), []),
        (torch.zeros(0, 3), []),
    ):
        assert labelled(target).tolist() == [bool(w) for w in want], target
        assert labelled(target).dtype == torch.bool and type(labelled(target)) is torch.Tensor


def test_every_block_lets_gaps_through(folder):
    dls = loaders(folder, table())
    _, *targets = dls.one_batch()
    types = [TensorCategory, TensorMultiCategory, torch.Tensor, TensorPoint, TensorBBox, TensorMask]
    assert [type(t) for t in targets] == types
    assert [tuple(t.shape) for t in targets] == [(6,), (6, 2), (6,), (6, 1, 2), (6, 1, 4), (6, 32, 40)]
    for name, target in zip(NAMES, targets):
        assert (~labelled(target)).nonzero().flatten().tolist() == [i for i in GAPS[name] if i < 6], name
    _, *targets = next(iter(dls.valid))
    assert [labelled(t).tolist() for t in targets] == [[True, True]] * 5 + [[True, False]]


def test_labels_that_are_there_are_encoded_as_without_partial(folder):
    full, blanked = full_table(), table()
    full.loc[0, "kind"], full.loc[3, "tags"] = "a", "x"  # or their classes are known to one of the two only
    mine, stock = loaders(folder, blanked).one_batch(), loaders(folder, full, wrap=None).one_batch()
    for name, partial, whole in zip(NAMES, mine[1:], stock[1:]):
        there = labelled(partial)
        assert torch.equal(partial[there], whole[there]) and partial.dtype == whole.dtype, name


def test_vocabulary_is_learned_from_the_labels_that_are_there(folder):
    dls = loaders(folder, table())
    kind, tags, ink = (tl.tfms for tl in dls.train_ds.tls[1:4])
    assert list(kind.vocab) == ["a", "b"] and kind.c == 2
    assert list(tags.vocab) == ["x", "y"] and tags.c == 2
    assert ink.c == 1
    partial = kind.fs[-1]
    assert isinstance(partial, Partial) and isinstance(partial.tfms.fs[0], Categorize)
    assert partial.loss_func is Categorize.loss_func and partial.order == Categorize.order
    with pytest.raises(AttributeError):
        _ = partial.nothing


def test_an_empty_cell_of_a_delimited_reader_is_missing_and_the_users_reader_is_untouched():
    reader = ColReader("tags", pref="p/", suff=".png")
    assert PartialReader.of(reader)(pd.Series({"tags": None})) is None
    assert PartialReader.of(reader)(pd.Series({"tags": "a"})) == reader(pd.Series({"tags": "a"})) == "p/a.png"
    delimited = PartialReader.of(ColReader("tags", label_delim=" "))
    assert delimited(pd.Series({"tags": "a b"})) == ["a", "b"] and delimited(pd.Series({"tags": float("nan")})) is None
    assert delimited(pd.Series({"tags": ""})) == []
    assert type(reader) is ColReader and PartialReader.of(ColReader([0]))(pd.Series(["q"])) == "q"


@pytest.mark.parametrize("pad_mode", ["reflection", "zeros"])
def test_gaps_come_whole_through_augmentation(folder, pad_mode):
    augment = aug_transforms(flip_vert=True, max_rotate=60, max_zoom=1.5, p_affine=1.0, pad_mode=pad_mode)
    dls = loaders(folder, table(), item_tfms=Resize(24, method="pad", pad_mode="zeros"), batch_tfms=augment)
    for _ in range(3):
        _, *targets = dls.one_batch()
        for name, target in zip(NAMES, targets):
            assert (~labelled(target)).nonzero().flatten().tolist() == [i for i in GAPS[name] if i < 6], name
            if target.is_floating_point():
                assert torch.isfinite(target[labelled(target)]).all()
        assert set(targets[-1].unique().tolist()) <= {0, 1, 255}


def test_missing_masks_survive_div_mask(folder):
    dls = loaders(folder, table(), ["mask"], batch_tfms=IntToFloatTensor(div_mask=255))
    assert labelled(dls.one_batch()[1]).tolist() == [False] + [True] * 5


def test_gaps_decode_to_a_dash_and_labels_to_themselves(folder):
    dls = loaders(folder, table())
    first, second = dls.decode_batch(dls.one_batch())[:2]
    assert [isinstance(o, Missing) for o in first[1:]] == [0 in GAPS[name] for name in NAMES]
    assert str(first[1]) == "–" and float(first[3]) == 10.0
    assert second[1] == "a" and list(second[2]) == ["x"] and isinstance(second[3], Missing)
    assert torch.allclose(second[5].as_subclass(torch.Tensor), torch.tensor([[1.0, 2, 21, 30]]))
    assert second[6].shape == (32, 40) and second[6].unique().tolist() == [1]


def test_show_batch_shows_the_gap(folder):
    from matplotlib import pyplot as plt

    dls = loaders(folder, table())
    _, axes = plt.subplots(2, 3)
    dls.show_batch(ctxs=list(axes.flat), max_n=6)
    titles = [ax.get_title().split("\n") for ax in axes.flat]
    assert [t.count("–") for t in titles] == [sum(i in rows for rows in GAPS.values()) for i in range(6)]
    assert len(axes.flat[0].images) == 1 and len(axes.flat[1].images) == 2  # no mask is drawn over the first
    plt.close("all")


def test_test_sets_new_dls_and_pickles_keep_the_encoding(folder):
    dls = pickle.loads(pickle.dumps(loaders(folder, table())))
    for other in (dls.train.new(shuffle=False), dls.test_dl(table(), with_labels=True, bs=6)):
        _, *targets = other.one_batch()
        for name, target in zip(NAMES, targets):
            assert (~labelled(target)).nonzero().flatten().tolist() == [i for i in GAPS[name] if i < 6]
    empty = pickle.loads(pickle.dumps(dls.new_empty()))
    assert len(empty.test_dl(table()).one_batch()) == 1
    assert labelled(empty.test_dl(table(), with_labels=True, bs=8).one_batch()[1]).sum() == 6
    assert pickle.loads(pickle.dumps(Missing())) == Missing()


def test_a_batch_without_any_label(folder):
    df = table()
    df.loc[:3, NAMES] = None
    dls = loaders(folder, df)
    batch = next(iter(dls.train.new(bs=4, shuffle=False)))
    assert [labelled(t).any().item() for t in batch[1:]] == [False] * 6


def test_a_column_without_any_label_is_refused_by_name(folder):
    df = table()
    df.loc[:5, "ink"] = None
    with pytest.raises(HeadsError, match=r"`ink` holds no label at all in the 6 training items"):
        loaders(folder, df, ["ink"])


def test_half_a_label_is_refused():
    df = pd.DataFrame({"image": range(4), "x": [1.0, 2, None, 4], "y": [1.0, 2, 3, 4]})
    block = DataBlock(
        [CategoryBlock, PartialBlock(RegressionBlock)],
        getters=[ColReader("image"), ColReader(["x", "y"])],
        splitter=IndexSplitter([3]),
    )
    with pytest.raises(HeadsError, match=r"some of its numbers.*PartialBlock\(RegressionBlock\(\)\)"):
        block.datasets(df)
    df.loc[2, "y"] = None
    dsets = block.datasets(df)
    assert dsets.train.tls[1].tfms.c == 2
    assert torch.isnan(dsets.train[2][1]).tolist() == [True, True] and dsets.train[1][1].tolist() == [2, 2]


def tagged(rows, **kwargs):
    "Tags of which each has its column."
    df = pd.DataFrame(rows, columns=list("abc")).astype(object)
    block = DataBlock(
        [CategoryBlock, PartialBlock(MultiCategoryBlock(encoded=True, vocab=list("abc")))],
        getters=[lambda row: "a", ColReader(list("abc"))],
        splitter=IndexSplitter([len(df) - 1]),
        n_inp=1,
    )
    return block.datasets(df)


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, ""], ids=str)
def test_some_tags_may_be_missing(gap):
    dsets = tagged([[1, gap, 0], [gap, gap, gap], [0, 1, 1], [gap, 1, 0]])
    found = torch.stack([dsets[i][1] for i in range(4)])
    assert isinstance(dsets[0][1], TensorMultiCategory) and found.dtype == torch.float32
    assert found.isnan().tolist() == [[False, True, False], [True] * 3, [False] * 3, [True, False, False]]
    assert found.nan_to_num().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]]
    assert labelled(found).tolist() == [True, False, True, True]
    first, second, third = (dsets.tls[1].decode(dsets[i][1]) for i in range(3))
    assert (list(first), first.unknown) == (["a"], ("b",)) and isinstance(second, Missing)
    assert list(third) == ["b", "c"] and not isinstance(third, KnownTags)
    assert first.said_right(["a"]) and first.said_right(["b", "a"]) and not first.said_right(["a", "c"])


def test_a_list_of_tags_is_missing_whole_or_not_at_all():
    rows = [["x"], None, ["y", None], []]
    block = DataBlock(
        [CategoryBlock, PartialBlock(MultiCategoryBlock)],
        getters=[lambda i: "a", lambda i: rows[i]],
        splitter=IndexSplitter([3]),
        n_inp=1,
    )
    with pytest.raises(HeadsError, match=r"no place for one that is not known.*MultiCategoryBlock\(encoded=True"):
        block.datasets([0, 1, 2, 3])
    rows[2] = ["y"]
    dsets = block.datasets([0, 1, 2, 3])
    assert [labelled(dsets[i][1][None]).item() for i in range(4)] == [True, False, True, True]


def test_blocks_that_have_no_value_for_missing_are_refused(folder):
    with pytest.raises(HeadsError, match="found 3"):
        PartialBlock(3)
    block = DataBlock(
        [ImageBlock, PartialBlock(TransformBlock)],
        getters=[ColReader("image", pref=folder)] * 2,
        splitter=IndexSplitter([7]),
    )
    with pytest.raises(HeadsError, match="makes str"):
        block.datasets(full_table())


def test_without_partial_missing_labels_are_refused_by_column_and_count(folder):
    df = full_table()
    df.loc[[2, 3, 7], "ink"] = None
    with pytest.raises(HeadsError, match=r"`ink` has no label in 3 of 8 rows.*PartialBlock"):
        check_complete(loaders(folder, df, ["kind", "ink"], wrap=None))
    check_complete(loaders(folder, df, ["kind", "ink"]))
    check_complete(loaders(folder, full_table(), wrap=None))
    df = full_table()
    df.loc[[3], "kind"] = float("nan")  # stock fastai would raise a KeyError in the middle of an epoch
    with pytest.raises(HeadsError, match=r"`kind` has no label in 1 of 8 rows"):
        check_complete(loaders(folder, df, ["kind"], wrap=None))
