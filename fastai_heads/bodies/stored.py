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
    _views: dict[str, Body] = field(default_factory=dict)

    def store(self, *inputs: Any) -> dict[Key, Tensor]:  # (B, …) each
        "Run the frozen bodies on a batch, and give what has to be kept of it."
        kept: dict[Key, Tensor] = {}
        for tap, found in self._restricted("still", self.taps)(*inputs).items():
            pools = self.pools.get(tap)
            kept |= {tap: found} if pools is None else {(tap, name): pool(found) for name, pool in pools.items()}
        if isinstance(self.body, Bodies):
            for name in self._partial():
                kept[f"here.{name}"] = ~self.body[name].absent(*self.body._part(name, inputs))
            for place in self._live_inputs():
                part = inputs[place] if isinstance(inputs[place], tuple) else (inputs[place],)
                kept |= {f"input.{place}.{i}": x.as_subclass(Tensor) for i, x in enumerate(part)}
        return kept

    def give(
        self,
        kept: Mapping[Key, Tensor],  # of a batch, from `store`
    ) -> dict[Key, Tensor]:  # what `Heads` takes
        "Make the taps of a batch again, in the body's order."
        found = {key: x for key, x in kept.items() if isinstance(key, tuple)}
        whole = {tap: kept[tap] for tap in self.taps if tap in kept}
        for tap in whole:
            name = tap.partition(".")[0]
            if f"here.{name}" in kept:
                here = kept[f"here.{name}"]
                whole[tap] = self.body._fill(tap, whole[tap][here], here, slice(None))
            whole[tap] = self.body.tap_modules[tap_key(tap)](whole[tap])
        live = tuple(tap for tap in self.body.taps if tap not in self.taps)
        if live:
            whole |= self._restricted("live", live)(*self._inputs(kept))
        return {**found, **{tap: whole[tap] for tap in self.body.taps if tap in whole}}

    def _restricted(self, name: str, taps: tuple[str, ...]) -> Body:
        if name not in self._views:
            self._views[name] = self.body if taps == self.body.taps else self.body.restrict(taps)
        return self._views[name]

    def _partial(self) -> list[str]:
        "List the frozen bodies whose input may be missing."
        names = dict.fromkeys(tap.partition(".")[0] for tap in self.taps)
        return [name for name in names if self.body._source(name).partial]

    def _live_inputs(self) -> list[int]:
        "Find the places of the inputs that bodies in training read."
        live = {tap.partition(".")[0] for tap in self.body.taps if tap not in self.taps}
        return [i for i, s in enumerate(self.body.sources) if any(self.body.reads[n] == s.name for n in live)]

    def _inputs(self, kept: Mapping[Key, Tensor]) -> list[Any]:
        "Make the inputs of the bodies in training again; the others have none."
        inputs: list[Any] = [None] * len(self.body.sources)
        for place in self._live_inputs():
            parts = [x for key, x in kept.items() if str(key).startswith(f"input.{place}.")]
            inputs[place] = parts[0] if len(parts) == 1 else tuple(parts)
        return inputs
