"""A row of the registry, which describes the inside of a family of networks."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fastai_heads.archs.steps import Step, StepsCut

__all__ = ["Family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    "Networks that share a class and its forward code."

    name: str  # for people
    module: type[nn.Module]  # the class of its networks
    steps: tuple[Step, ...] | Callable[[nn.Module], tuple[Step, ...]]  # the forward code, or a function that lists it
    classifier: tuple[str, ...] | Callable[[nn.Module], tuple[str, ...]]  # paths of the layers that read `pre_logits`
    late: str = ""  # the first step of the late parameter group; '' cuts the depth in halves
    fixed_size: Callable[[nn.Module], int] | None = None  # the only image side that it takes; None: any
    no_vector: str = ""  # the reason, if it has no `pre_logits`
    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None  # (net, taps) → logits without `pre_logits`
    expands: str = ""  # name of an attribute; if it is true, the forward code makes three channels of one

    def cut(self, net: nn.Module) -> StepsCut:
        "Say how to follow this network."
        steps = self.steps(net) if callable(self.steps) else self.steps
        classifier = self.classifier(net) if callable(self.classifier) else self.classifier
        return StepsCut(steps, classifier, self.late, self.no_vector, self.logits)
