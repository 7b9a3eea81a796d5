"""The loader over several inputs, and inputs that are missing in it."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock, RegressionBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import ColReader, IndexSplitter, Normalize
from fastai.text.data import TextBlock
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from PIL import Image
from torch import Tensor

from fastai_heads.data.inputs import ImageInput, RowInput, TextInput, dls_inputs
from fastai_heads.data.loader import InputsDL, token_counts
from fastai_heads.data.missing import Missing
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import TabularBlock
from fastai_heads.errors import HeadsError

N, N_VALID = 40, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for i in range(N):
        Image.fromarray(np.full((12, 12, 3), 5 * i, dtype=np.uint8)).save(path / f"{i}.png")
    return path


def frame() -> pd.DataFrame:
    words = [" ".join(["word"] * (1 + 7 * i % 31)) for i in range(N)]
    return pd.DataFrame(
        {"photo": [f"{i}.png" for i in range(N)], "u": np.arange(N, dtype=float), "note": words, "y": np.arange(N) / N}
    )


GAPS = {"photo": [1, 9, 10, 20], "u": [2, 9, 11], "note": [3, 10, 11, 30]}


def gappy() -> pd.DataFrame:
    table = frame()
    for column, rows in GAPS.items():
        table[column] = table[column].astype(object).where(~table.index.isin(rows), None)
    return table


def loaders(folder, table=None, wrap=noop, text=TextBlock.from_df, image=ImageBlock, **kwargs):
    note = text("note", min_freq=1, n_workers=0)
    block = DataBlock(
        blocks=(wrap(image), wrap(TabularBlock([], ["u"], [Normalize])), wrap(note), RegressionBlock),
        getters=[ColReader("photo", pref=f"{folder}/"), noop, ColReader("text"), ColReader("y")],
        n_inp=3, splitter=IndexSplitter(range(N_VALID)), **{"dl_type": InputsDL, "item_tfms": Resize(8), **kwargs},
    )  # fmt: skip
    return block.dataloaders(frame() if table is None else table, bs=8, num_workers=0)


@pytest.fixture
def opened(monkeypatch):
    found, read = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args, **kwargs: found.append(file) or read(file, *args, **kwargs))
    return found


def test_texts_are_batched_by_their_length_and_no_image_is_opened_for_it(folder, opened):
    dls = loaders(folder)
    assert len(opened) <= 3, "to describe the items"
    lengths = token_counts(dls.train_ds)
    assert lengths.tolist() == [len(dls.train_ds.tls[2][i]) for i in range(N - N_VALID)]
    sizes = [b[2].shape[1] for b in dls.valid.new(bs=2)]
    assert sizes == sorted(sizes, reverse=True)
    spread = [(b[2] != 1).sum(1).float().std().item() for b in dls.train]
    shuffled = [lengths[np.random.permutation(len(lengths))[:8]].std() for _ in range(20)]
    assert np.mean(spread) < np.mean(shuffled)
    seen = torch.cat([b[3] for b in dls.train.new(drop_last=False)])
    assert sorted((seen * N).round().int().tolist()) == list(range(N_VALID, N))
    assert pickle.loads(pickle.dumps(dls.new_empty())).valid.res is not None


def test_without_a_text_it_is_fastais_own_loader(folder):
    block = DataBlock(
        blocks=(ImageBlock, RegressionBlock), getters=[ColReader("photo", pref=f"{folder}/"), ColReader("y")],
        splitter=IndexSplitter(range(N_VALID)), item_tfms=Resize(8),
    )  # fmt: skip
    for shuffle in (True, False):
        orders = []
        for kind in (TfmdDL, InputsDL):
            dl = (
                block.datasets(frame()).dataloaders(bs=8, num_workers=0, dl_type=kind, after_item=block.item_tfms).train
            )
            dl = dl.new(shuffle=shuffle).new()
            dl.rng.seed(3)
            orders.append(list(dl.get_idxs()))
        assert orders[0] == orders[1]


def test_inputs_are_described(folder):
    photo, row, note = dls_inputs(loaders(folder))
    assert (photo, row) == (ImageInput("photo"), RowInput("row", cont_names=("u",)))
    assert isinstance(note, TextInput) and note.name == "note" and note.vocab[note.pad_idx] == "xxpad"
    assert note.n_tokens == len(note.vocab) and "word" in note.vocab
    assert all(source.partial for source in dls_inputs(loaders(folder, gappy(), PartialBlock)))


def absent(b) -> list[list[bool]]:
    image, (_, numbers), ids = (x.as_subclass(Tensor) if isinstance(x, Tensor) else x for x in b[:3])
    whole = image.flatten(1).isnan()
    assert torch.equal(whole.any(1), whole.all(1)), "the whole of an image"
    return [whole.all(1).tolist(), numbers[:, 0].isnan().tolist(), (ids == 1).all(1).tolist()]


@pytest.mark.parametrize("image", [ImageBlock, ImageBlock(PILImageBW)], ids=["colour", "grey"])
@pytest.mark.parametrize("batch_tfms", [[], "all"], ids=["plain", "augmented"])
def test_a_missing_input_is_told_in_every_batch(folder, image, batch_tfms):
    stats = ([0.5], [0.5]) if image is not ImageBlock else ([0.5] * 3, [0.5] * 3)
    tfms = [*aug_transforms(size=8, max_rotate=40, p_affine=1), Normalize.from_stats(*stats)] if batch_tfms else []
    dls = loaders(folder, gappy(), PartialBlock, image=image, batch_tfms=tfms)
    for dl in (dls.train.new(drop_last=False), dls.valid):
        for b in dl:
            rows = (b[3] * N).round().int().tolist()
            for column, told in zip(GAPS, absent(b)):
                assert told == [row in GAPS[column] for row in rows]
            assert b[0].dtype == torch.float32


def test_no_file_is_opened_for_a_missing_image(folder, opened):
    dls = loaders(folder, gappy(), PartialBlock)
    list(dls.valid)
    assert f"{folder}/0.png" in map(str, opened)
    assert not {f"{folder}/{i}.png" for i in GAPS["photo"]} & set(map(str, opened))


def test_the_numbers_of_what_is_there_are_as_without_gaps(folder):
    plain, partly = (loaders(folder, wrap=wrap).valid for wrap in (noop, PartialBlock))
    for a, b in zip(plain, partly):
        assert torch.allclose(a[0].as_subclass(Tensor), b[0].as_subclass(Tensor))
        assert torch.equal(a[1][1], b[1][1]) and torch.equal(a[2], b[2])


def test_missing_inputs_decode_to_dashes(folder):
    dls = loaders(folder, gappy(), PartialBlock)
    for photo, row, note, y in dls.valid.decode_batch(dls.valid.one_batch()):
        i = round(y * N)
        assert isinstance(photo, Missing) == (i in GAPS["photo"])
        assert isinstance(note, Missing) == (i in GAPS["note"])
        assert (row["u"] == "–") == (i in GAPS["u"])


def test_missing_inputs_in_new_rows(folder):
    dls = loaders(folder, gappy(), PartialBlock)
    new = gappy().iloc[[0, 1, 2, 3]].rename(columns={"note": "text"}).drop(columns="y")
    told = absent(dls.test_dl(new, num_workers=0).new(shuffle=False).one_batch())
    assert sorted(map(sum, told)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.assign(note=[5, *t["note"][1:]]), r"column 'note' is to hold texts, found 5 in row 0"),
        (lambda t: t.assign(note=None), r"column 'note' holds no text in any of its 40 rows"),
        (lambda t: t.assign(photo=None), r"`photo` holds no label at all"),
    ],
)
def test_what_is_wrong_is_refused_when_the_loaders_are_made(folder, change, match):
    with pytest.raises(HeadsError, match=match):
        loaders(folder, change(frame()), PartialBlock)


def test_partial_texts_bring_the_loader_along():
    assert PartialBlock(TextBlock.from_df("note")).dl_type is InputsDL
    assert PartialBlock(ImageBlock).dl_type is None
