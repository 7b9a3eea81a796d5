"""A head of the user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape

__all__ = ["CustomHead"]


@dataclass(frozen=True)
class CustomHead(HeadSpec):
    """Any module as a head: `CustomHead(module)`, or a function of the taps' widths that makes one.

    Loss, metrics and decoding are those of `like`, by default of the target's kind; what the module returns must have
    the shape that they take. A module is used as it is, with its weights."""

    module: (
        nn.Module | Callable[..., nn.Module]
    )  # takes the taps' tensors; or a function of their channels that makes it
    like: HeadSpec | None = None  # loss, metrics and decoding; None: the default head of the target's kind

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.module):
            raise HeadsError(
                f"`module` of {self.label} is an nn.Module or a function that makes one, found {self.module!r}."
            )
        if self.like is not None and not isinstance(self.like, HeadSpec):
            raise HeadsError(f"`like` of {self.label} is a spec such as `ClassificationHead()`, found {self.like!r}.")

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "As for every head; without `like`, a loss is needed where the target's kind has no default head."
        like = self.like
        if like is None and (self.loss is None or target.kind != "unknown"):
            like = default_head(target)
            like = replace(like, standardize=False) if isinstance(like, RegressionHead) else like
        spec = super().fit(target, labels) if like is None else replace(super().fit(target, labels), like=None)
        return spec if like is None else replace(spec, like=like.fit(target, labels))

    @property
    def blends(self) -> bool:
        "As the head whose loss it takes."
        return self.like is None or self.like.blends

    @property
    def moves_with_image(self) -> bool:
        "As the head whose loss it takes."
        return self.like is not None and self.like.moves_with_image

    @property
    def by_batch(self) -> bool:
        "As the head whose loss it takes."
        return self.like is not None and self.like.by_batch

    def infer_n_out(self, target: Target) -> int | None:
        "The module decides; where neither the target nor the spec tells, one number per image is taken."
        return target.n_out if target.n_out is not None or self.n_out is not None else 1

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        if isinstance(self.module, nn.Module):
            return self.module
        module = self.module(*(t.channels for t in taps))
        if not isinstance(module, nn.Module):
            raise HeadsError(f"`module` of {self.label} is a function that makes an nn.Module, and it made {module!r}.")
        return module

    def default_loss(self) -> Callable:
        return self.like.loss_func() if self.like is not None else super().default_loss()

    def default_metrics(self) -> Sequence[Callable]:
        return self.like.default_metrics() if self.like is not None else ()

    def train_loss(self, loss_func: Callable, pred: Tensor, targ: Tensor) -> Tensor:
        return (self.like or super()).train_loss(loss_func, pred, targ)

    def item_loss(self, loss_func: Callable, pred: Tensor, targ: Tensor) -> Tensor:
        return (self.like or super()).item_loss(loss_func, pred, targ)

    def empty(self) -> Tensor:
        return (self.like or super()).empty()

    def mask(self, targ: Tensor) -> Tensor:
        return (self.like or super()).mask(targ)

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        return (self.like or super()).activation(loss_func, pred)

    def decode(self, loss_func: Callable, pred: Tensor) -> Tensor:
        return (self.like or super()).decode(loss_func, pred)
