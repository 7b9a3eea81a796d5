"""What a user says of the body of a text."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastai_heads.bodies.contract import BodySpec, Found
from fastai_heads.bodies.transformer import TransformerBody
from fastai_heads.data.inputs import Input, TextInput
from fastai_heads.errors import HeadsError
from fastai_heads.values import check_value, is_number, is_whole

__all__ = ["TextBody"]


@dataclass(frozen=True)
class TextBody(BodySpec):
    """The body of a text: `TextBody(AWD_LSTM, weights='encoder')` for fastai's `TextBlock`, `TextBody(model)` of an
    encoder of transformers for a `TokenizerBlock`.

    Taps: `features`, the vector of a whole text; `tokens`, a vector for each token (B, L, C), zero after its end; of
    transformers also `layer0`, the embeddings, `layer1` and so on, pooled as `features` is."""

    arch: Any  # fastai's `AWD_LSTM`, or a network of transformers
    pool: str = "mean"  # of transformers: 'mean' over the tokens, or the 'first' of them
    pretrained: bool | None = None  # of transformers: `freeze` holds it; None: where it was loaded by `from_pretrained`
    weights: str | Path | None = None  # of AWD_LSTM: the file of `save_encoder`
    vocab: Sequence[str] | None = None  # of those weights, where it is not that of the data
    config: Mapping[str, Any] | None = None  # of AWD_LSTM, beside fastai's for classifiers: `emb_sz`, `n_hid`, …
    drop_mult: float = 1.0  # of AWD_LSTM: multiplies its dropouts
    seq_len: int = 72  # of AWD_LSTM: tokens that gradients go back through
    max_len: int = 72 * 20  # of AWD_LSTM: tokens at a text's end that are pooled, at most

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "first"):
            raise HeadsError(f"`pool` of TextBody is 'mean' or 'first', found {self.pool!r}.")
        if not self.is_awd_lstm and not hasattr(self.arch, "base_model"):
            raise HeadsError(
                f"`arch` of TextBody is fastai's AWD_LSTM or a network of transformers (`pip install "
                f"fastai_heads[text]`), found {self.arch!r}."
            )
        own = ("weights", "config") if not self.is_awd_lstm else ()
        for name in own:
            if getattr(self, name) is not None:
                raise HeadsError(f"`{name}` of TextBody is of AWD_LSTM, and `arch` is a {type(self.arch).__name__}.")
        for name, fits, expected in (
            ("pretrained", self.pretrained is None or isinstance(self.pretrained, bool), "True, False or None"),
            ("config", self.config is None or isinstance(self.config, Mapping), "a dict of options of AWD_LSTM"),
            ("drop_mult", is_number(self.drop_mult, least=0), "a number of at least 0"),
            ("seq_len", is_whole(self.seq_len), "a number of tokens, at least 1"),
            ("max_len", is_whole(self.max_len), "a number of tokens, at least 1"),
        ):
            check_value(name, "TextBody", getattr(self, name), fits, expected)
        if (self.config or {}).get("bidir"):
            raise HeadsError("`config` of TextBody: AWD_LSTM reads a text forwards, in parts; leave `bidir` out.")
        if self.vocab is not None and self.weights is None:
            raise HeadsError("`vocab` of TextBody is that of its `weights`, which are not given.")

    def find(
        self,
        source: Input,  # described
    ) -> Found:
        "Tell which taps there are for the text, and how the body is built. Refuses what is no text."
        if not isinstance(source, TextInput):
            raise HeadsError(f"`arch`: TextBody reads a text, and input {source.name!r} is {source.a}.")
        if not self.is_awd_lstm:
            body = partial(TransformerBody, self.arch, source, self.pool, self.pretrained)
            return Found(TransformerBody.all_points(self.arch), body)
        from fastai_heads.bodies.recurrent import RecurrentBody  # here, as importing it changes fastai's defaults

        return Found(RecurrentBody.all_points(self), partial(RecurrentBody, self, source))

    @property
    def is_awd_lstm(self) -> bool:
        "Whether it is fastai's AWD_LSTM; nobody has that without having imported it."
        return self.arch is not None and self.arch is getattr(
            sys.modules.get("fastai.text.models.awdlstm"), "AWD_LSTM", None
        )
