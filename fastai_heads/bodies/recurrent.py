"""The body of a text: fastai's AWD-LSTM, pooled as its text classifier does, the same at any padding."""

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from fastai.text.learner import clean_raw_keys, match_embeds
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from torch import Tensor, nn

from fastai_heads.archs.records import FEATURES, Level, TapPoint
from fastai_heads.bodies.contract import split_in_two
from fastai_heads.bodies.words import TOKENS, WordsBody, left_aligned
from fastai_heads.data.inputs import TextInput
from fastai_heads.errors import MISFITS, HeadsError

__all__ = ["RecurrentBody"]


class RecurrentBody(WordsBody):
    """fastai's AWD_LSTM as its text classifier reads and pools it: [last, maximum, mean] of the hidden states.

    fastai lets padding in: it reads what stands before a text within a part, and takes the last state from the padding
    before a text of a batch that is not a whole number of parts long. Here each text is moved to the start of its row,
    and read to its own end, the longest first."""

    def __init__(
        self,
        spec: Any,  # what the user asked for
        source: TextInput,  # the text
        taps: Iterable[str | int | Level],  # names
    ):
        super().__init__()
        self.arch, self.zoo, self.spec, self.source = "AWD_LSTM", "fastai", spec, source
        self.seq_len, self.max_len = spec.seq_len, spec.max_len
        config = _full_config(spec)
        self.points = self.all_points(spec)
        self.net = AWD_LSTM(source.n_tokens, **{**config, "pad_token": source.pad_idx})
        if spec.weights is not None:
            self.weights = Path(spec.weights).name
            _load_encoder(self.net, spec, source)
        self._forget()
        self.use_taps(taps)

    @staticmethod
    def all_points(
        spec: Any,  # the user's `TextBody`
    ) -> tuple[TapPoint, ...]:
        "List every tap: the sequence, and the text's vector."
        width = _full_config(spec)["emb_sz"]
        return TapPoint(TOKENS, "rnns", width, sequence=True), TapPoint(FEATURES, "rnns", 3 * width)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        "Give the vectors (B, C) or the sequence (B, L, C) at the taps; `ids` is (B, L), padded at either side."
        ids, lengths = left_aligned(ids, self.source.pad_idx)
        states, first = self._read(ids, lengths)
        at = torch.arange(first, first + states.shape[1], device=ids.device)
        # as fastai's: parts of the text before the last `max_len` tokens are read and not pooled
        starts = -(-(lengths - self.max_len).clamp(min=0) // self.seq_len) * self.seq_len
        inside = ((at >= starts[:, None]) & (at < lengths[:, None]))[..., None]
        states = states.masked_fill(~inside, 0)
        last = states[torch.arange(len(ids), device=ids.device), (lengths - 1 - first).clamp(min=0)]
        most = states.masked_fill(~inside, -torch.inf).max(1)[0].masked_fill(lengths[:, None] == 0, 0)
        mean = states.sum(1) / inside.sum(1).clamp(min=1)
        return self.through_taps({TOKENS: states, FEATURES: torch.cat([last, most, mean], 1)})

    def _read(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
        "Give the hidden states (B, L', C) from the first part on that is pooled, and the place where that part begins."
        order = lengths.argsort(descending=True, stable=True)
        ids, ends = ids[order], lengths[order].tolist()
        first = min((-(-max(n - self.max_len, 0) // self.seq_len) * self.seq_len for n in ends), default=0)
        self.net.reset()
        parts = []
        for i in range(0, max(ids.shape[1], 1), self.seq_len):
            going = max(sum(n > i for n in ends), 1)  # one at least, so that every parameter is reached
            states = self.net(ids[:going, i : i + self.seq_len])
            if i >= first:
                parts.append(torch.cat([states, states.new_zeros(len(ids) - going, *states.shape[1:])]))
        self._forget()
        return torch.cat(parts, 1)[order.argsort()], first

    def _forget(self) -> None:
        "Take the graph off the weights that dropout made, with which a network can be neither copied nor kept small."
        for rnn in self.net.rnns:
            for name in rnn.layer_names:
                made = getattr(rnn.module, name).detach()
                rnn.module._parameters.pop(name, None)  # without dropout it is the weight itself, under a second name
                setattr(rnn.module, name, made)

    @property
    def n_tokens(self) -> int:
        "How many ids the network knows."
        return self.net.encoder.num_embeddings

    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups: the embedding and the first layer, then the other layers."
        return split_in_two([self.net.encoder, *self.net.rnns], 2 if len(self.net.rnns) > 1 else 1)


def _load_encoder(net: AWD_LSTM, spec: Any, source: TextInput) -> None:
    "Load what `save_encoder` wrote; with its own vocabulary the embedding is taken token by token."
    path = Path(spec.weights)
    path = path if path.suffix else path.with_suffix(".pth")
    if not path.is_file():
        raise HeadsError(f"`weights` of TextBody: there is no file {path}; it is what `save_encoder` writes.")
    try:
        state = clean_raw_keys(torch.load(path, map_location="cpu", weights_only=True))
    except (UnpicklingError, EOFError, OSError, *MISFITS) as error:
        raise HeadsError(f"`weights` of TextBody: {path} holds no weights: {type(error).__name__}.") from error
    if "encoder.weight" not in state:
        raise HeadsError(f"`weights` of TextBody: {path} is not what `save_encoder` writes; it has {list(state)[:3]}.")
    if spec.vocab is not None:
        state = {f"0.{k}": v for k, v in state.items()}
        state = match_embeds(state, list(spec.vocab), list(source.vocab))
        state = {k[2:]: v for k, v in state.items() if k.startswith("0.")}
    wanted, found = net.state_dict(), {k: tuple(v.shape) for k, v in state.items()}
    if len(state["encoder.weight"]) != source.n_tokens:
        raise HeadsError(
            f"`weights` of TextBody: {path} knows {len(state['encoder.weight'])} tokens, and the data has "
            f"{source.n_tokens}: pass `vocab=`, the language model's `dls.vocab`, to TextBody, or to the TextBlock."
        )
    wrong = [k for k in wanted if found.get(k) != tuple(wanted[k].shape)]
    if wrong:
        raise HeadsError(
            f"`weights` of TextBody: {wrong[0]} is {found.get(wrong[0])} in {path} and {tuple(wanted[wrong[0]].shape)} "
            "here; pass the language model's `config=`."
        )
    net.load_state_dict(state)


def _full_config(spec: Any) -> dict[str, Any]:
    "Complete the configuration of AWD_LSTM: fastai's for classifiers, dropouts multiplied, without the heads' own."
    config = {**awd_lstm_clas_config, **(spec.config or {})}
    config = {k: v * spec.drop_mult if k.endswith("_p") else v for k, v in config.items()}
    return {k: v for k, v in config.items() if k not in ("output_p", "init")}
