"""The names that the sweep runs, their zoos and their order."""

from collections.abc import Iterable
from functools import cache

import timm
from timm.models import list_modules

from benchmarks.sweep.original import Original, build_on_paper
from fastai_heads.archs.registry import arch_by_name, list_archs

__all__ = ["every_name", "family_name", "in_turn", "size_of", "zoo_of"]

ZOOS = ("timm", "torchvision", "fastai")


def every_name() -> list[str]:
    "List the names that the zoos have, without those that were registered."
    return [n for n in list_archs() if zoo_of(n) in ZOOS]


def in_turn(names: Iterable[str]) -> list[str]:
    "Order names by the size of the arch, the smallest first."
    return sorted(names, key=lambda n: (size_of(n), n))


def zoo_of(name: str) -> str:
    "Find the zoo of a name of the sweep."
    row = arch_by_name(name.rpartition(":")[2])
    return row.zoo if row and (":" in name or not timm.is_model(name)) else "timm"


def family_name(name: str) -> str:
    "Find the module of its zoo that has a name."
    if zoo_of(name) == "timm":
        return _timm_modules()[name]
    return arch_by_name(name.rpartition(":")[2]).build.__module__.rpartition(".")[2]


def size_of(name: str) -> int:
    "Count the numbers in its parameters, on the meta device where it can be built there."
    return sum(p.numel() for p in build_on_paper(Original(name, zoo_of(name))).parameters())


@cache
def _timm_modules() -> dict[str, str]:
    return {name: module for module in list_modules() for name in timm.list_models(module=module)}
