"""The registry of every name that can be cut."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import timm
from torch import nn
from torchvision import models
from torchvision.models import get_model_builder, list_models

from fastai_heads.archs.family import Family
from fastai_heads.archs.fastai_zoo import FASTAI, FASTAI_BUILDERS
from fastai_heads.archs.segmentation_rows import SEGMENTATION
from fastai_heads.archs.torchvision_rows import TORCHVISION
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.values import check_value

__all__ = ["Arch", "arch_by_function", "arch_by_name", "family_of", "list_archs", "register_arch", "unknown_arch"]


NO_ARCHS = {
    "video": "take clips, and a body takes images",
    "detection": "have no single map; a `DetectionHead` reads the levels of any body",
    "optical_flow": "take two images, and a body takes one",
    "quantization": "have weights of integers, which do not train",
}
"Torchvision's modules without an arch, and the reasons."


@dataclass(frozen=True)
class Arch:
    "One name of the registry."

    name: str  # the name that a user writes
    zoo: str  # 'torchvision', 'fastai' or 'registered'
    build: Callable[..., nn.Module]  # makes the network
    mean: tuple[float, ...] | None = None  # normalisation of its weights, if they do not declare it
    std: tuple[float, ...] | None = None


_FAMILIES: dict[type[nn.Module], Family] = {family.module: family for family in (*TORCHVISION, *SEGMENTATION, *FASTAI)}
_ARCHS: dict[str, Arch] = {}


def register_arch(
    name: str,  # the name that a user writes
    build: Callable[..., nn.Module],  # makes the network: build(**arch_kwargs)
    family: Family | None = None,  # its row; None: its class has a row, or it is traced
    *,
    mean: tuple[float, ...] | None = None,  # normalisation of its weights
    std: tuple[float, ...] | None = None,
) -> None:
    "Add a name to the registry. Raises a `HeadsError` if the name or the class is there already."
    named = isinstance(name, str) and bool(name.strip())
    check_value("name", "register_arch", name, named, "the name by which the arch is found")
    check_value("build", "register_arch", build, callable(build), "a function that makes the network")
    _add(Arch(name, "registered", build, mean, std))
    if family is not None and _FAMILIES.setdefault(family.module, family) is not family:
        del _ARCHS[name]
        raise HeadsError(f"`family`: {family.module.__name__} has a row already, {_FAMILIES[family.module].name!r}.")


def _add(arch: Arch) -> None:
    if arch.name in _ARCHS or (arch.zoo == "registered" and timm.is_model(arch.name)):
        raise HeadsError(f"`name={arch.name!r}` is registered already, in {_zoo_of(arch.name)}.")
    _ARCHS[arch.name] = arch


def _zoo_of(name: str) -> str:
    return "timm" if timm.is_model(name) else _ARCHS[name].zoo


def list_archs(
    pattern: str = "*",  # as in a shell: 'resnet*'
) -> list[str]:  # sorted
    """List every name that can be cut, of timm, torchvision, fastai and those registered; refuse a pattern without any.
    A name that timm and torchvision have stands here twice: 'resnet18' is timm's, 'torchvision:resnet18' the other."""
    check_value("pattern", "list_archs", pattern, isinstance(pattern, str), "a text as in a shell, such as 'resnet*'")
    every = {*timm.list_models(), *(f"{a.zoo}:{n}" if timm.is_model(n) else n for n, a in _ARCHS.items())}
    found = sorted(fnmatch.filter(every, pattern))
    if not found:
        near = did_you_mean(str(pattern).strip("*?").lower(), sorted(every))
        raise HeadsError(
            f"`pattern={pattern!r}` fits none of the {len(every)} names of archs.{near} It is as in a shell: 'resnet*'."
        )
    return found


def arch_by_name(name: str) -> Arch | None:
    "Find the row of a name, None if there is none. Names of timm have no row."
    return _ARCHS.get(name)


def arch_by_function(build: Callable[..., nn.Module]) -> Arch | None:
    "Find the row of a torchvision, fastai or registered function, None if there is none."
    return next((a for a in _ARCHS.values() if a.build is build), None)


def family_of(net: nn.Module) -> Family | None:
    "Find the row of a network's class, None if there is none. A subclass has none, as its forward code may differ."
    return _FAMILIES.get(type(net))


def unknown_arch(name: object) -> HeadsError:
    "Make the error for a name that no zoo has."
    near = did_you_mean(name, list_archs())
    for kind, why in NO_ARCHS.items():
        if name in list_models(module=getattr(models, kind)):
            return HeadsError(f"`arch={name!r}` is of torchvision.models.{kind}, whose networks {why}.{near}")
    return HeadsError(f"`arch={name!r}` is neither in timm nor in torchvision nor registered.{near}")


for _name in (*list_models(module=models), *list_models(module=models.segmentation)):
    _add(Arch(_name, "torchvision", get_model_builder(_name)))
for _name, _build in FASTAI_BUILDERS.items():
    _add(Arch(_name, "fastai", _build))
