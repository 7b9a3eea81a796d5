"""Texts for networks of transformers: `TokenizerBlock`, the ids of a tokenizer padded by batch."""

from collections.abc import Sequence
from typing import Any

import torch
from fastai.data.block import TransformBlock
from fastai.torch_core import TitledStr
from fasttransform.transform import ItemTransform, Transform
from torch import Tensor

from fastai_heads.data.loader import InputsDL
from fastai_heads.data.text_part import text_class
from fastai_heads.errors import HeadsError
from fastai_heads.values import check_value, is_whole

__all__ = ["PadTexts", "ReadTokens", "TokenizerBlock"]


class ReadTokens(Transform):
    "A text to the ids of its tokens, the tokenizer's special ones among them."

    makes_tokens = True
    input_types = (str,)

    def __init__(
        self,
        tokenizer: Any,  # of transformers, or a `tokenizers.Tokenizer`
        max_len: int | None = None,  # tokens of a text at most
    ):
        super().__init__()
        fits = callable(tokenizer) or hasattr(tokenizer, "token_to_id")
        what = "one of transformers, `AutoTokenizer.from_pretrained(…)`, or a `tokenizers.Tokenizer`"
        check_value("tokenizer", "TokenizerBlock", tokenizer, fits, what)
        check_value(
            "max_len", "TokenizerBlock", max_len, max_len is None or is_whole(max_len), "a number of tokens, at least 1"
        )
        self.tokenizer = tokenizer if callable(tokenizer) or max_len is None else _truncating(tokenizer, max_len)
        known = getattr(tokenizer, "model_max_length", None)  # transformers' stand-in for 'no limit' is 1e30
        self.max_len = max_len or (known if known and known < 1_000_000 else None)
        self.pad_idx = _pad_idx(tokenizer)
        self.n_tokens = len(tokenizer) if callable(tokenizer) else tokenizer.get_vocab_size()

    def encodes(self, o):
        if not isinstance(o, str):
            raise HeadsError(f"a text is a str, found {o!r} ({type(o).__name__}); a missing one wants `PartialBlock`.")
        if callable(self.tokenizer):
            more = {} if self.max_len is None else {"truncation": True, "max_length": self.max_len}
            ids = self.tokenizer(o, **more)["input_ids"]
        else:
            ids = self.tokenizer.encode(o).ids
        if not ids:
            raise HeadsError(f"the text {o!r} has no token.")
        return _text(torch.tensor(ids, dtype=torch.int64))

    def decodes(self, o):
        return TitledStr(self.tokenizer.decode([i for i in o.tolist() if i != self.pad_idx], skip_special_tokens=True))


def _text(ids: Tensor) -> Tensor:
    "Make fastai's text of ids."
    from fastai.text.data import TensorText  # here, as importing it changes fastai's defaults

    return TensorText(ids)


def _truncating(tokenizer: Any, max_len: int) -> Any:
    "Copy a `tokenizers.Tokenizer`, so that it cuts texts before its last special token."
    new = type(tokenizer).from_str(tokenizer.to_str())
    new.enable_truncation(max_len)
    return new


def _pad_idx(tokenizer: Any) -> int:
    "Find the id of a tokenizer's padding."
    if callable(tokenizer):
        found = tokenizer.pad_token_id
    else:
        padding = getattr(tokenizer, "padding", None)
        found = padding["pad_id"] if padding else tokenizer.token_to_id("[PAD]")
    if found is None:
        raise HeadsError("`tokenizer` has no token for padding; set one: `tokenizer.pad_token = tokenizer.eos_token`.")
    return found


class PadTexts(ItemTransform):
    "Fill the texts of a batch up to the longest, at their ends."

    def __init__(
        self,
        pad_idx: int = 1,  # the id that they are filled up with
    ):
        super().__init__()
        self.pad_idx = pad_idx

    def encodes(self, samples: Sequence[tuple]):
        kind = text_class("TensorText")
        longest = max((len(o) for s in samples for o in s if isinstance(o, kind)), default=0)
        return [tuple(self._fill(o, longest) if isinstance(o, kind) else o for o in s) for s in samples]

    def decodes(self, sample):
        kind = text_class("TensorText")
        return tuple(o[o != self.pad_idx] if isinstance(o, kind) else o for o in sample)

    def _fill(self, ids: Tensor, length: int) -> Tensor:
        return _text(torch.cat([ids, ids.new_full((length - len(ids),), self.pad_idx)]))


def TokenizerBlock(
    tokenizer: Any,  # of transformers, or a `tokenizers.Tokenizer`
    max_len: int | None = None,  # tokens of a text at most; by default the tokenizer's own limit, if it has one
) -> TransformBlock:
    "Make an input block for a text that a network of transformers reads: `TextBody(model)`."
    read = ReadTokens(tokenizer, max_len)
    return TransformBlock(type_tfms=read, dl_type=InputsDL, dls_kwargs={"before_batch": PadTexts(read.pad_idx)})
