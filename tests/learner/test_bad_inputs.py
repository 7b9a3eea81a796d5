"""What careless users give a learner of several inputs: a `HeadsError` that names the input, or a documented answer."""

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.core import PILImageBW, TensorImage
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from fasttransform import Transform

from fastai_heads.data.rows import TabularBlock
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead

from .inputs import INPUTS, ROW, TEXT, Pixels, archs, frame, loaders, make_learner


@pytest.fixture(scope="module")
def learn(folder):
    (folder / "broken.png").write_text("no image")
    return make_learner(loaders(folder), archs())


ARCHS = [
    (Pixels(), None, r"the data has 3 inputs, photo \(an image\).*`arch=\{'photo': 'resnet18', 'row': Tabular"),
    ([Pixels(), ROW, TEXT], None, r"the data has 3 inputs.*`arch=\{"),
    ({"photo": Pixels(), "row": ROW}, None, r"input 'note' has no body \(a text\)"),
    ({}, None, r"input 'photo' has no body"),
    (archs(sound=Pixels()), None, "body 'sound' reads input 'sound', which there is not"),
    (archs(note=None), None, r"body 'note' is None. Say TextBody\(AWD_LSTM\)"),
    (archs(row=Pixels()), None, "input 'row' is a row of a table, which Pixels does not read. Say TabularBody"),
    (archs(photo=ROW), None, "TabularBody reads a row of a table, and input 'photo' is an image"),
    (archs(note=ROW), None, "TabularBody reads a row of a table, and input 'note' is a text"),
    (archs(row=TEXT), None, "TextBody reads a text, and input 'row' is a row of a table"),
    (archs(), {"mood": ClassificationHead(tap="photo.stem"), "n": RegressionHead(tap="row.features")},
     "no head reads body 'note'"),
    (archs(), {"mood": ClassificationHead(tap="note.tokens")}, "'note.tokens' is a sequence.*read 'note.features'"),
    (archs(), {"mood": ClassificationHead(tap="photo.steam")}, "steam"),
    (archs(), {"mood": ClassificationHead(tap="row.layer9")},
     r"`heads\['mood'\]`.*body 'row'.*'layer9'`, which TabularBody does not"),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "heads", "said"), ARCHS)
def test_archs_and_taps_that_do_not_fit_the_inputs(folder, arch, heads, said):
    with pytest.raises(HeadsError, match=said):
        make_learner(loaders(folder), arch, heads)


class Change(Transform):
    "Changes the images of a batch after everything else."

    order = 200

    def __init__(self, change):
        self.change = change

    def encodes(self, x: TensorImage):
        return self.change(x)


def broken(name, value, row):
    "A frame with a cell that is wrong."
    table = frame().astype({name: object})
    table.loc[row, name] = value
    return table


