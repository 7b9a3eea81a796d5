"""The networks of the zoos as the zoos themselves build them, without a line of the library's own cut."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from fastai.vision.models import xresnet
from torch import Tensor, nn
from torchvision import models

__all__ = ["Original", "as_asked", "build", "build_on_paper", "on_paper", "outputs", "smallest"]

CELLS = 56
"Least side of an image, if the arch takes any: its last map has 2 × 2 cells at least, so that layouts differ."
GROWTH = (1, 1.5, 2, 3, 4)
"How much larger the next images are that are tried."
RANDOM: dict[str, Mapping[str, Any]] = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}
RANDOM |= {name: {"weights_backbone": None} for name in models.list_models(module=models.segmentation)}
"Arguments with which torchvision builds a network without weights and without a warning."
SIZE_ARGS = ("img_size", "image_size")
"What an arch of one size may call the side that it is built for."


@dataclass(frozen=True)
class Original:
    "A name of a zoo, and how it is built."

    name: str
    zoo: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # for its function
    side: int = 224  # of its image

    @property
    def plain(self) -> str:
        "The name without its zoo."
        return self.name.rpartition(":")[2]


def build(arch: Original) -> nn.Module:
    "Build the network by its zoo's own function, with random weights, the same each time."
    torch.manual_seed(0)
    plain, kwargs = arch.plain, dict(arch.kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arch.zoo == "timm":
            return timm.create_model(plain, pretrained=False, **kwargs)
        if arch.zoo == "fastai":
            return getattr(xresnet, plain)(**kwargs)
        return models.get_model(plain, weights=None, **{**RANDOM.get(plain, {}), **kwargs})


def outputs(out: object) -> list[Tensor]:
    "List the tensors that a network gives; some give several, or a dict of them."
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return [t for part in parts for t in outputs(part)]


def smallest(arch: Original) -> tuple[nn.Module, Original]:
    "Build an arch for the smallest image that it takes in training; return the network, and how it was built."
    own, fixed = _own_side(arch)
    net = None if fixed else build(arch)
    for side, kwargs in _tries(arch, own, fixed):
        tried = replace(arch, kwargs={**arch.kwargs, **kwargs}, side=side)
        try:
            net = build(tried) if fixed else net
            with torch.no_grad():
                copy.deepcopy(net).train()(torch.randn(2, 3, side, side))
        except Exception:  # of many kinds: the arch does not take this size, or not this argument
            continue
        return net, tried
    return (build(arch) if fixed else net), replace(arch, side=own)


def as_asked(arch: Original) -> str:
    "Say which arch was built, with what arguments."
    return " ".join([arch.plain, *(f"{k}={v}".replace(" ", "") for k, v in arch.kwargs.items())])


def build_on_paper(arch: Original) -> nn.Module:
    "Build the network on the meta device."
    try:
        with torch.device("meta"):
            return build(arch)
    except (RuntimeError, NotImplementedError):  # RegNet of torchvision makes numbers of its widths
        return build(arch).to("meta")


def on_paper(arch: Original) -> nn.Module:
    "Build the network on the meta device, once in a process."
    key = f"{arch.name} {arch.kwargs}"
    if key not in _ON_PAPER:
        _ON_PAPER[key] = build_on_paper(arch)
    return _ON_PAPER[key]


_ON_PAPER: dict[str, nn.Module] = {}


def _own_side(arch: Original) -> tuple[int, bool]:
    "Read the side that an arch is made for, and whether it must be told of another one."
    if "img_size" in arch.kwargs:
        return arch.kwargs["img_size"], True
    cfg = timm.get_pretrained_cfg(arch.name) if arch.zoo == "timm" else None
    if cfg:
        return cfg.input_size[-1], cfg.fixed_input_size
    return 299 if arch.plain == "inception_v3" else 224, arch.plain.startswith("vit_")


def _tries(arch: Original, own: int, fixed: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    stride = _stride(arch)
    for more in GROWTH:
        side = stride * math.ceil(CELLS * more / stride)
        if side < own:
            yield from ((side, {argument: side}) for argument in SIZE_ARGS) if fixed else ((side, {}),)


def _stride(arch: Original) -> int:
    "Read the last map's stride where timm declares it."
    if arch.zoo != "timm":
        return 32
    info = getattr(on_paper(arch), "feature_info", None)
    dicts = info if isinstance(info, list) else info.get_dicts() if info else []
    return int(dicts[-1]["reduction"]) if dicts else 32
