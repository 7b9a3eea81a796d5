"""What of a batch is stored in place of a body's run, and how its taps are had again from that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastai_heads.bodies.contract import Body, tap_key
from fastai_heads.bodies.several import Bodies

__all__ = ["StoredBody", "held_taps"]

Key = str | tuple[str, str]
"A tap's name; (tap, pool) for a pooled vector; 'here.photo', 'input.row.0' for what several bodies need besides."


def held_taps(
    body: Body,  # frozen
) -> tuple[str, ...]:
    "List the taps that no parameter in training can change: those of bodies that `freeze` holds whole."
    held = set(body.held())
    if not isinstance(body, Bodies):
        return body.taps if held.issuperset(body.parameters()) else ()
    still = {name for name in body.names if held.issuperset(body[name].parameters())}
    return tuple(tap for tap in body.taps if tap.partition(".")[0] in still)


@dataclass
class StoredBody:
    """A body whose frozen taps are stored: `store` makes of inputs what is kept, and `give` makes the taps of that.

    The bodies that train are run again, on their stored inputs. What stands for a missing input is put in anew, as
    it trains."""

    body: Body
    taps: tuple[str, ...]  # those that are stored
    pools: Mapping[str, Mapping[str, nn.Module]]  # tap → pool by name, where nothing else of the tap is read
    still: Body = field(init=False)  # the body, computing the stored taps alone
    live: Body | None = field(init=False)  # the body, computing the others alone; None: there is none

    def __post_init__(self) -> None:
        live = tuple(tap for tap in self.body.taps if tap not in self.taps)
        self.still = self.body.restrict(self.taps) if live else self.body
        self.live = self.body.restrict(live) if live else None

    @classmethod
    def of(
        cls,
        body: Body,
        pools: Mapping[str, Mapping[str, nn.Module]],  # tap → pool by name, of taps that are read through pools alone
    ) -> "StoredBody":
        "Tell what of a body is stored. A pooled vector is kept only where no input may be missing."
        taps = held_taps(body)
        filled = {t for t in taps if isinstance(body, Bodies) and body._source(t.partition(".")[0]).partial}
        return cls(body, taps, {tap: pools[tap] for tap in taps if tap in pools and tap not in filled})

    def networks(self) -> list[Body]:
        "List the bodies behind the stored taps: they do not train."
        return [self.body[name] for name in self._still()] if isinstance(self.body, Bodies) else [self.body]

    def store(self, *inputs: Any) -> dict[Key, Tensor]:  # (B, …) each
        "Run the frozen bodies on a batch, and give what has to be kept of it."
        kept: dict[Key, Tensor] = {}
        for tap, found in self.still(*inputs).items():
            pools = self.pools.get(tap)
            kept |= {tap: found} if pools is None else {(tap, name): pool(found) for name, pool in pools.items()}
        if isinstance(self.body, Bodies):
            for name in self._partial():
                kept[f"here.{name}"] = ~self.body[name].absent(*self.body._part(name, inputs))
            for place in self._live_inputs():
                part = inputs[place] if isinstance(inputs[place], tuple) else (inputs[place],)
                kept |= {f"input.{place}.{i}": x for i, x in enumerate(part)}
        return kept

    def give(
        self,
        kept: Mapping[Key, Tensor],  # of a batch, from `store`
    ) -> dict[Key, Tensor]:  # what `Heads` takes
        "Make the taps of a batch again, in the body's order."
        whole = {tap: kept[tap] for tap in self.taps if tap in kept}
        for tap in whole:
            here = kept.get(f"here.{tap.partition('.')[0]}")
            if here is not None:
                whole[tap] = self.body._fill(tap, whole[tap][here], here, slice(None))
            whole[tap] = self.body.tap_modules[tap_key(tap)](whole[tap])
        if self.live is not None:
            whole |= self.live(*self._inputs(kept))
        pooled = {key: x for key, x in kept.items() if isinstance(key, tuple)}
        return {**pooled, **{tap: whole[tap] for tap in self.body.taps if tap in whole}}

    def _still(self) -> list[str]:
        "List the bodies whose taps are stored."
        return list(dict.fromkeys(tap.partition(".")[0] for tap in self.taps))

    def _partial(self) -> list[str]:
        "List those among them whose input may be missing."
        return [name for name in self._still() if self.body._source(name).partial]

    def _live_inputs(self) -> list[int]:
        "Find the places of the inputs that bodies in training read."
        live = {tap.partition(".")[0] for tap in (self.live.taps if self.live is not None else ())}
        return [i for i, s in enumerate(self.body.sources) if any(self.body.reads[n] == s.name for n in live)]

    def _inputs(self, kept: Mapping[Key, Tensor]) -> list[Any]:
        "Make the inputs of the bodies in training again; the others have none."
        inputs: list[Any] = [None] * len(self.body.sources)
        for place in self._live_inputs():
            parts = [x for key, x in kept.items() if str(key).startswith(f"input.{place}.")]
            inputs[place] = parts[0] if len(parts) == 1 else tuple(parts)
        return inputs
