"""Turn a batch and predictions back into values that people can look at."""

from collections.abc import Sequence
from copy import copy
from typing import Any

from fastai.data.core import DataLoaders, Datasets, TfmdDL
from torch import Tensor

__all__ = ["decode_targets", "dls_of_target", "select_targets"]


def select_targets(
    dl: TfmdDL,  # over fastai `Datasets`
    targets: Sequence[int],  # places among its targets
) -> TfmdDL:  # the same inputs with these targets, in this order
    """Make a view of `dl` with some of its targets. fastai pairs values with targets by position. Predictions of some
    targets, or in another order, therefore need a `DataLoader` that has just those."""
    dataset, types, n_inp = _selected(dl, targets)
    view = dl.new(dataset)
    view._types, view._n_inp = types, n_inp
    return view


def _selected(dl: TfmdDL, targets: Sequence[int]) -> tuple[Datasets, dict[type, list[type]], int]:
    "Give the data with some of its targets, the types of a batch of it, and how many of these are inputs."
    ds, types = dl.dataset, _types(dl)
    places = [*range(ds.n_inp), *(ds.n_inp + t for t in targets)]
    return type(ds)(tls=[ds.tls[p] for p in places], n_inp=ds.n_inp), {tuple: [types[p] for p in places]}, ds.n_inp


def dls_of_target(
    dls: DataLoaders,  # over fastai `Datasets`
    target: int,  # a place among its targets
) -> DataLoaders:
    "Return the same data with one target."
    loaders = [select_targets(dl, [target]) for dl in dls.loaders]
    return DataLoaders(*loaders, path=dls.path, device=dls.device)


def decode_targets(
    dl: TfmdDL,  # over fastai `Datasets` with all the targets
    inputs: tuple[Tensor, ...],  # (B, …) each, as in a batch
    values: Sequence[Tensor],  # (B, …) each, in the form of their targets
    targets: Sequence[int],  # the place of each value's target
    max_n: int = 9,  # most items to decode
) -> list[tuple[Any, ...]]:  # per item its decoded inputs, then its decoded values
    "Decode values of targets by the transforms that made them. Each value goes by its own target, never by position."
    view = copy(dl)  # it only decodes, for which fastai's `new` is slow
    view.dataset, view._types, view._n_inp = _selected(dl, targets)
    return list(view.decode_batch((*inputs, *values), max_n=max_n))


def _types(dl: TfmdDL) -> list[type]:
    "List the type of every element of a batch, inputs and targets."
    if not getattr(dl, "_types", None) or len(dl._types[tuple]) < len(dl.dataset.tls):
        dl._one_pass()
    return dl._types[tuple]
