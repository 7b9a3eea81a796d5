"""TorchJD, wrapped: the one module that knows its classes. What makes one number of K losses, one row of K
gradients."""

import copy
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
import torchjd.aggregation
import torchjd.scalarization
from torch import Tensor, nn
from torchjd import Stateful
from torchjd.aggregation import (
    PCD,
    Aggregator,
    ConstantWeighting,
    CRMOGMWeighting,
    GramianWeightedAggregator,
    MeanWeighting,
    NashMTL,
    RandomWeighting,
    SumWeighting,
    UPGrad,
    WeightedAggregator,
    Weighting,
)
from torchjd.scalarization import DWA, FAMO, UW, GeometricMean, Scalarizer

from fastai_heads.errors import HeadsError

__all__ = [
    "DWA",
    "FAMO",
    "UW",
    "Aggregator",
    "GeometricMean",
    "Scalarizer",
    "UPGrad",
    "aggregated",
    "check_rows",
    "check_values",
    "classes_by_name",
    "for_some",
    "is_one_of",
    "made",
    "moved",
    "needs_every_head",
    "scalarized",
    "weights_of",
]

_COUNTS = ("shape", "n_tasks")
"What TorchJD calls the number of losses where it has to know it before."


def is_one_of(
    value: object,  # what the user passed
    kind: type,  # `Aggregator` or `Scalarizer`
) -> bool:
    "Whether it is of a kind, or a class of that kind."
    return isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))


def classes_by_name() -> dict[str, type]:
    "Return TorchJD's classes that may be written as `strategy=`, by name."
    kinds = ((torchjd.aggregation, Aggregator), (torchjd.scalarization, Scalarizer))
    found = {name: getattr(module, name) for module, kind in kinds for name in module.__all__}
    bases = (Aggregator, Scalarizer, WeightedAggregator, GramianWeightedAggregator)
    fits = {n: c for n, c in found.items() if any(is_one_of(c, kind) for _, kind in kinds) and c not in bases}
    return dict(sorted(fits.items()))


def made(
    value: Any,  # an `Aggregator` or a `Scalarizer`, or a class of either
    n: int,  # how many heads there are
) -> Any:  # an object
    "A class made into an object for so many heads, as in `strategy=UW`. Raises `HeadsError` where it needs more."
    if not isinstance(value, type):
        return value
    params = signature(value).parameters
    known = {name: n for name in _COUNTS if name in params}
    needed = [p.name for p in params.values() if p.default is Parameter.empty and p.name not in known]
    if needed:
        given = ", ".join(f"{name}=…" for name in needed)
        raise HeadsError(f"`strategy`: {value.__name__} needs {', '.join(needed)}: pass `{value.__name__}({given})`.")
    try:
        return value(**known)
    except ImportError as error:  # of an extra of TorchJD; its text has the command
        raise HeadsError(f"`strategy`: {error}") from error


def weights_of(
    aggregator: Aggregator,
    gramian: Callable[[], Tensor],  # gives the (K, K) products of the rows
    matrix: Callable[[], Tensor],  # gives the rows, (K, n), for the few that look at more than their products
) -> Tensor | None:  # (K,), or None where an aggregator does not weight rows
    "The weight of every row. The Jacobian itself is made for those alone that need it."
    if type(aggregator).forward is not WeightedAggregator.forward:
        return None
    if isinstance(aggregator, GramianWeightedAggregator):
        return aggregator.gramian_weighting(gramian())
    weighting = aggregator.weighting
    return weighting(_root(gramian()) if _of_products(weighting) else matrix())


def _of_products(weighting: Weighting) -> bool:
    "Whether a weighting of a matrix depends on nothing but the products of its rows."
    if isinstance(weighting, CRMOGMWeighting):
        return _of_products(weighting.weighting)
    known = (ConstantWeighting, MeanWeighting, SumWeighting, RandomWeighting)
    return isinstance(weighting, known) or type(weighting).__module__ == NashMTL.__module__


def _root(gramian: Tensor) -> Tensor:
    "A small matrix whose rows have the same products."
    values, vectors = torch.linalg.eigh(gramian)
    return vectors * values.clamp(min=0).sqrt()


def aggregated(
    aggregator: Aggregator,
    matrix: Tensor,  # (K, n)
) -> Tensor:  # (n,)
    "One row of K."
    return aggregator(matrix)


def needs_every_head(
    aggregator: Aggregator,
) -> bool:
    "Whether its rows have places of their own, so that none may be missing in a batch."
    return isinstance(aggregator, NashMTL | PCD)


def check_rows(
    aggregator: Aggregator,
    n: int,  # rows
) -> None:
    "Run a copy on rows of `n` heads. Raises `HeadsError` with what it says."
    rows = torch.eye(n, n + 1, dtype=torch.float64) + 0.1
    try:
        tried = copy.deepcopy(aggregator)
        moved(tried, rows)
        tried(rows)
    except (ValueError, RuntimeError, IndexError) as error:
        what = type(aggregator).__name__
        raise HeadsError(f"`strategy`: {what} cannot be used with {n} heads: {_first_line(error)}") from error


def check_values(
    scalarizer: Scalarizer,
    n: int,  # losses
) -> None:
    "Run a copy on `n` losses. Raises `HeadsError` with what it says."
    try:
        tried = copy.deepcopy(scalarizer)
        moved(tried, torch.ones(n))
        tried(torch.ones(n))
    except (ValueError, RuntimeError) as error:
        what = type(scalarizer).__name__
        raise HeadsError(f"`strategy`: {what} cannot be used with {n} heads: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def for_some(
    aggregator: Aggregator,  # for n rows
    places: Sequence[int],  # the rows that are there
    n: int,
) -> Aggregator:  # a copy, with a state of its own
    "An aggregator for some of the heads: what it holds for each head (preferences, weights) is theirs."
    some = copy.deepcopy(aggregator)
    for module in some.modules():
        if isinstance(module, Stateful):
            module.reset()
        _pick(module, places, n)
    return some


def scalarized(
    scalarizer: Scalarizer,
    values: Tensor,  # (len(places),) the losses that are there
    places: Sequence[int],  # their places among all
    n: int,  # how many there are in all
) -> Tensor:  # a scalar
    """One number of the losses that are there. What a scalarizer holds or learns for the others is not touched, and
    takes no part: an absent loss is no loss of zero."""
    if len(places) == n:
        return scalarizer(values)
    some = copy.copy(scalarizer)
    some._parameters, some._buffers = dict(scalarizer._parameters), dict(scalarizer._buffers)
    _pick(some, places, n)
    return some(values)


def moved(
    module: nn.Module,  # an aggregator or a scalarizer
    like: Tensor,  # on the device, and of the type, of the losses
) -> None:
    "Brings what it holds to a device; vectors that are neither parameters nor buffers are of the losses' type, too."
    module.to(like.device)
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor):
                part.__dict__[name] = value.to(like)


def _pick(module: nn.Module, places: Sequence[int], n: int) -> None:
    "Of every vector with a number for each head, those of some."
    for held in (module.__dict__, module._parameters, module._buffers):
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == (n,):
                held[name] = value[torch.tensor(places, device=value.device)]
