"""Archs whose logits are not one classifier applied to one vector. timm's interface does not say so."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.coat import CoaT
from timm.models.crossvit import CrossVit
from timm.models.deepseek_vit import DeepseekVitEncoder
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientvim import EfficientViM, EfficientViMDistilled
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.hrnet import HighResolutionNet
from timm.models.mobilenetv5 import MobileNetV5, MobileNetV5Encoder
from timm.models.pit import PoolingVisionTransformer
from timm.models.qwen3_vit import Qwen3VitEncoder
from timm.models.volo import VOLO
from torch import Tensor, nn

from fastai_heads.archs.records import FEATURES, PRE_LOGITS

__all__ = ["ENCODERS", "NOT_EXPORTED", "RESIZED", "SIDEWAYS", "TIMM_ROWS", "TimmRow"]


@dataclass(frozen=True, kw_only=True)
class TimmRow:
    "The way in which a class of networks computes its logits from its taps."

    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None  # (net, taps) → logits; None: not from taps
    why: str  # its peculiarity, for people
    also: tuple[str, ...] = ()  # further parameters of the classifier, besides those in timm's `pretrained_cfg`


def one_per_branch(net: CrossVit, taps: dict[str, Tensor]) -> Tensor:
    "Compute CrossViT's logits: the mean over the branches' classifiers. Each reads its part of the vector."
    parts = taps[PRE_LOGITS].split([head.in_features for head in net.head], dim=1)
    return torch.mean(torch.stack([head(x) for head, x in zip(net.head, parts)], dim=0), dim=0)


def sum_by_weight(heads: nn.ModuleList, weights: Tensor, vector: Tensor) -> Tensor:
    "Sum the answers of classifiers with learned weights. Each classifier reads its part of the vector."
    parts = vector.split([head.in_features for head in heads], dim=1)
    weights = weights.softmax(-1)
    return torch.stack([weights[i] * head(x) for i, (head, x) in enumerate(zip(heads, parts))]).sum(0)


def one_per_stage(net: EfficientViM, taps: dict[str, Tensor]) -> Tensor:
    "Compute EfficientViM's logits: one classifier per stage."
    return sum_by_weight(net.heads, net.weights, taps[PRE_LOGITS])


def one_per_stage_distilled(net: EfficientViMDistilled, taps: dict[str, Tensor]) -> Tensor:
    "Compute the logits of the distilled EfficientViM: the mean of two sums, each over one classifier per stage."
    first = sum_by_weight(net.heads, net.weights, taps[PRE_LOGITS])
    return (first + sum_by_weight(net.heads_dist, net.weights_dist, taps[PRE_LOGITS])) / 2


def with_token_labels(net: VOLO, taps: dict[str, Tensor]) -> Tensor:
    "Compute VOLO's logits: those of the class token, plus half of the maximum of each class over all patches."
    out = net.head(taps[PRE_LOGITS])
    if net.aux_head is None:
        return out
    return out + 0.5 * net.aux_head(taps[FEATURES].flatten(2).transpose(1, 2)).max(1)[0]


TWO_TOKENS = TimmRow(why="two tokens, each with a classifier; `pre_logits` is the mean of the two tokens")

TIMM_ROWS: dict[type[nn.Module], TimmRow] = {
    VisionTransformerDistilled: TWO_TOKENS,
    PoolingVisionTransformer: TWO_TOKENS,
    CrossVit: TimmRow(logits=one_per_branch, why="a classifier per branch, on its part of `pre_logits`"),
    EfficientViM: TimmRow(
        logits=one_per_stage, why="a weighted classifier per stage, on its part of `pre_logits`", also=("weights",)
    ),
    EfficientViMDistilled: TimmRow(
        logits=one_per_stage_distilled,
        why="two weighted classifiers per stage, on its part of `pre_logits`",
        also=("weights", "weights_dist"),
    ),
    VOLO: TimmRow(logits=with_token_labels, why="a second classifier reads the patches, which are in `features`"),
}
"By class, as the class has the forward code. All others have one classifier, or the mean of several, on one vector."

ENCODERS = frozenset({DeepseekVitEncoder, Gemma4VitEncoder, MobileNetV5Encoder, Qwen3VitEncoder})
"Networks without a classifier. They have no vector for it, either."

SIDEWAYS = frozenset({CoaT, CrossVit, EfficientViM, EfficientViMDistilled, HighResolutionNet, PoolingVisionTransformer})
"""Networks whose forward code also computes branches that a tap does not depend on. These branches cannot be taken off
without a change of that code. They are frozen, so that no parameter waits for a gradient."""

RESIZED: dict[type[nn.Module], str] = dict.fromkeys(
    (MobileNetV5, MobileNetV5Encoder), "its last map has 16×16 cells, whatever the image's size"
)
"Networks that resize their last map. Its stride is the declared one at the arch's own size alone."

NOT_EXPORTED: dict[type[nn.Module], str] = dict.fromkeys(
    (Gemma4VitClassifier, Gemma4VitEncoder), "its forward code asks for the largest position with `.item()`"
)
"Networks that `torch.export` does not accept."
