"""The answer of a probe as a head gives it: what its last linear layer is to give, and what the head makes of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastai_heads.data.missing import labelled
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.regression import InUnit
from fastai_heads.heads.spec import HeadSpec

__all__ = ["head_answer", "linear_targets"]

_EDGE = 0.01  # a target at the end of `y_range` counts as this far inside: a sigmoid never reaches it


def linear_targets(
    spec: HeadSpec,  # fitted
    labels: Tensor,  # (n, …) encoded; of a mask (n,) codes
) -> Tensor:  # (n, k) float64, NaN where there is no label
    "Return what the layer before any sigmoid or unit is to give: one-hot classes, tags, standardised numbers."
    if not labels.is_floating_point() and labels.ndim == 1:
        known = (labels >= 0) & (labels < spec.n_out)
        classes = F.one_hot(labels.where(known, 0), spec.n_out).double()
        return classes.masked_fill(~known[:, None], torch.nan)
    y = labels.double().flatten(1) if labels.ndim > 1 else labels.double()[:, None]
    y = y.masked_fill(~labelled(labels)[:, None], torch.nan)
    if isinstance(spec, MultiLabelHead):
        return y
    if spec.y_range is not None:
        low, high = spec.y_range
        return torch.logit((y - low) / (high - low), eps=_EDGE)
    unit = _unit(spec)
    return y if unit is None else (y - unit.mean.double()) / unit.deviation.double()


def head_answer(
    spec: HeadSpec,  # fitted
    linear: Tensor,  # (n, k) what the linear layer gives
) -> Tensor:  # (n, k) as the head's module does
    "Return what a head makes of its last linear layer's output."
    linear = linear.float()
    if not isinstance(spec, PooledSpec) or isinstance(spec, ClassificationHead | MultiLabelHead):
        return linear - 0.5  # above zero where the answer is rather yes
    unit = _unit(spec)
    if unit is not None:
        return unit(linear)
    if spec.y_range is None:
        return linear
    low, high = spec.y_range
    return linear.sigmoid() * (high - low) + low


def _unit(spec: PooledSpec) -> InUnit | None:
    "Make the layer that brings a number into the user's unit, where the head has one."
    statistics = getattr(spec, "standardize", False)
    return None if statistics is False else InUnit(*statistics, y_range=spec.y_range)
