"""A network with several heads: a body, and behind it the heads with the trunks that they share."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastai.torch_core import get_model
from torch import Tensor, nn

from fastai_heads.bodies.contract import Body
from fastai_heads.errors import HeadsError, unknown
from fastai_heads.heads.pooled import JoinedHead, PooledHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.trunks import PREFIX, Trunk, Trunks, add_trunks, read_by

__all__ = ["TRAINING", "Heads", "MultiHeadModel", "body_and_heads", "build_model"]

TRAINING = ("strategy", "average")
"Modules beside the heads that training alone needs: what a strategy learns, and the average of `EMACallback`."


class MultiHeadModel(nn.Sequential):
    "A body and its heads, `MultiHeadModel(body, heads)`. `model[0]` is the body, `model[1]['digit']` one head."

    @property
    def body(self) -> nn.Module:
        "What gives the taps: `model[0]`."
        return self[0]

    @property
    def heads(self) -> nn.Module:
        "What makes predictions of the taps: `model[1]`."
        return self[1]

    def forward(self, *inputs: Tensor) -> Any:
        "Give the body all inputs, and what follows what was found."
        body, *others = self
        found = body(*inputs)
        for module in others:
            found = module(found)
        return found


class Heads(Trunks):
    """Every head of a network, by name, and the trunks before them: {tap: tensor} to one prediction per head, in order.

    Heads on one tap that pool it alike share one pooled vector, bit for bit what each would make by itself."""

    def __init__(
        self,
        heads: Mapping[str, nn.Module],  # name → module
        reads: Mapping[str, tuple[str, ...]],  # name → the taps (or trunks) that it takes, canonical names
        trunks: Mapping[str, nn.Module] | None = None,  # name → module, each after the trunks that it reads
        trunk_reads: Mapping[str, tuple[str, ...]] | None = None,  # trunk → the taps (or trunks) that it takes
        shapes: Mapping[str, TapShape] | None = None,  # of every tap and trunk, for heads that are added later
    ):
        super().__init__(trunks, trunk_reads, shapes)
        self.reads = dict(reads)
        self.heads = nn.ModuleDict({PREFIX + name: m for name, m in heads.items()})
        self.strategy: nn.Module | None = None  # what a strategy learns while training; no prediction needs it
        self.average: nn.Module | None = None  # the second weights of `EMACallback`
        self.register_load_state_dict_pre_hook(_without_training)

    @property
    def names(self) -> tuple[str, ...]:
        "The heads' names, in the order of the predictions."
        return tuple(self.reads)

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.reads:
            raise unknown("head", name, self.names)
        return self.heads[PREFIX + name]

    def __len__(self) -> int:
        return len(self.reads)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reads)

    def add(
        self,
        name: str,  # of the new head, the last in the order
        module: nn.Module,  # its layers
        reads: tuple[str, ...],  # the taps or trunks that it takes, canonical names
    ) -> None:
        "Add one head; the others stay as they are."
        self.heads[PREFIX + name], self.reads[name] = module, reads

    def only(
        self,
        *names: str,  # of heads
    ) -> "Heads":
        "Give those heads alone, over the same modules, with the trunks that they need."
        heads, reads = {name: self[name] for name in names}, {name: self.reads[name] for name in names}
        trunks = {name: self.trunk(name) for name in self.trunk_reads}
        found = Heads(heads, reads, trunks, self.trunk_reads, self.shapes)
        found.trunk_gives = dict(self.trunk_gives)
        found.drop_unread()
        return found

    def drop(
        self,
        name: str,  # of the head
    ) -> None:
        "Take one head off; the others stay as they are."
        del self.heads[PREFIX + name], self.reads[name]

    def drop_unread(self) -> None:
        "Take off the trunks that no head reads, be it through another trunk."
        for name in reversed(tuple(self.trunk_reads)):
            read = {tap for reads in (*self.reads.values(), *self.trunk_reads.values()) for tap in reads}
            if read.isdisjoint(self.trunk_gives[name]):
                for shape in self.trunk_gives.pop(name):
                    del self.shapes[shape]
                del self.trunks[PREFIX + name], self.trunk_reads[name]

    def forward(
        self,
        taps: dict[str, Tensor],  # what the body gives
    ) -> tuple[Tensor, ...]:  # one prediction per head, in order
        tensors = self.run_trunks(taps) if self.trunk_reads else taps
        pooled = {key: x for key, x in taps.items() if isinstance(key, tuple)}  # none, unless they were stored
        return tuple(self._predict(self[name], reads, tensors, pooled) for name, reads in self.reads.items())

    @staticmethod
    def _predict(
        head: nn.Module,
        reads: tuple[str, ...],
        tensors: dict[str, Tensor],
        pooled: dict[tuple[str, str | None], Tensor],
    ) -> Tensor:
        if not isinstance(head, PooledHead | JoinedHead):
            return head(*(tensors[tap] for tap in reads))
        keys = [(tap, name) for tap, (name, _) in zip(reads, head.pools)]
        for key, (_, pool) in zip(keys, head.pools):
            if key not in pooled:
                pooled[key] = pool(tensors[key[0]])
        return head(*(pooled[key] for key in keys))

    def pools(self) -> dict[str, dict[str, nn.Module]]:  # tap → pool by name
        "List the taps that are read through pools alone: what is stored of those is pooled."
        found: dict[str, dict[str, nn.Module]] = {}
        whole = {tap for reads in self.trunk_reads.values() for tap in reads}
        for head, reads in zip(self.heads.values(), self.reads.values()):
            for tap, (name, pool) in zip(reads, getattr(head, "pools", [(None, None)] * len(reads))):
                found.setdefault(tap, {})[name] = pool
        return {tap: pools for tap, pools in found.items() if None not in pools and tap not in whole}


def _without_training(heads: Heads, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    """Let weights of another strategy, or of none, load: what the strategy of this network learns starts where it is.
    An average that is not in the file starts anew, as it is none of these weights."""
    for part in TRAINING:
        module, start = getattr(heads, part, None), f"{prefix}{part}."
        ours = {} if module is None else module.state_dict(prefix=start)
        theirs = {key: value for key, value in state.items() if key.startswith(start)}
        if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
            for key in theirs:
                del state[key]
            state.update(ours)
            if part == "average" and module is not None:
                module.restart()


def body_and_heads(
    model: nn.Module,  # a `MultiHeadModel`, perhaps wrapped
) -> list[list[nn.Parameter]]:  # the body's groups, early layers first, and one group for trunks and heads
    "List the parameter groups that a user sees: what `slice`, `freeze_to` and the recorded rate count."
    body, heads = get_model(model)
    return [*body.groups(), list(heads.parameters())]


def build_model(
    body: Body,  # with every tap that the specs and trunks read
    specs: Mapping[str, HeadSpec],  # name → fitted spec, in the order of the predictions
    trunks: Mapping[str, Trunk] | None = None,  # name → trunk, each after the trunks that it reads
    sample: tuple[Tensor, ...] = (),  # inputs of the body, on which the trunks' outputs are measured
) -> MultiHeadModel:
    "Build the network: the body, the trunks measured on a sample, and a head for every spec."
    shapes = {tap: TapShape.of(body.point(tap)) for tap in body.taps}
    heads = Heads({}, {}, shapes=shapes)
    add_trunks(body, trunks or {}, heads, sample)
    for name, spec in specs.items():
        reads = read_by(spec, body, heads)
        try:
            heads.add(name, spec.build(tuple(heads.shapes[tap] for tap in reads)), reads)
        except HeadsError as error:
            raise error.within(f"`heads[{name!r}]`") from error.__cause__
    return MultiHeadModel(body, heads)
