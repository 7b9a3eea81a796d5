"""Find the network that a user names, its weights, and the way to cut it."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import timm
import torch
from fastai.vision.core import imagenet_stats
from torch import nn

from fastai_heads.archs.channels import adapt_input, first_conv
from fastai_heads.archs.fastai_zoo import FASTAI_WEIGHTS, load_fastai_weights
from fastai_heads.archs.records import Network
from fastai_heads.archs.registry import Arch, arch_by_function, arch_by_name, family_of, unknown_arch
from fastai_heads.archs.surgery import unwrapped_copy
from fastai_heads.archs.timm_zoo import build_timm, is_timm, timm_network
from fastai_heads.archs.torchvision_zoo import BUILD_ARGS, choose_weights, weights_stats
from fastai_heads.archs.traced import trace
from fastai_heads.errors import HeadsError

__all__ = ["Request", "find_empty", "find_network"]

STANDARD_SIDE = 224
"Side of the image that an arch is measured at, if neither the arch nor its weights declare another."
TIMM_HOSTS = ("hf-hub", "local-dir")
"The first part of names like 'hf-hub:owner/name', which tells timm where to look."
OWN_CHANNELS = 3
"The default of `n_in`. A network that takes another number of channels keeps it."


@dataclass(frozen=True)
class Request:
    "A user's request for an arch."

    arch: str | Callable[..., nn.Module] | nn.Module
    pretrained: bool = True
    weights: Enum | str | None = None
    n_in: int = 3
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments for the arch
    empty: bool = False  # on the meta device, without numbers


def find_network(
    request: Request,
) -> Network:
    """Find, build and describe the network. A name that both timm and torchvision have is timm's, as in fastai;
    'torchvision:resnet18' is torchvision's."""
    if request.weights is not None and not request.pretrained:
        raise HeadsError(f"`weights={request.weights}` contradicts `pretrained=False`; leave one of the two out.")
    if not isinstance(request.n_in, int) or request.n_in < 1:
        raise HeadsError(f"`n_in`: expected the number of an image's channels, at least one, found {request.n_in!r}.")
    with torch.device("meta") if request.empty else nullcontext():
        network = _find(request)
    if network.weights:
        _check_numbers(network)
    return network


def find_empty(
    request: Request,
) -> Network:
    "Find the network without numbers, on the meta device. Where that fails, as with RegNet, it has numbers."
    try:
        return find_network(replace(request, empty=True))
    except HeadsError as e:
        if not isinstance(e.__cause__, RuntimeError | NotImplementedError):
            raise
    except (RuntimeError, NotImplementedError, TypeError):
        pass
    return find_network(replace(request, empty=False))


def _find(request: Request) -> Network:
    arch = request.arch
    if isinstance(arch, nn.Module):
        return _from_module(arch, request)
    if isinstance(arch, str):
        return _from_name(arch, request)
    if callable(arch):
        return _from_function(arch_by_function(arch) or _own(arch), request)
    raise HeadsError(f"`arch`: expected a name, a function or an nn.Module, found {type(arch).__name__}.")


