"""The names that the sweep runs, where they are found, and in which order."""

import warnings
from collections.abc import Iterable, Iterator
from functools import cache

import timm
import torch
from timm.models import list_modules
from torchvision import models
from torchvision.models import list_models

from fastai_heads.archs.registry import arch_by_name, list_archs
from fastai_heads.archs.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.archs.torchvision_zoo import BUILD_ARGS

__all__ = ["every_name", "family_name", "in_turn", "size_of", "zoo_of"]


def every_name() -> list[str]:
    "All names, and torchvision's once more where timm has the same."
    own = list_models(module=models)
    return sorted({*list_archs(), *(f"torchvision:{n}" for n in own if timm.is_model(n))})


def in_turn(names: Iterable[str]) -> Iterator[str]:
    """One arch of every family, then the rest of torchvision and fastai, then the rest of timm; of each the smallest
    first."""
    ranks: tuple[list[str], ...] = ([], [], [])
    first = {*SMALLEST.values(), *SMALLEST_TORCHVISION.values()}
    first |= {f"torchvision:{n}" for n in SMALLEST_TORCHVISION.values()}
    for name in names:
        ranks[0 if name in first else 1 if zoo_of(name) != "timm" else 2].append(name)
    for rank in ranks:
        yield from sorted(rank, key=lambda n: (size_of(n), n))


def zoo_of(name: str) -> str:
    "The zoo that a name of the sweep is found in."
    row = arch_by_name(name.rpartition(":")[2])
    return row.zoo if row and (":" in name or not timm.is_model(name)) else "timm"


def family_name(name: str) -> str:
    "The module of its zoo that a name stands in."
    if zoo_of(name) == "timm":
        return _timm_modules()[name]
    return arch_by_name(name.rpartition(":")[2]).build.__module__.rpartition(".")[2]


def size_of(name: str) -> float:
    "The numbers in its parameters, counted on the meta device; 0 where that cannot be built."
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = name.rpartition(":")[2]
            timms = zoo_of(name) == "timm"
            net = timm.create_model(name) if timms else arch_by_name(plain).build(**BUILD_ARGS.get(plain, {}))
    except Exception:  # the sweep says what is wrong with it
        return 0.0
    return float(sum(p.numel() for p in net.parameters()))


@cache
def _timm_modules() -> dict[str, str]:
    return {name: module for module in list_modules() for name in timm.list_models(module=module)}
