"""Texts as the ids of a tokenizer."""

import pickle

import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.text.data import TensorText

from fastai_heads.data.inputs import TextInput, dls_inputs
from fastai_heads.data.loader import InputsDL, token_counts
from fastai_heads.data.missing import Missing
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.texts import TokenizerBlock
from fastai_heads.errors import HeadsError

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
TABLE = pd.DataFrame({"note": ["a", "a b", "a b c", "c a b c", "b", "c c c c c c", "a z", "b b"], "y": range(8)})


def plain():
    "A tokenizer of words, with BERT's special tokens around a text."
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(WORDS[:4])
    return made


def wrapped(**kwargs):
    "The same as transformers has it."
    fast = pytest.importorskip("transformers").PreTrainedTokenizerFast
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return fast(tokenizer_object=plain(), **{**names, **kwargs})


def loaders(block, table=TABLE):
    return DataBlock(
        blocks=(block, RegressionBlock), getters=[ColReader("note"), ColReader("y")], splitter=IndexSplitter([0, 1])
    ).dataloaders(table, bs=3, num_workers=0)


@pytest.fixture(params=[plain, wrapped], ids=["tokenizers", "transformers"])
def tokenizer(request):
    return request.param()


def test_a_batch_holds_the_tokenizers_ids(tokenizer):
    dls = loaders(TokenizerBlock(tokenizer))
    ids, y = dls.valid.one_batch()
    assert isinstance(ids, TensorText) and ids.dtype == torch.int64 and isinstance(dls.train, InputsDL)
    assert ids.tolist() == [[2, 4, 5, 3], [2, 4, 3, 0]] and y.tolist() == [1, 0], "the longest first"
    assert dls_inputs(dls) == (TextInput("note", n_tokens=len(WORDS), pad_idx=0),)
    assert token_counts(dls.train_ds).tolist() == [5, 6, 3, 8, 4, 4]
    assert [o[0] for o in dls.valid.decode_batch((ids, y))] == ["a b", "a"]
    (new,) = dls.test_dl(["c z"]).one_batch()
    assert new.tolist() == [[2, 6, 1, 3]]
    assert pickle.loads(pickle.dumps(dls.new_empty())).test_dl(["c z"]).one_batch()[0].tolist() == new.tolist()


def test_longer_texts_are_cut(tokenizer):
    (ids,) = loaders(TokenizerBlock(tokenizer, max_len=4)).test_dl(["a b c c c"]).one_batch()
    assert ids.tolist() == [[2, 4, 5, 3]], "before the last special token"


def test_the_tokenizers_own_limit_is_kept():
    (ids,) = loaders(TokenizerBlock(wrapped(model_max_length=5))).test_dl(["a b c c c"]).one_batch()
    assert ids.tolist() == [[2, 4, 5, 6, 3]]


def test_texts_may_be_missing(tokenizer):
    dls = loaders(PartialBlock(TokenizerBlock(tokenizer)), TABLE.assign(note=[None, *TABLE["note"][1:]]))
    ids, y = dls.valid.one_batch()
    assert ids.tolist() == [[2, 4, 5, 3], [0, 0, 0, 0]] and dls_inputs(dls)[0].partial
    assert isinstance(dls.valid.decode_batch((ids, y))[1][0], Missing)


@pytest.mark.parametrize("text", [5, 2.5, None])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(HeadsError, match="a text is a str, found"):
        loaders(TokenizerBlock(tokenizer), TABLE.assign(note=[*TABLE["note"][:-1], text]).astype(object)).train_ds[5]


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(HeadsError, match="no token for padding"):
        TokenizerBlock(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
