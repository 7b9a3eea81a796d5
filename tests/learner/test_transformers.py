"""A learner over a text that an encoder of transformers reads."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.learner import load_learner
from fastai.torch_core import set_seed

from fastai_heads.bodies.points import cut_points
from fastai_heads.bodies.text import TextBody
from fastai_heads.data.texts import TokenizerBlock
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.learner import multihead_learner

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "home"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
N_VALID, LIMIT = 8, 16


def tokenizer():
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def network(kind):
    n = len(SPECIAL) + len(WORDS)
    if kind == "T5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
        return transformers.T5EncoderModel(transformers.T5Config(vocab_size=n, **sizes))
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": LIMIT}
    return transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=n, **sizes))


def frame(longest=LIMIT - 2):
    rng = np.random.default_rng(0)
    notes = [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(24)]
    return pd.DataFrame({"note": notes, "mood": ["p", "q"] * 12, "n": rng.normal(size=24)})


def loaders(table=None):
    block = DataBlock(
        (TokenizerBlock(tokenizer()), CategoryBlock, RegressionBlock), n_inp=1, get_x=ColReader("note"),
        get_y=[ColReader("mood"), ColReader("n")], splitter=IndexSplitter(range(N_VALID)),
    )  # fmt: skip
    return block.dataloaders(frame() if table is None else table, bs=4, num_workers=0)


def make(body, heads=None, epochs=1):
    set_seed(0)
    learn = multihead_learner(loaders(), body, heads)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    with learn.no_logging():
        learn.fit(epochs, 1e-2)
    return learn


@pytest.fixture(scope="module", params=["DistilBert", "T5"])
def learn(request, tmp_path_factory):
    made = make(TextBody(network(request.param)))
    made.path = tmp_path_factory.mktemp("texts")
    return made


def test_an_item_is_predicted_as_its_row_of_all(learn):
    preds, notes = learn.get_preds()[0], frame().note
    for i in range(N_VALID):
        values, _, activated = learn.predict(notes[i])
        assert torch.allclose(activated.mood, preds.mood[i], atol=1e-6)
        assert torch.allclose(activated.n, preds.n[i], atol=1e-6) and values.mood in "pq"


def test_texts_without_labels_are_predicted(learn):
    want = learn.get_preds()[0].mood
    rows = frame().iloc[:N_VALID]
    for items in (rows, rows[["note"]].to_dict("records"), rows.note.tolist()):
        assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(items))[0].mood, want, atol=1e-6)


def test_it_is_shown_and_summed_up(learn):
    for figure in (learn.show_batch(max_n=2), learn.show_results(max_n=2)):
        assert any(WORDS[0] in t.get_text() or "mood" in t.get_text() for ax in figure.axes for t in ax.texts)
    assert learn.model[0].arch in str(learn.summary()) and learn.show_heads().axes


def test_it_is_saved_and_exported(learn):
    item, want = frame().note[3], learn.predict(frame().note[3])[2]
    learn.save("weights")
    learn.export("whole.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fastai's, on pickles
        loaded = load_learner(learn.path / "whole.pkl")
    for other in (loaded, learn.load("weights")):
        assert all(torch.equal(a, b) for a, b in zip(other.predict(item)[2], want, strict=True))


def test_a_pretrained_network_is_held_and_thawed():
    learn = make(TextBody(network("DistilBert"), pretrained=True), epochs=0)
    before = [p.clone() for p in learn.model[0].parameters()]
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, 1e-2)
        names = {
            name
            for old, (name, p) in zip(before, learn.model[0].named_parameters(), strict=True)
            if not torch.equal(old, p)
        }
        assert names and all("norm" in name.lower() for name in names), "norms train on, as in fastai's `freeze`"
        learn.unfreeze()
        learn.fit(1, slice(1e-3, 1e-2))
    assert not any(torch.equal(a, b) for a, b in zip(before, learn.model[0].parameters(), strict=True))
    assert learn.opt.hypers[0]["lr"] < learn.opt.hypers[-1]["lr"]


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_head_reads_a_layer(pool):
    heads = {"mood": ClassificationHead(tap="layer1")}
    learn = make(TextBody(network("DistilBert"), pool=pool), heads)
    assert set(learn.model[0].taps) == {"layer1", "features"} and "layer1" in str(learn.summary())
    assert [p.name for p in cut_points(TextBody(network("DistilBert")), dls=learn.dls).taps][:2] == ["layer0", "layer1"]


def test_longer_texts_are_cut_and_it_is_said_once():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn = multihead_learner(loaders(frame(3 * LIMIT)), TextBody(network("DistilBert")))
        with learn.no_logging(), learn.no_bar():
            learn.fit(1)
            learn.get_preds()
    cut = [w for w in said if issubclass(w.category, HeadsWarning) and "longer ones are cut" in str(w.message)]
    assert len(cut) == 1 and "'note'" in str(cut[0].message)


@pytest.mark.parametrize("text", [None, 3.0, float("nan"), ["a", "b"]])
def test_what_is_no_text_is_refused(learn, text):
    with pytest.raises(HeadsError, match=r"a text is a str|`item` is one item"):
        learn.predict(text)
    table = frame()
    table["note"] = table.note.astype(object)
    table.at[2, "note"] = text
    with pytest.raises(HeadsError, match=r"column 'note', row 2: a text is a str"):
        multihead_learner(loaders(table), TextBody(network("DistilBert")))


def test_taps_of_a_text_want_its_data():
    with pytest.raises(HeadsError, match="depend on the data"):
        cut_points(TextBody(network("DistilBert")))
