"""A head of the user's own."""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape, has_shape

__all__ = ["CustomHead"]

_BY_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
_BY_ELEMENT_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
"Of torch's losses those that compare number by number."


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
    decode: InitVar[Callable[[Tensor], Tensor] | None] = None  # the prediction (B, …), activated where the loss says
    # how, to what is said of it, at best in the form of the target; None: by the kind, else the prediction itself
    decoder: Callable[[Tensor], Tensor] | None = field(default=None, init=False)  # what `decode` was given

    def __post_init__(self, decode: Callable | None) -> None:
        super().__post_init__()
        if not callable(self.module):
            raise HeadsError(
                f"`module` of {self.label} is an nn.Module or a function that makes one, found {self.module!r}."
            )
        if self.like is not None and not isinstance(self.like, HeadSpec):
            raise HeadsError(f"`like` of {self.label} is a spec such as `ClassificationHead()`, found {self.like!r}.")
        owner = getattr(decode, "__self__", None)  # `dataclasses.replace` hands on the method of the spec before
        decode = owner.decoder if isinstance(owner, CustomHead) else decode
        if decode is not None and not callable(decode):
            raise HeadsError(f"`decode` of {self.label} is a function of the prediction, or None, found {decode!r}.")
        object.__setattr__(self, "decoder", decode)

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        """As for every head; without `like`, a loss is needed where the target's kind has no default head. With a loss
        of its own any `n_out` goes, and None is what the module turns out to give."""
        like = self.like
        if like is None and (self.loss is None or target.kind != "unknown"):
            like = default_head(target)
            like = replace(like, standardize=False) if isinstance(like, RegressionHead) else like
        spec = self if self.loss is not None else super().fit(target, labels)
        return spec if like is None else replace(spec, like=like.fit(target, labels))

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        "That of the target's kind, or with a loss of its own any."
        return None if self.loss is not None or self.like is None else self.like.output_shape

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

    def default_loss(self) -> Callable:
        return self.like.loss_func() if self.like is not None else super().default_loss()

    def default_metrics(self) -> Sequence[Callable]:
        "Those of the target's kind, where the outputs are as many as it has."
        kind = self.like
        return () if kind is None or (self.loss is not None and self.n_out != kind.n_out) else kind.default_metrics()

    def train_loss(self, loss_func: Callable, pred: Tensor, targ: Tensor) -> Tensor:
        "A loss of its own gets prediction and target as they are; torch's by element one shape for both."
        return (self._trained_as or super()).train_loss(loss_func, pred, self._as_taken(loss_func, pred, targ))

    def item_loss(self, loss_func: Callable, pred: Tensor, targ: Tensor) -> Tensor:
        "As of `train_loss`."
        return (self._trained_as or super()).item_loss(loss_func, pred, self._as_taken(loss_func, pred, targ))

    def empty(self) -> Tensor:
        return super().empty() if self.loss is not None else (self.like or super()).empty()

    def mask(self, targ: Tensor) -> Tensor:
        return (self.like or super()).mask(targ)

    def activation(self, loss_func: Callable, pred: Tensor) -> Tensor:
        "As the target's kind where the prediction has its shape, else as the loss says."
        kind = None if self.loss is not None and self.decoder is not None else self._kind_of(pred)
        return (kind or super()).activation(loss_func, pred)

    def in_form(self, decoded: Tensor) -> bool:
        "Told by what the target's kind would decode to."
        if self.like is None or self.like.output_shape is None:
            return True
        own = self.like.loss_func()
        blank = torch.zeros(1, *(size or 1 for size in self.like.output_shape))
        form = self.like.decode(own, self.like.activation(own, blank))
        sizes = None in self.like.output_shape or form.shape[1:] == decoded.shape[1:]
        return form.ndim == decoded.ndim and sizes and decoded.is_floating_point() <= form.is_floating_point()

    def _as_taken(self, loss_func: Callable, pred: Tensor, targ: Tensor) -> Tensor:
        "The target in the prediction's shape for torch's losses by element, which broadcast where shapes differ."
        by_element = isinstance(loss_func, _BY_ELEMENT) or loss_func in _BY_ELEMENT_FUNCTIONS
        return targ.reshape(pred.shape) if by_element and targ.numel() == pred.numel() else targ

    @property
    def _trained_as(self) -> HeadSpec | None:
        "The head that says how its loss is taken."
        return self.like if self.loss is None else None

    def _kind_of(self, pred: Tensor) -> HeadSpec | None:
        "The head of the target's kind, where a prediction has its shape."
        shape = None if self.like is None else self.like.output_shape
        return self.like if self.loss is None or (shape is not None and has_shape(pred, shape)) else None


def _decode(spec: CustomHead, loss_func: Callable, pred: Tensor) -> Tensor:
    "By `decode=`; else as the target's kind where the prediction has its shape; else the prediction itself."
    if spec.decoder is not None:
        return spec.decoder(pred)
    kind = spec._kind_of(pred)
    return HeadSpec.decode(spec, loss_func, pred) if kind is None else kind.decode(loss_func, pred)


CustomHead.decode = _decode  # set here, as a dataclass takes what its body names so for the default of `decode=`
