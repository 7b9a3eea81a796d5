"""What can be tapped in the archs over the inputs of some data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastai.data.core import DataLoaders
from torch import nn

from fastai_heads.archs.points import CutPoints, arch_points
from fastai_heads.bodies.contract import BodySpec
from fastai_heads.bodies.together import find_body, name_bodies
from fastai_heads.data.inputs import Input, dls_inputs
from fastai_heads.errors import HeadsError

__all__ = ["BodiesCutPoints", "cut_points"]


@dataclass(frozen=True)
class BodiesCutPoints:
    "The taps of several bodies, by the body's name; prints as a table for each."

    bodies: Mapping[str, CutPoints]  # name → its taps, named within it

    def __getitem__(self, name: str) -> CutPoints:
        return self.bodies[name]

    def __str__(self) -> str:
        return "\n\n".join(f"{name}: {points}" for name, points in self.bodies.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{name}</h4>{points._repr_html_()}" for name, points in self.bodies.items())


def cut_points(
    arch: str
    | Callable[..., nn.Module]
    | nn.Module
    | BodySpec
    | Mapping[str, Any],  # as for `multihead_learner`: a name, a function, a network, a `TabularBody`, a dict of bodies
    *,
    dls: DataLoaders | None = None,  # the data; a body of a row or a text has taps that depend on it
    n_in: int = 3,  # channels of the image
    **arch_kwargs: Any,  # for the arch of an image
) -> CutPoints | BodiesCutPoints:
    """Show what can be tapped in an arch and what a cut takes off, without weights and on the meta device where it can.

    Of several bodies a head names `photo.layer3`. Raises `HeadsError` where a body depends on data that is missing."""
    if isinstance(arch, Mapping):
        inputs = {source.name: source for source in _inputs(dls, arch)}
        found: dict[str, CutPoints] = {}
        for name, on in name_bodies(arch, inputs).items():
            known = found.get(on.same or "")
            found[name] = known or _body_points(on.arch, inputs[on.input], n_in, arch_kwargs)
        return BodiesCutPoints(found)
    if isinstance(arch, BodySpec):
        return _body_points(arch, _inputs(dls, arch)[0], n_in, arch_kwargs)
    return arch_points(arch, n_in=n_in, **arch_kwargs)


def _inputs(dls: DataLoaders | None, arch: Any) -> tuple[Input, ...]:
    "Describe the inputs of the data."
    if dls is None:
        what = "several bodies" if isinstance(arch, Mapping) else type(arch).__name__
        raise HeadsError(f"`dls`: the taps of {what} depend on the data: `cut_points(arch, dls=dls)`.")
    return dls_inputs(dls)


def _body_points(arch: Any, source: Input, n_in: int, kwargs: Mapping[str, Any]) -> CutPoints:
    "Show the taps of one body."
    if not isinstance(arch, BodySpec):
        find_body(arch, source, lambda _: None)  # refuses what does not read that input
        return arch_points(arch, n_in=n_in, **kwargs)
    points = arch.find(source).points
    return CutPoints(type(arch).__name__, f"on {source.name}, {source.a}", points, (), (), ())
