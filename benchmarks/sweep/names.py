"""The names that the sweep runs, their zoos and their order."""

import warnings
from collections.abc import Iterable, Iterator
from functools import cache

import timm
import torch
from timm.models import list_modules
from torchvision import models
from torchvision.models import list_models

from fastai_heads.archs.proof.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.archs.registry import arch_by_name, list_archs
from fastai_heads.archs.torchvision_zoo import BUILD_ARGS

__all__ = ["every_name", "family_name", "in_turn", "size_of", "zoo_of"]


def every_name() -> list[str]:
    "List all names. A name of torchvision that timm also has comes a second time, with 'torchvision:' before it."
    own = list_models(module=models)
    return sorted({*list_archs(), *(f"torchvision:{n}" for n in own if timm.is_model(n))})


def in_turn(names: Iterable[str]) -> Iterator[str]:
    """Order names: one arch of every family, then the rest of torchvision and fastai, then the rest of timm. Each part
    begins with the smallest arch."""
    ranks: tuple[list[str], ...] = ([], [], [])
    first = {*SMALLEST.values(), *SMALLEST_TORCHVISION.values()}
    first |= {f"torchvision:{n}" for n in SMALLEST_TORCHVISION.values()}
    for name in names:
        ranks[0 if name in first else 1 if zoo_of(name) != "timm" else 2].append(name)
    for rank in ranks:
        yield from sorted(rank, key=lambda n: (size_of(n), n))


def zoo_of(name: str) -> str:
    "Find the zoo of a name of the sweep."
    row = arch_by_name(name.rpartition(":")[2])
    return row.zoo if row and (":" in name or not timm.is_model(name)) else "timm"


def family_name(name: str) -> str:
    "Find the module of its zoo that has a name."
    if zoo_of(name) == "timm":
        return _timm_modules()[name]
    return arch_by_name(name.rpartition(":")[2]).build.__module__.rpartition(".")[2]


def size_of(name: str) -> float:
    "Count the numbers in its parameters on the meta device. They are 0 where the arch cannot be built there."
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = name.rpartition(":")[2]
            timms = zoo_of(name) == "timm"
            net = timm.create_model(name) if timms else arch_by_name(plain).build(**BUILD_ARGS.get(plain, {}))
    except Exception:  # the sweep reports the error
        return 0.0
    return float(sum(p.numel() for p in net.parameters()))


@cache
def _timm_modules() -> dict[str, str]:
    return {name: module for module in list_modules() for name in timm.list_models(module=module)}
