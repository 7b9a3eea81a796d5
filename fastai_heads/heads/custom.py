"""A head of the user's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.tasks.own import OwnTask
from fastai_heads.tasks.task import Task

__all__ = ["CustomHead"]


@dataclass(frozen=True)
class CustomHead(HeadSpec):
    """Any module as a head: `CustomHead(module)`, or a function of the taps' widths that makes one.

    Without `loss` it is a head of its target's kind: loss, metrics and decoding are those of `like`, and the module
    gives what they take. A module is used as it is, with its weights.

    With `loss` the module gives what the loss takes, in any number: a mean and a variance, quantiles, logits of an
    ordered scale. The loss gets prediction and target as they are. Where the prediction has the shape of the target's
    kind it is decoded as that kind is, else it stands for itself unless `decode` says how."""

    module: (
        nn.Module | Callable[..., nn.Module]
    )  # takes the taps' tensors; or a function of their channels that makes it
    like: HeadSpec | None = None  # loss, metrics and decoding; None: the default head of the target's kind
    decode: Callable[[Tensor], Tensor] | None = None  # the prediction (B, …), activated where the loss says how, to
    # what is said of it, at best in the form of the target; None: by the kind, else the prediction itself

    brings_module: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.module):
            raise HeadsError(
                f"`module` of {self.label} is an nn.Module or a function that makes one, found {self.module!r}."
            )
        if self.like is not None and not isinstance(self.like, HeadSpec):
            raise HeadsError(f"`like` of {self.label} is a spec such as `ClassificationHead()`, found {self.like!r}.")
        if self.decode is not None and not callable(self.decode):
            raise HeadsError(
                f"`decode` of {self.label} is a function of the prediction, or None, found {self.decode!r}."
            )

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        """Fit as every head does. Without `like`, a loss is needed where the target's kind has no default head. With a
        loss of its own any `n_out` goes, and None is what the module turns out to give."""
        like = self.like
        if like is None and (self.loss is None or target.kind != "unknown"):
            like = default_head(target)
            like = replace(like, standardize=False) if isinstance(like, RegressionHead) else like
        spec = self if self.loss is not None else super().fit(target, labels)
        return spec if like is None else replace(spec, like=like.fit(target, labels))

    def infer_n_out(self, target: Target) -> int | None:
        "Let the module decide; where neither the target nor the spec tells, one number per image is taken."
        return target.n_out if target.n_out is not None or self.n_out is not None else 1

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        if isinstance(self.module, nn.Module):
            return self.module
        channels = ", ".join(str(t.channels) for t in taps)
        try:
            module = self.module(*(t.channels for t in taps))
        except Exception as error:  # it is the user's, and may raise anything
            raise HeadsError(
                f"`module` of {self.label} is an nn.Module, or a function that makes one of the channels of what it "
                f"reads; called with {channels} it raised {type(error).__name__}: {error}. Such a function is "
                "`lambda channels: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, "
                f"{self.n_out or 1}))`."
            ) from error
        if not isinstance(module, nn.Module):
            raise HeadsError(f"`module` of {self.label} is a function that makes an nn.Module, and it made {module!r}.")
        return module

    def task(self, target: Target) -> Task:
        "Return the task of `like`, with the loss and the decoding that are the user's own."
        kind = Task(target, self.n_out, self.loss) if self.like is None else self.like.task(target)
        if self.loss is None and self.decode is None:
            return kind
        return OwnTask(target, self.n_out, self.loss, kind, self.decode)
