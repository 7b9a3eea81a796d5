"""From a batch and predictions back to what can be shown."""

from collections.abc import Sequence
from typing import Any

from fastai.data.core import TfmdDL
from torch import Tensor

__all__ = ["decode_targets", "of_targets"]


def of_targets(
    dl: TfmdDL,  # over fastai `Datasets`
    targets: Sequence[int],  # places among its targets
) -> TfmdDL:  # the same inputs with these targets, in this order
    """A view of `dl` with some of its targets. fastai zips values to targets by position, so that predictions of some
    targets, or in another order, need a `DataLoader` that has just those."""
    ds, types = dl.dataset, _types(dl)
    places = [*range(ds.n_inp), *(ds.n_inp + t for t in targets)]
    view = dl.new(type(ds)(tls=[ds.tls[p] for p in places], n_inp=ds.n_inp))
    view._types = {tuple: [types[p] for p in places]}
    view._n_inp = ds.n_inp
    return view


def decode_targets(
    dl: TfmdDL,  # over fastai `Datasets` with all the targets
    inputs: tuple[Tensor, ...],  # (B, …) each, as in a batch
    values: Sequence[Tensor],  # (B, …) each, in the form of their targets
    targets: Sequence[int],  # the place of each value's target
    max_n: int = 9,  # how many items
) -> list[tuple[Any, ...]]:  # per item its decoded inputs, then its decoded values
    "Decode values of targets through the transforms that made them, each by its own target and never by position."
    return list(of_targets(dl, targets).decode_batch((*inputs, *values), max_n=max_n))


def _types(dl: TfmdDL) -> list[type]:
    "The type of every element of a batch, inputs and targets."
    if not getattr(dl, "_types", None) or len(dl._types[tuple]) < len(dl.dataset.tls):
        dl._one_pass()
    return dl._types[tuple]