PAIR, THREE = ("photo", "row"), ("photo", "row", "note")
DATA = {
    "gap in a column that had none": (PAIR, broken("u", None, 2), "column 'u' has no number in row 2"),
    "text among numbers": (PAIR, broken("u", "much", 9), "column 'u' is to hold numbers, found 'much'"),
    "unknown column": (PAIR, frame().drop(columns="u"), "no column 'u' in the rows"),
    "no image": (PAIR, broken("photo", None, 12), r"column 'photo' has no image in row 12.*PartialBlock"),
    "no file": (PAIR, broken("photo", "none.png", 12), r"'photo', row 12 \(none.png\).*there is no file"),
    "an infinite number": (THREE, broken("u", np.inf, 3), "column 'u' holds an infinite number in row 3"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_does_not_fit_is_refused_before_training(folder, name):
    inputs, table, said = DATA[name]
    with pytest.raises(HeadsError, match=said):
        make_learner(loaders(folder, inputs, table), {k: archs()[k] for k in inputs})


BATCHES = {
    "float64": (lambda x: x.double(), "photo: 16×16 pixels of torch.float64, row: Row"),
    "bytes": (lambda x: x.to(torch.uint8), "photo: 16×16 pixels of torch.uint8, row: Row"),
    "one channel": (lambda x: x[:, :1], r"input 'photo': .* images of 3 channels, found 1"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_images_of_another_type_or_channels_are_refused_by_the_inputs_name(folder, name):
    (change, said), dls = BATCHES[name], loaders(folder, PAIR)
    dls.add_tfms([Change(change)], "after_batch")
    with pytest.raises(HeadsError, match=said):
        make_learner(dls, {"photo": Pixels(), "row": ROW})


def test_images_of_one_channel_by_their_block(folder):
    grey = DataBlock(
        (ImageBlock(PILImageBW), TabularBlock(cont_names=["u"]), CategoryBlock), n_inp=2,
        getters=[ColReader("photo", pref=folder), noop, ColReader("mood")], splitter=IndexSplitter([0, 1]),
    ).dataloaders(frame(), bs=4, num_workers=0)  # fmt: skip
    with pytest.raises(HeadsError, match=r"'photo'.*channel"):
        make_learner(grey, {"photo": "resnet10t", "row": ROW}, pretrained=False)


ITEM = frame()[INPUTS].to_dict("records")[0]
PARTS = (ITEM["photo"], {"kind": ITEM["kind"], "u": ITEM["u"]}, ITEM["note"])
ITEMS = {
    "number for a text": ({"note": 3}, r"column 'note' is to hold texts, found 3 \(int\) in row 0"),
    "bytes for a text": ({"note": b"cat"}, "column 'note' is to hold texts, found b'cat'"),
    "no text": ({"note": None}, "found None .* in row 0. A missing one wants `PartialBlock"),
    "no number": ({"u": None}, "column 'u' has no number in row 0"),
    "text for a number": ({"u": "much"}, "column 'u' is to hold numbers, found 'much'"),
    "infinity": ({"u": np.inf}, "column 'u' holds an infinite number"),
    "number for a category": ({"kind": 3}, "column 'kind' held text in training and holds numbers here"),
    "no image": ({"photo": None}, "column 'photo' has no image in row 0 of the items.*PartialBlock"),
    "no file": ({"photo": "none.png"}, "there is no file"),
    "a file without an image": ({"photo": "broken.png"}, "cannot identify image file .*broken.png"),
    "swapped columns": ({"photo": ITEM["note"], "note": ITEM["photo"]}, "there is no file"),
    "no column of a text": ({k: v for k, v in ITEM.items() if k != "note"}, "no column 'note'"),
    "no column of a row": ({k: v for k, v in ITEM.items() if k != "u"}, "no column 'u'"),
    "no column of an image": ({k: v for k, v in ITEM.items() if k != "photo"}, "no column 'photo'"),
    "two parts of three": (PARTS[:2], r"has 3 parts \(photo, \{kind, u\}, note\), found 2"),
    "swapped parts": ((PARTS[1], PARTS[0], PARTS[2]), "no column 'photo' in .*'kind'"),
    "no dict for a row": ((PARTS[0], 3.0, PARTS[2]), "the columns kind, u come as a dict, found 3.0"),
    "a part without a column": ((PARTS[0], {"kind": "x"}, PARTS[2]), "no column 'u'"),
    "a list": (list(PARTS), "`item` is one item"),
    "one text": (ITEM["note"], "found str"),
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_that_do_not_fit_are_refused(learn, name):
    item, said = ITEMS[name]
    changed = isinstance(item, dict) and len(item) < 3
    with pytest.raises(HeadsError, match=said):
        learn.predict({**ITEM, **item} if changed else item)


TREATED = {
    "a category that training did not have is that of a gap": ({"kind": "new"}, {"kind": None}),
    "an empty text is its first token": ({"note": ""}, {"note": "  "}),
    "words that training did not have are one token": ({"note": "zzz"}, {"note": "qqq"}),
}


@pytest.mark.parametrize("name", TREATED)
def test_what_is_answered_all_the_same(learn, name):
    one, other = (learn.predict({**ITEM, **change})[2].mood for change in TREATED[name])
    assert torch.equal(one, other) and one.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (("row", "photo", "note"), "input 'photo'.*takes images"),
        (("photo", "note", "row"), "input 'row': TabularBody takes a row"),
        (
            ("photo", "row"),
            r"read 3 inputs \(photo, row, note\), and the batch has 2|input 'note': TextBody takes a text",
        ),
    ],
)
def test_other_data_with_swapped_inputs_is_refused(learn, folder, inputs, said):
    other, before = loaders(folder, inputs), learn.dls
    with pytest.raises(HeadsError, match=said):
        learn.dls = other
    assert learn.dls is before
    for ask in (lambda: learn.get_preds(dl=other.valid), lambda: learn.validate(dl=other.valid)):
        with pytest.raises(HeadsError, match=said):
            ask()
