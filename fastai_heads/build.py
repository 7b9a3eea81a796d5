"""A network is put together: a body, trunks, and a head for every spec."""

from collections.abc import Mapping

from torch import Tensor

from fastai_heads.bodies.contract import Body
from fastai_heads.errors import HeadsError
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.model import Heads, MultiHeadModel
from fastai_heads.trunks import Trunk, add_trunks, read_by

__all__ = ["build_model"]


def build_model(
    body: Body,  # with every tap that the specs and trunks read
    specs: Mapping[str, HeadSpec],  # name → fitted spec, in the order of the predictions
    trunks: Mapping[str, Trunk] | None = None,  # name → trunk, each after the trunks that it reads
    sample: tuple[Tensor, ...] = (),  # inputs of the body, on which the trunks' outputs are measured
) -> MultiHeadModel:
    "Build the network: the body, the trunks measured on a sample, and a head for every spec."
    shapes = {tap: TapShape(tap, body.channels[tap], body.strides[tap]) for tap in body.taps}
    heads = Heads({}, {}, shapes=shapes)
    add_trunks(body, trunks or {}, heads, sample)
    for name, spec in specs.items():
        reads = read_by(spec, body, heads)
        try:
            heads.add(name, spec.build(tuple(heads.shapes[tap] for tap in reads)), reads)
        except HeadsError as error:
            raise error.within(f"`heads[{name!r}]`", head=name) from error.__cause__
    return MultiHeadModel(body, heads)
