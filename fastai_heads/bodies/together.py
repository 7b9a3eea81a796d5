"""From a dict of archs to the bodies over several inputs: which reads which, and which taps each has to give."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fastai_heads.archs.records import FEATURES, Level
from fastai_heads.bodies.contract import Body, BodySpec, Found
from fastai_heads.bodies.image import find_image
from fastai_heads.bodies.owners import split_taps
from fastai_heads.bodies.several import Bodies
from fastai_heads.data.inputs import ImageInput, Input
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.names import check_name
from fastai_heads.values import check_value

__all__ = ["On", "find_bodies", "find_body", "name_bodies"]


@dataclass(frozen=True)
class On:
    """A body over an input, under a name of its own: `{'a': On('photo', 'resnet18'), 'b': On('photo', 'vgg11')}`.

    `On('right', same='left')` reads another input with the weights of body 'left', in one pass."""

    input: str  # the input's name
    arch: Any = None  # what reads it
    same: str | None = None  # the body whose weights read it

    def __post_init__(self) -> None:
        check_value("input", "On", self.input, isinstance(self.input, str), "the name of an input")
        if (self.arch is None) == (self.same is None):
            raise HeadsError(f"On({self.input!r}, …) takes an arch, or `same=` and the name of a body: one of the two.")


def find_body(
    arch: Any,  # an arch of an image, a TabularBody, a TextBody
    source: Input,  # what it reads, described
    image: Callable[..., Found] = find_image,  # how an arch of an image is found
) -> Found:
    "Find an arch for an input. Refuses one that reads another kind of input."
    if isinstance(arch, BodySpec):
        return arch.find(source)
    if not isinstance(source, ImageInput):
        what = type(arch).__name__ if isinstance(arch, nn.Module) else repr(arch)
        raise HeadsError(f"`arch`: input {source.name!r} is {source.a}, which {what} does not read. Say {source.arch}.")
    return image(arch)


def find_bodies(
    archs: Mapping[str, Any],  # name of a body → arch, `On(…)`
    sources: Sequence[Input],  # the inputs, described
    image: Callable[..., Found] = find_image,  # how an arch of an image is found
) -> Found:
    """Find the archs over several inputs. A body without `On` reads the input that has its name. Refuses a body without
    an input, and an input without a body."""
    by_name = {source.name: source for source in sources}
    bodies = name_bodies(archs, by_name)
    found = {n: find_body(on.arch, by_name[on.input], image) for n, on in bodies.items() if on.same is None}
    points = {name: found[on.same or name].points for name, on in bodies.items()}

    def build(taps: Iterable[str | int | Level]) -> Body:
        taps = tuple(taps)
        shares = split_taps(taps, points)
        made: dict[str, Body] = {}
        for name in found:
            users = [n for n, on in bodies.items() if (on.same or n) == name]
            inner = list(dict.fromkeys(tap for user in users for tap in shares[user]))
            if not inner:
                raise HeadsError(
                    f"`arch`: no head reads body {name!r}. Leave it out, or let a head read {f'{name}.{FEATURES}'!r}."
                )
            try:
                made[name] = found[name].build(inner)
            except HeadsError as error:
                if f"{name}.{error.tap}" in taps:  # as the head says it
                    error.tap = f"{name}.{error.tap}"
                raise error.within(f"body {name!r}") from error.__cause__
        unread = next((n for n in bodies if not shares[n]), None)
        if unread is not None:
            raise HeadsError(f"`arch`: no head reads body {unread!r}. Leave it out, or let a head read it.")
        every = {name: made[on.same or name] for name, on in bodies.items()}
        return Bodies(every, {name: on.input for name, on in bodies.items()}, sources, taps)

    flat = (replace(p, name=f"{name}.{p.name}") for name, known in points.items() for p in known)
    unlisted = (f"{name}.{tap}" for name, on in bodies.items() for tap in found[on.same or name].unlisted)
    return Found(tuple(flat), build, frozenset(unlisted))


def name_bodies(
    archs: Mapping[str, Any],  # name of a body → arch, `On(…)`
    sources: Mapping[str, Input],  # name → input
) -> dict[str, On]:  # name of a body → what reads which input
    "Say of every body which input it reads: one without `On` that of its own name."
    empty = next((name for name, arch in archs.items() if arch is None), None)
    if empty is not None:
        say = f" Say {sources[empty].arch}." if empty in sources else ""
        raise HeadsError(f"`arch`: body {empty!r} is None.{say}")
    bodies = {name: arch if isinstance(arch, On) else On(name, arch) for name, arch in archs.items()}
    _check(bodies, sources)
    return bodies


def _check(bodies: Mapping[str, On], sources: Mapping[str, Input]) -> None:
    "Refuse names that lead nowhere, inputs that nothing reads, and weights shared between kinds of input."
    for name, on in bodies.items():
        check_name(name, "arch")
        if on.input not in sources:
            raise HeadsError(
                f"`arch`: body {name!r} reads input {on.input!r}, which there is not.{did_you_mean(on.input, sources)} "
                f"The inputs are {', '.join(sources)}. A name of its own goes with `On`: "
                f"{{{name!r}: On({next(iter(sources))!r}, …)}}."
            )
        if on.same is None:
            continue
        other = bodies.get(on.same)
        if other is None or other.same is not None:
            names = [n for n, o in bodies.items() if o.same is None]
            raise HeadsError(
                f"`arch`: body {name!r} is the same as {on.same!r}; bodies with an arch are {', '.join(names)}."
            )
        if type(sources[on.input]) is not type(sources[other.input]):
            raise HeadsError(
                f"`arch`: body {name!r} reads {sources[on.input].a}, and {on.same!r}, whose weights it is to use, "
                f"{sources[other.input].a}."
            )
    unread = [name for name in sources if name not in {on.input for on in bodies.values()}]
    if unread:
        raise HeadsError(
            f"`arch`: input {unread[0]!r} has no body ({sources[unread[0]].a}). "
            f"Give it one, {{…, {unread[0]!r}: …}}, or take its block out of the DataBlock."
        )