def _check_numbers(network: Network) -> None:
    bad = [k for k, t in network.net.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise HeadsError(
            f"`weights`: the checkpoint of {network.name} ({network.weights}) has values that are not finite in "
            f"{', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}."
        )


def _from_name(name: str, request: Request) -> Network:
    zoo, _, plain = name.rpartition(":")
    hosted = zoo in TIMM_HOSTS
    if hosted or (zoo in ("", "timm") and timm.is_model(plain.partition(".")[0])):
        wanted = name if hosted else plain
        return build_timm(wanted, request.pretrained, request.weights, request.n_in, request.kwargs)
    row = arch_by_name(plain)
    if row is None or zoo not in ("", row.zoo):
        raise unknown_arch(name)
    return _from_function(row, request)


def _own(build: Callable[..., nn.Module]) -> Arch:
    return Arch(getattr(build, "__name__", type(build).__name__), "function", build)


def _from_function(row: Arch, request: Request) -> Network:
    builders = {"torchvision": _torchvision, "fastai": _fastai}
    network = builders.get(row.zoo, _plain)(row, request)
    if request.n_in not in (network.n_in, OWN_CHANNELS):
        _adapt(network, request.n_in, bool(network.weights))
        network.mean, network.std = None, None
    return network


def _adapt(network: Network, n_in: int, pretrained: bool) -> None:
    family = family_of(network.net)
    expands = n_in == 1 and family is not None and family.expands and getattr(network.net, family.expands)
    if not expands:
        adapt_input(network.net, n_in, pretrained, network.name)
    network.n_in = n_in


def _torchvision(row: Arch, request: Request) -> Network:
    weights = choose_weights(row.build, row.name, request.pretrained, request.weights)
    defaults = {} if weights else BUILD_ARGS.get(row.name, {})
    net = _load(row, weights=weights, **{**defaults, **request.kwargs})
    mean, std, side, least = weights_stats(weights)
    network = _describe(net, row.name, "torchvision", side)
    network.mean, network.std, network.least_size = mean, std, least
    network.weights = str(weights.name) if weights else ""
    return network


def _fastai(row: Arch, request: Request) -> Network:
    if request.weights is not None:
        raise HeadsError(f"`weights={request.weights!r}`: fastai's {row.name} has no named weights.")
    if request.pretrained and row.name not in FASTAI_WEIGHTS:
        raise HeadsError(f"`pretrained=True`: fastai has no weights for {row.name}; say pretrained=False.")
    network = _describe(_load(row, **request.kwargs), row.name, "fastai")
    if request.pretrained:
        load_fastai_weights(network.net, row.name)
        network.mean, network.std = (tuple(s) for s in imagenet_stats)
        network.weights = "imagenet"
    return network


def _plain(row: Arch, request: Request) -> Network:
    known = inspect.signature(row.build).parameters
    kwargs = dict(request.kwargs)
    kwargs.update({k: v for k, v in (("pretrained", request.pretrained), ("weights", request.weights)) if k in known})
    if request.weights is not None and "weights" not in known:
        raise HeadsError(f"`weights`: {row.name} takes no such argument.")
    net = _load(row, **kwargs)
    if not isinstance(net, nn.Module):
        raise HeadsError(f"`arch`: {row.name} gave {type(net).__name__}, expected an nn.Module.")
    network = _describe(net, row.name, row.zoo)
    if request.pretrained:
        network.mean, network.std, network.weights = row.mean, row.std, "own"
    return network


def _from_module(net: nn.Module, request: Request) -> Network:
    if request.weights is not None or request.kwargs:
        what = "weights" if request.weights is not None else next(iter(request.kwargs))
        raise HeadsError(f"`{what}` cannot be used: {type(net).__name__} is a network that is built already.")
    net = unwrapped_copy(net)
    if is_timm(net):
        network = timm_network(net, net.pretrained_cfg.get("architecture") or type(net).__name__, False)
    else:
        network = _describe(net, type(net).__name__, "module")
    if request.n_in not in (network.n_in, OWN_CHANNELS):
        _adapt(network, request.n_in, request.pretrained)
    return network


def _describe(net: nn.Module, name: str, zoo: str, side: int | None = None) -> Network:
    conv = first_conv(net)
    n_in = conv[1].in_channels if conv else 3
    if is_timm(net):
        return timm_network(net, name, False)
    family = family_of(net)
    if family is None:
        if any(p.is_meta for p in net.parameters()):
            raise NotImplementedError(f"{name} has no row and is traced, which needs its values")
        cut, side = trace(net, n_in, name)
        return Network(net=net, name=name, zoo=zoo, cut=cut, n_in=n_in, size=side)
    fixed = family.fixed_size(net) if family.fixed_size else None
    size = fixed or side or STANDARD_SIDE
    return Network(net=net, name=name, zoo=zoo, cut=family.cut(net), n_in=n_in, size=size, fixed_size=fixed)


def _load(row: Arch, **kwargs: Any) -> nn.Module:
    "Build the network. Raises a `HeadsError` that says which keys of a checkpoint, or which argument, did not fit."
    try:
        return row.build(**kwargs)
    except (RuntimeError, TypeError) as e:
        raise HeadsError(f"`arch`: {row.name} could not be built with {kwargs}: {e}") from e
    except ImportError as e:
        raise HeadsError(f"`arch`: {row.name} needs a package that is missing: {e}. Run: pip install {e.name}") from e
