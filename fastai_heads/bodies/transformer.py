"""The body of a text that is an encoder of transformers: its hidden states as taps."""

import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fastai_heads.archs.records import FEATURES, Level, TapPoint, describe
from fastai_heads.bodies.contract import split_in_two
from fastai_heads.bodies.words import TOKENS, WordsBody, left_aligned
from fastai_heads.data.inputs import TextInput
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.modes import evaluate

__all__ = ["TransformerBody"]


class TransformerBody(WordsBody):
    """A network of transformers without its heads. `layer0` is the embeddings, `layer1` and so on the hidden states,
    `features` the last of them after its norm, each pooled over the tokens; `tokens` is not pooled."""

    def __init__(
        self,
        model: nn.Module,  # of transformers; left as it is
        source: TextInput,  # the text
        pool: str,  # 'mean' or 'first'
        pretrained: bool | None,  # None: where it was loaded by `from_pretrained`
        taps: Iterable[str | int | Level],  # names
    ):
        super().__init__()
        base = _encoder(model)
        self.arch, self.zoo, self.source, self.pool = type(base).__name__, "transformers", source, pool
        loaded = bool(model.name_or_path) if pretrained is None else pretrained
        self.weights = (model.name_or_path or "given") if loaded else ""
        self.points = self.all_points(model)
        self.use_taps(taps)
        n_known = base.config.vocab_size
        if source.n_tokens > n_known:
            raise HeadsError(
                f"input {source.name!r} has {source.n_tokens} tokens, and {self.arch} knows {n_known}: "
                "give the TokenizerBlock the network's own tokenizer."
            )
        self.net = deepcopy(base)
        taken = [describe(k, m) for k, m in model.named_children() if m is not base] if model is not base else []
        self.removed = (*self._prune(), *taken)
        # a buffer: a trial of a few items, which keeps warnings away, puts buffers back
        self.register_buffer("said_cut", torch.tensor(False), persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        "Leave out the hooks that transformers puts on its layers: they cannot be pickled, and it puts them on again."
        modules = {**self._modules, "net": _without_hooks(self.net)}
        return {**super().__getstate__(), "_modules": modules}

    @staticmethod
    def all_points(
        model: nn.Module,  # of transformers
    ) -> tuple[TapPoint, ...]:
        "List every tap: the embeddings, the layers, the sequence, the text's vector."
        config = _encoder(model).config
        width, n_layers = config.hidden_size, config.num_hidden_layers
        layers = tuple(TapPoint(f"layer{i}", f"hidden_states[{i}]", width) for i in range(n_layers + 1))
        return (
            *layers,
            TapPoint(TOKENS, "last_hidden_state", width, sequence=True),
            TapPoint(FEATURES, "last_hidden_state", width),
        )

    @property
    def limit(self) -> int | None:
        "How many tokens the network has positions for; None for any number."
        most = getattr(self.net.config, "max_position_embeddings", None)
        names = (m for k, m in self.net.named_modules() if k.endswith("position_embeddings"))
        # networks of RoBERTa's kind count positions from the padding's id on
        before = next((m.padding_idx + 1 for m in names if getattr(m, "padding_idx", None) is not None), 0)
        return most and most - before

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        "Give the vectors (B, C) or the sequence (B, L, C) at the taps; `ids` is (B, L), padded at either side."
        ids, lengths = left_aligned(ids, self.source.pad_idx)
        limit = self.limit
        if limit and ids.shape[1] > limit:
            self._say_cut(ids.shape[1], limit)
            ids, lengths = ids[:, :limit], lengths.clamp(max=limit)
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        out = self.net(input_ids=ids, attention_mask=inside.long(), output_hidden_states=True, return_dict=True)
        last = out.last_hidden_state.masked_fill(~inside[..., None], 0)
        found = {TOKENS: last}
        for tap in self.taps:
            if tap != TOKENS:
                states = last if tap == FEATURES else out.hidden_states[int(tap.removeprefix("layer"))]
                found[tap] = self._pooled(states, inside)
        return self.through_taps(found)

    def _pooled(self, states: Tensor, inside: Tensor) -> Tensor:
        if self.pool == "first":
            return states[:, 0]
        return states.masked_fill(~inside[..., None], 0).sum(1) / inside.sum(1, keepdim=True).clamp(min=1)

    def _say_cut(self, length: int, limit: int) -> None:
        "Say once that texts are cut."
        if not self.said_cut:
            self.said_cut.fill_(True)
            warnings.warn(
                f"input {self.source.name!r}: {self.arch} reads {limit} tokens at most, and a text has {length}: "
                f"longer ones are cut at their ends. `TokenizerBlock(…, max_len={limit})` cuts before the last "
                "special token.",
                HeadsWarning,
                stacklevel=2,
            )

    def _prune(self) -> list[Any]:
        "Take off what no tap needs: what pools the text in the network's own way, and layers after the last in use."
        removed = []
        if getattr(self.net, "pooler", None) is not None:
            removed.append(describe("pooler", self.net.pooler))
            self.net.pooler = None
        n_layers = self.net.config.num_hidden_layers
        depth = max(int(t.removeprefix("layer")) if t.startswith("layer") else n_layers for t in self.taps)
        stacks = [(k, m) for k, m in self.net.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
        kept = max(depth, 1)  # without a layer no hidden state is told
        if kept == n_layers or len(stacks) != 1:
            return removed
        (path, stack), before = stacks[0], self._states(depth)
        parent, _, name = path.rpartition(".")
        owner = self.net.get_submodule(parent)
        after = [k for k, m in owner.named_children() if any(True for _ in m.parameters())]
        # a norm that follows the last layer does not stand after an inner one
        taken = {name: stack[:kept]} | {k: nn.Identity() for k in after[after.index(name) + 1 :]}
        old = {k: getattr(owner, k) for k in taken}
        for k, m in taken.items():
            setattr(owner, k, m)
        if not torch.equal(before, self._states(depth)):
            for k, m in old.items():
                setattr(owner, k, m)
            return removed
        removed += [describe(f"{path}.{i}", stack[i]) for i in range(kept, n_layers)]
        return [*removed, *(describe(f"{parent}.{k}".strip("."), m) for k, m in old.items() if k != name)]

    def _states(self, depth: int) -> Tensor:
        "Give the hidden states at a depth of a text that stands for all, in evaluation mode."
        ids = torch.tensor([[i for i in range(5) if i != self.source.pad_idx]], device=self.net.device)
        with evaluate(self.net):
            return self.net(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states[depth]

    @property
    def n_tokens(self) -> int:
        "How many ids the network knows."
        return self.net.config.vocab_size

    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups: the first half of the modules that have any, then the rest."
        leaves = [m for m in self.net.modules() if next(m.children(), None) is None]
        owners = [m for m in self.net.modules() if m._parameters and m not in leaves]
        return split_in_two([*owners, *leaves] if owners else leaves)


def _without_hooks(net: nn.Module) -> nn.Module:
    "Copy a network without transformers' own hooks. The copy has the same tensors."
    new = deepcopy(net, {id(t): t for t in (*net.parameters(), *net.buffers())})
    for module in new.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").startswith("transformers."):
                del module._forward_hooks[key]
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return new


def _encoder(model: nn.Module) -> nn.Module:
    "Find the network that reads the text: without heads, and of an encoder with a decoder the encoder."
    base = model.base_model
    return base.get_encoder() if base.config.is_encoder_decoder and hasattr(base, "get_encoder") else base
