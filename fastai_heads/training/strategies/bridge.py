"""The bridge to TorchJD: this module alone knows its classes. A scalarizer makes one number of K losses. An aggregator
makes one row of K gradients."""

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
    "aggregate",
    "check_rows",
    "check_values",
    "classes_by_name",
    "for_some",
    "is_one_of",
    "make",
    "move_to",
    "needs_every_head",
    "row_weights",
    "scalarize",
]

_EXAMPLES = {"aggregator": "UPGrad()", "scalarizer": "UW(2)"}
"Arguments for messages, of a class that cannot be made without."
_COUNTS = ("shape", "n_tasks")
"The names of TorchJD's parameters for the number of losses."


def is_one_of(
    value: object,  # the value that the user passed
    kind: type,  # `Aggregator` or `Scalarizer`
) -> bool:
    "Tell whether a value is of a kind, or a class of that kind."
    return isinstance(value, kind) or (isinstance(value, type) and issubclass(value, kind))


def classes_by_name() -> dict[str, type]:
    "List the classes that may be passed as `strategy=`, by name."
    kinds = ((torchjd.aggregation, Aggregator), (torchjd.scalarization, Scalarizer))
    found = {name: getattr(module, name) for module, kind in kinds for name in module.__all__}
    bases = (Aggregator, Scalarizer, WeightedAggregator, GramianWeightedAggregator)
    fits = {n: c for n, c in found.items() if any(is_one_of(c, kind) for _, kind in kinds) and c not in bases}
    return dict(sorted(fits.items()))


def make(
    value: Any,  # an `Aggregator` or a `Scalarizer`, or a class of either
    n: int,  # number of heads
) -> Any:  # an object
    "Make an object of a class for `n` heads, as in `strategy=UW`. Raises `HeadsError` if the class needs more."
    if not isinstance(value, type):
        return value
    params = signature(value).parameters
    known = {name: n for name in _COUNTS if name in params}
    needed = [p.name for p in params.values() if p.default is Parameter.empty and p.name not in known]
    if needed:
        given = ", ".join(_EXAMPLES.get(name, f"{name}=…") for name in needed)
        raise HeadsError(f"`strategy`: {value.__name__} needs {', '.join(needed)}: pass `{value.__name__}({given})`.")
    try:
        return value(**known)
    except ImportError as error:  # an extra of TorchJD is missing; the error has the command
        raise HeadsError(f"`strategy`: {error}") from error


def row_weights(
    aggregator: Aggregator,
    gramian: Callable[[], Tensor],  # gives the (K, K) products of the rows
    matrix: Callable[[], Tensor],  # gives the rows, (K, n), for the few aggregators that need more than their products
) -> Tensor | None:  # (K,), or None where an aggregator does not weight rows
    "Ask the aggregator for the weight of every row. The Jacobian is made only for the aggregators that need it."
    if type(aggregator).forward is not WeightedAggregator.forward:
        return None
    if isinstance(aggregator, GramianWeightedAggregator):
        return aggregator.gramian_weighting(gramian())
    weighting = aggregator.weighting
    return weighting(_root(gramian()) if _of_products(weighting) else matrix())


def _of_products(weighting: Weighting) -> bool:
    "Tell whether a weighting of a matrix depends only on the products of its rows."
    if isinstance(weighting, CRMOGMWeighting):
        return _of_products(weighting.weighting)
    known = (ConstantWeighting, MeanWeighting, SumWeighting, RandomWeighting)
    return isinstance(weighting, known) or type(weighting).__module__ == NashMTL.__module__


def _root(gramian: Tensor) -> Tensor:
    "Make a small matrix whose rows have the same products."
    values, vectors = torch.linalg.eigh(gramian)
    return vectors * values.clamp(min=0).sqrt()


def aggregate(
    aggregator: Aggregator,
    matrix: Tensor,  # (K, n)
) -> Tensor:  # (n,)
    "Make one row of K rows."
    return aggregator(matrix)


def needs_every_head(
    aggregator: Aggregator,
) -> bool:
    "Tell whether an aggregator gives each row a meaning of its own. None of its rows may then be missing in a batch."
    return isinstance(aggregator, NashMTL | PCD)


def check_rows(
    aggregator: Aggregator,
    n: int,  # rows
) -> None:
    "Run a copy of an aggregator on rows of `n` heads. Raises `HeadsError`, with its message, if that fails."
    rows = torch.eye(n, n + 1, dtype=torch.float64) + 0.1
    try:
        tried = copy.deepcopy(aggregator)
        move_to(tried, rows)
        tried(rows)
    except (ValueError, RuntimeError, IndexError) as error:
        what = type(aggregator).__name__
        raise HeadsError(f"`strategy`: {what} cannot be used with {n} heads: {_first_line(error)}") from error


def check_values(
    scalarizer: Scalarizer,
    n: int,  # losses
) -> None:
    "Run a copy of a scalarizer on `n` losses. Raises `HeadsError`, with its message, if that fails."
    try:
        tried = copy.deepcopy(scalarizer)
        move_to(tried, torch.ones(n))
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
    "Copy an aggregator for some of the heads. Vectors with a number per head (preferences, weights) keep these heads."
    some = copy.deepcopy(aggregator)
    for module in some.modules():
        if isinstance(module, Stateful):
            module.reset()
        _pick(module, places, n)
    return some


def scalarize(
    scalarizer: Scalarizer,
    values: Tensor,  # (len(places),) the losses that are there
    places: Sequence[int],  # their places among all
    n: int,  # number of all losses
) -> Tensor:  # a scalar
    """Make one number of the losses that are there. An absent loss is not a loss of zero: it takes no part. Whatever
    the scalarizer holds or learns for it stays as it is."""
    if len(places) == n:
        return scalarizer(values)
    some = copy.copy(scalarizer)
    some._parameters, some._buffers = dict(scalarizer._parameters), dict(scalarizer._buffers)
    _pick(some, places, n)
    return some(values)


def move_to(
    module: nn.Module,  # an aggregator or a scalarizer
    like: Tensor,  # on the device, and of the type, of the losses
) -> None:
    "Move a module's tensors to a device. Those that are neither parameters nor buffers also get the losses' type."
    module.to(like.device)
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor):
                part.__dict__[name] = value.to(like)


def _pick(module: nn.Module, places: Sequence[int], n: int) -> None:
    "Keep the places of some heads in every vector that has a number for each head."
    for held in (module.__dict__, module._parameters, module._buffers):
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == (n,):
                held[name] = value[torch.tensor(places, device=value.device)]
