"""What is known about a cut: the taps, the layers taken off, and how a network was found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

__all__ = ["FEATURES", "INPUT", "PRE_LOGITS", "Cut", "Level", "Measured", "Network", "Removed", "TapPoint", "describe"]

INPUT, FEATURES, PRE_LOGITS = "input", "features", "pre_logits"
"The taps that do not carry a module's name: the batch, the last map, the vector the classifier reads."


@dataclass(frozen=True)
class Level:
    """A map at a stride, for heads that read several: where the arch has none at just that stride, one is made of the
    map that is nearest. See `Body.level_source`."""

    stride: int  # input pixels per cell
    optional: bool = False  # taken where the arch has it, never made

    def __repr__(self) -> str:
        return str(self.stride)


@dataclass(frozen=True)
class Removed:
    "A module of the pretrained network that is not part of the body."

    name: str  # its path in the arch
    type: str  # its class
    layers: int  # modules without children in it
    params: int  # numbers in its parameters


@dataclass(frozen=True)
class TapPoint:
    "A place in an arch whose output a head may read."

    name: str  # what a head's `tap` says
    module: str  # path of the module (or name of the operation) that makes it
    channels: int | None = None  # width of the tensor
    stride: int | None = None  # input side / map side; None for a vector
    params: int | None = None  # numbers in the body that ends here, None where that is not known


@dataclass(frozen=True)
class Measured:
    "What one run without weights told about a network."

    taps: tuple[TapPoint, ...]  # from the input to the classifier, measured
    map_modules: frozenset[str]  # modules without which there is no map
    head_modules: frozenset[str]  # modules that only `pre_logits` needs
    by_hand: tuple[TapPoint, ...] = ()  # modules that a tap may name though they are not listed


class Cut(Protocol):
    "How a network is followed from its input to its taps. Two kinds: by steps, and by timm's interface."

    classifier: tuple[str, ...]
    "Paths of what reads `pre_logits`."
    no_vector: str
    "Why there is no `pre_logits`, where there is none."
    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None
    "How the classifiers make logits of the taps, where it is not one classifier, or the mean of two, on one vector."
    unproved: str
    "Why no tap gives the logits, where none does."

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Every tap asked for, in one pass that ends at the furthest."

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "All taps with channels and strides, and the modules that they need."

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...],
              careful: bool = False) -> None:  # fmt: skip
        """Takes off, in place, all that the taps do not need. A careful cut leaves what the code asks for, though it
        does not call it."""

    def checkpointed(self, net: nn.Module) -> "Cut":
        "The same, computing activations again in the backward pass."

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "The parameters in two groups, early and late, each once."


@dataclass
class Network:
    "An arch that was found and built, before it is cut."

    net: nn.Module  # the whole network, classifier included
    name: str  # for messages: 'resnet18'
    zoo: str  # where the name was found: 'timm', 'torchvision', 'fastai', 'registered', 'module'
    cut: Cut  # how its forward code is followed
    n_in: int = 3  # channels of the image
    mean: tuple[float, ...] | None = None  # normalisation of the weights in use
    std: tuple[float, ...] | None = None
    size: int = 224  # side of the image that the arch is measured at
    fixed_size: int | None = None  # side of the only image it takes
    least_size: int | None = None  # side declared as the smallest
    weights: str = ""  # which weights are in use, '' for random ones

    @property
    def shape(self) -> tuple[int, int, int, int]:
        "Of the batch that it is measured with; two items, so that batch norm can take it."
        return (2, self.n_in, self.size, self.size)


def describe(
    name: str,  # path in the arch
    module: nn.Module | nn.Parameter,  # what was taken off
) -> Removed:
    "The record of a module, or of a bare parameter, that was taken off."
    if isinstance(module, nn.Parameter):
        return Removed(name, "Parameter", 0, module.numel())
    layers = sum(1 for m in module.modules() if not any(True for _ in m.children()))
    return Removed(name, type(module).__name__, layers, sum(p.numel() for p in module.parameters()))
