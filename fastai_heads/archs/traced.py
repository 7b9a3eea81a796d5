"""Cutting a network that no row knows: run once, its taps found by the values that pass, and proved on the spot.

What is proved: with the value that stood at a tap in the run of one batch put in its place in the run of another, the
network gives what it gave for the first, bit for bit. So all of its output passes through the tap; nothing is lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from fastai_heads.archs.exchange import Exchange, exchanging
from fastai_heads.archs.hooks import HooksCut
from fastai_heads.archs.listening import Event, Seen, run_once
from fastai_heads.archs.places import Place, leaves
from fastai_heads.archs.records import FEATURES, PRE_LOGITS
from fastai_heads.archs.timm_zoo import feature_names

__all__ = ["trace"]

TRIED = 24
"Places, at most, that are tried for the last map, and for the vector, from the output on."


def trace(
    net: nn.Module,
    n_in: int,  # channels of the image
    name: str,  # for messages
) -> tuple[HooksCut, int]:  # how to cut it, and a side of the image that it takes
    "Run the network once, find its taps, and prove them; what is not proved is not claimed."
    seen = run_once(net, n_in, name)
    found = _maps_given(net, seen) or _search(net, seen)
    places = dict(found.outputs) or {e.place.path: e.place for e in _levels(seen, found.features)}
    if found.features:
        places[FEATURES] = found.features.place
    if found.vector:
        places[PRE_LOGITS] = found.vector
    by_hand = {**_by_hand(seen), **places}
    why = found.why and f"the cut of {name} could not be proved: {found.why}. {_proposal(seen, found)}"
    no_vector = "" if found.vector else found.no_vector or why
    no_features = "" if found.features else why
    return HooksCut(places, by_hand, found.classifier, no_vector, no_features), seen.side


@dataclass
class _Found:
    "What the search came to."

    features: Event | None = None
    vector: Place | None = None
    classifier: tuple[str, ...] = ()
    outputs: Mapping[str, Place] = None  # taps that are outputs, by name
    no_vector: str = ""  # why there is no vector, where there need not be one
    why: str = ""  # what was not proved

    def __post_init__(self) -> None:
        self.outputs = self.outputs or {}


def _maps_given(net: nn.Module, seen: Seen) -> _Found | None:
    "Take the maps that a network gives for its taps, as of timm's `features_only` and a detector's backbone."
    given = [(item, x, seen.sight(x)) for item, x in leaves(seen.out)]
    several = len(given) > 1 or feature_names(net)
    if not several or not all(is_map and x.ndim == 4 for _, x, (is_map, _) in given):
        return None
    names = feature_names(net) or [".".join(map(str, item)) for item, _, _ in given]
    outputs, ends, made = {}, [], []
    for tap, (item, x, (_, view)) in zip(names, given, strict=True):
        maker = seen.maker(x)
        outputs[tap] = maker.place if maker else Place("", item=item, view=view)
        ends.append(Event(len(seen.events), outputs[tap], x, None, None))
        made += [maker] if maker else []
    return _Found((made or ends)[-1], outputs=outputs, no_vector="it gives maps and has no classifier")


def _search(net: nn.Module, seen: Seen) -> _Found:
    "Find the last map and the last vector through which all of the output passes."
    with exchanging(net, seen) as exchange:
        if not exchange.varies:
            return _Found(why="what it gives does not depend on the image")
        readers = _vector(exchange, seen)
        maps = [e for e in seen.distinct_maps() if not readers or e.time <= readers[0].time]
        features = _proved(exchange, maps)
        conv = _map_classifier(net, seen, features) if features and not readers else None
        inner = _proved(exchange, [e for e in maps if e.time <= conv.time]) if conv else None
    if inner:
        return _Found(inner, classifier=(conv.place.path,), no_vector=f"{conv.place.path} reads maps")
    if features and (after := _sequence_after(seen, features)):
        return _found(seen, None, readers, f"{after} reads a sequence that is made of its last map")
    return _found(seen, features, readers, "" if features else "its output passes through no single map")


def _proved(exchange: Exchange, maps: list[Event]) -> Event | None:
    exchange.hold(e.place for e in maps[:TRIED])
    return next((e for e in maps[:TRIED] if not exchange.resized(e) and exchange.proves(e.place)), None)


def _found(seen: Seen, features: Event | None, readers: list[Event], why: str) -> _Found:
    if readers:
        return _Found(features, readers[0].place, tuple(e.place.path for e in readers), why=why)
    outs = [(item, x) for item, x in leaves(seen.out)]
    if features and len(outs) == 1 and outs[0][1].ndim == 2:
        return _Found(features, Place("", item=outs[0][0]), why=why)
    a_map = len(outs) == 1 and seen.sight(outs[0][1])[0]
    no_vector = "it gives a map and has no classifier" if a_map else "no layer reads all of its output as one vector"
    return _Found(features, no_vector=no_vector, why=why)


def _vector(exchange: Exchange, seen: Seen) -> list[Event]:
    "Find the layers with weights that read the last vector through which all of the output passes."
    readers = [e for e in seen.events if e.place.before and e.value.ndim == 2 and e.weighted]
    exchange.hold(e.place for e in readers)
    tried: list[Place] = []
    for last in reversed(readers):
        if last.place in tried or len(tried) > TRIED:
            continue
        same = [e for e in readers if exchange.equal(e.place, last.place)]
        tried += [e.place for e in same]
        if exchange.proves(*(e.place for e in same)):
            return same
    return []


def _map_classifier(net: nn.Module, seen: Seen, features: Event) -> Event | None:
    "Find a convolution of single cells that gives a map for each class, which is only averaged after."
    out = [x for _, x in leaves(seen.out)]
    trained = [e for e in seen.events if e.place.before and e.trained and e.time < features.time]
    if not trained or len(out) != 1 or out[0].ndim != 2:
        return None
    conv = net.get_submodule(trained[-1].place.path)
    single = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1)
    return trained[-1] if single and conv.out_channels == out[0].shape[1] == features.value.shape[1] else None


def _sequence_after(seen: Seen, features: Event) -> str:
    "Find a layer that reads a sequence after the last map, '' if none does: a ViT's patches are no last map."
    if features.value.ndim != 4:
        return ""
    after = (e for e in seen.events if e.time > features.time and e.place.before and e.weighted and e.value.ndim == 3)
    return next((e.place.path for e in after), "")


def _levels(seen: Seen, features: Event | None) -> list[Event]:
    "Find the last module at each resolution, up to the last map."
    last = features.time if features else len(seen.events)
    maps = [e for e in seen.named_maps() if e.time <= last]
    ends = [e for e, then in pairwise(maps) if seen.shape(e)[-2:] != seen.shape(then)[-2:]]
    return [*ends, *maps[-1:]]


def _by_hand(seen: Seen) -> dict[str, Place]:
    "List every module whose output a head can read; of one that runs several times each call."
    found = {}
    for e in seen.events:
        is_map, view = seen.sight(e.value)
        if e.place.before or not (is_map or e.value.ndim in (2, 4)):
            continue
        name = e.place.path if seen.calls[e.place.path] == 1 else f"{e.place.path}#{e.place.call}"
        found[name] = Place(e.place.path, e.place.call, item=e.place.item, view=view)
    return found


def _proposal(seen: Seen, found: _Found) -> str:
    "Propose the likeliest tap, in a call that works."
    hand = _by_hand(seen)
    maps = [e for e in seen.named_maps() if e.value.ndim == 4] or list(seen.named_maps())
    tap = PRE_LOGITS if found.vector else maps[-1].place.path if maps else next(reversed(hand), None)
    if tap is None:
        return "No module of it gives a tensor that a head could read; wrap it in a module that gives its last map"
    names = [p for p in hand if "." not in p]
    return (
        f"Modules that can be tapped: {', '.join(names[:12] or list(hand)[:12])}. The likeliest: "
        f"heads={{…: ClassificationHead(tap={tap!r})}}; or register a row with `register_arch`"
    )
