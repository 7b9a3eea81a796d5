"""Records of a cut: its taps, the layers that it takes off, and the network that was found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["FEATURES", "INPUT", "PRE_LOGITS", "Cut", "Level", "Measured", "Network", "Removed", "TapPoint", "describe"]

INPUT, FEATURES, PRE_LOGITS = "input", "features", "pre_logits"
"Three taps do not have a module's name: the batch, the last map, and the vector that the classifier reads."


@dataclass(frozen=True)
class Level:
    """A map at a stride, for heads that read several. If the arch has no map at exactly this stride, one is made of
    the map with the nearest stride. See `Body.level_source`."""

    stride: int  # input pixels per cell
    optional: bool = False  # read if the arch has it, and never made

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

    name: str  # the name in a head's `tap`
    module: str  # path of the module, or name of the operation, that makes it
    channels: int | None = None  # width of the tensor
    stride: int | None = None  # input side / map side; None for a vector
    params: int | None = None  # numbers in the body that ends here, None if that is not known
    sequence: bool = False  # a vector for each token of a text

    @property
    def place(self) -> str:
        "Say what stands there: a map by its stride, a vector, or a sequence."
        return f"stride {self.stride}" if self.stride is not None else "a sequence" if self.sequence else "a vector"


@dataclass(frozen=True)
class Measured:
    "The facts that one run without weights gave about a network."

    taps: tuple[TapPoint, ...]  # from the input to the classifier, measured
    map_modules: frozenset[str]  # modules without which there is no map
    head_modules: frozenset[str]  # modules that only `pre_logits` needs
    by_hand: tuple[TapPoint, ...] = ()  # modules that are not listed, and that a tap may still name


class Cut(Protocol):
    "The way to follow a network from its input to its taps. There are two kinds: by steps, and by timm's interface."

    classifier: tuple[str, ...]
    "Paths of the layers that read `pre_logits`."
    no_vector: str
    "The reason, if there is no `pre_logits`."
    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None
    "(net, taps) → logits. None for the usual case: one classifier, or the mean of two, on one vector."
    unproved: str
    "The reason, if no tap gives the logits."

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Compute the chosen taps in one pass, which ends at the furthest of them."

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Find all taps with their channels and strides, and the modules that they need."

    def prune(
        self,
        net: nn.Module,
        taps: tuple[str, ...],
        measured: Measured,
        shape: tuple[int, ...],
        careful: bool = False,  # leave also what the code asks for without calling it
    ) -> None:
        "Take off, in place, all that the taps do not need."

    def add_checkpoints(self, net: nn.Module) -> "Cut":
        "Return the same cut, which computes activations again in the backward pass."

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "Split the parameters into two groups, early and late, each parameter once."


@dataclass
class Network:
    "An arch that is found and built, before it is cut."

    net: nn.Module  # the whole network, classifier included
    name: str  # for messages: 'resnet18'
    zoo: str  # where the name was found: 'timm', 'torchvision', 'fastai', 'registered', 'module'
    cut: Cut  # the way to follow its forward code
    n_in: int = 3  # channels of the image
    mean: tuple[float, ...] | None = None  # normalisation of the weights in use
    std: tuple[float, ...] | None = None
    size: int = 224  # side of the image that the arch is measured at
    fixed_size: int | None = None  # side of the only image it takes
    least_size: int | None = None  # side declared as the smallest
    weights: str = ""  # name of the weights in use, '' for random ones
    options: Mapping[str, Any] = field(default_factory=dict)  # what the arch was built with

    @property
    def shape(self) -> tuple[int, int, int, int]:
        "Shape of the batch that the arch is measured with. It has two items, as batch norm needs more than one."
        return (2, self.n_in, self.size, self.size)


def describe(
    name: str,  # path in the arch
    module: nn.Module | nn.Parameter,  # the module or parameter that was taken off
) -> Removed:
    "Describe a module, or a bare parameter, that was taken off."
    if isinstance(module, nn.Parameter):
        return Removed(name, "Parameter", 0, module.numel())
    layers = sum(1 for m in module.modules() if not any(True for _ in m.children()))
    return Removed(name, type(module).__name__, layers, sum(p.numel() for p in module.parameters()))
