"""Smaller configurations of large networks, by class. They have the same forward code with fewer blocks and narrower
layers. The values of an arch that is too large to run are checked in its smaller configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.models.beit import Beit
from timm.models.byobnet import ByoBlockCfg
from timm.models.cait import Cait
from timm.models.coat import CoaT
from timm.models.convnext import ConvNeXt
from timm.models.crossvit import CrossVit
from timm.models.davit import DaVit
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.eva import Eva
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.maxxvit import MaxxVit
from timm.models.mobilenetv5 import MobileNetV5
from timm.models.naflexvit import NaFlexVit
from timm.models.nasnet import NASNetALarge
from timm.models.nfnet import NormFreeNet
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from timm.models.rdnet import RDNet
from timm.models.resnet import ResNet
from timm.models.sequencer import Sequencer2d
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tnt import TNT
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from fastai_heads.archs.source import Request

__all__ = ["SHRUNKEN", "SHRUNKEN_ARCHS", "STAND_INS", "Smaller", "smaller"]

VIT = {"depth": 2, "embed_dim": 128, "num_heads": 2}
FOUR_STAGES = (1, 1, 1, 1)

SHRUNKEN: dict[type[nn.Module], Mapping[str, Any]] = {
    Beit: VIT,
    Cait: VIT,
    CoaT: {"embed_dims": (32, 32, 32, 32), "serial_depths": FOUR_STAGES, "parallel_depth": 1, "img_size": 64},
    ConvNeXt: {"depths": FOUR_STAGES, "dims": (16, 32, 64, 128)},
    CrossVit: {"embed_dim": (48, 96), "depth": ((1, 1, 1), (1, 1, 1), (1, 1, 1)), "num_heads": (2, 2)},
    DaVit: {"depths": FOUR_STAGES, "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    DeepseekVitClassifier: {**VIT, "img_size": 168},
    DeepseekVitEncoder: {**VIT, "img_size": 168, "out_features": 128},
    Eva: VIT,
    Gemma4VitClassifier: {**VIT, "img_size": 192, "intermediate_size": 256},
    Gemma4VitEncoder: {**VIT, "img_size": 192, "intermediate_size": 256},
    Hiera: {"stages": FOUR_STAGES, "embed_dim": 32, "num_heads": 1},
    HieraDet: {"stages": (1, 2, 2, 1), "embed_dim": 32, "num_heads": 1, "global_att_blocks": (4,)},
    MaxxVit: {"depths": FOUR_STAGES, "embed_dim": (32, 64, 96, 128), "stem_width": (16, 16)},
    MobileNetV5: {"channel_multiplier": 0.25},
    NaFlexVit: VIT,
    NASNetALarge: {"num_features": 576},
    NormFreeNet: {"depths": FOUR_STAGES, "channels": (32, 64, 96, 128), "group_size": 8},
    Qwen3VitClassifier: {**VIT, "img_size": 128},
    Qwen3VitEncoder: {**VIT, "img_size": 128},
    RDNet: {"num_blocks_list": (1, 1, 1, 1, 1, 1, 1)},
    ResNet: {"layers": FOUR_STAGES},
    Sequencer2d: {"layers": FOUR_STAGES, "embed_dims": (32, 64, 64, 64), "hidden_sizes": (8, 16, 16, 16)},
    SwinTransformer: {"depths": (2, 2, 2, 2), "embed_dim": 32, "num_heads": (1, 2, 4, 8)},
    SwinTransformerV2: {"depths": (2, 2, 2, 2), "embed_dim": 32, "num_heads": (1, 2, 4, 8)},
    SwinTransformerV2Cr: {"depths": (1, 1, 2, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8)},
    TNT: {"depth": 2, "embed_dim": 96, "num_heads_outer": 2},
    Twins: {"depths": FOUR_STAGES, "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    VisionTransformer: VIT,
    VisionTransformerSAM: {**VIT, "global_attn_indexes": (1,), "img_size": 256},
}
"Arguments of timm's constructors, by class."

STAND_INS: dict[str, str] = {
    "efficientnet_l2": "efficientnet_b0",
    "focalnet_huge_fl3": "focalnet_tiny_srf",
    "focalnet_huge_fl4": "focalnet_tiny_srf",
    "focalnet_xlarge_fl3": "focalnet_tiny_srf",
    "focalnet_xlarge_fl4": "focalnet_tiny_srf",
    "mvitv2_huge_cls": "mvitv2_small_cls",
    "regnet_y_128gf": "regnet_y_400mf",
    "regnety_1280": "regnety_004",
    "regnety_2560": "regnety_004",
    "resnet50x64_clip": "resnet50_clip",
    "resnet50x64_clip_gap": "resnet50_clip_gap",
    "resnetv2_101x3_bit": "resnetv2_50x1_bit",
    "resnetv2_152x4_bit": "resnetv2_50x1_bit",
    "tf_efficientnet_l2": "tf_efficientnet_b0",
    "vit_h_14": "vit_b_16",
    "vit_l_16": "vit_b_16",
    "vit_l_32": "vit_b_32",
    "xse_resnet152": "xse_resnet50",
}
"A smaller arch of the same class, for an arch whose own function fixes depth and width."

SHRUNKEN_ARCHS: dict[str, Mapping[str, Any]] = {
    "halonet_h1": {
        "stem_chs": 16,
        "blocks": tuple(ByoBlockCfg(type="self_attn", d=1, c=c, s=s, gs=0, br=1.0) for c, s in zip((32, 64), (1, 2))),
    },
    "fastvit_mci4": {"layers": (1, 1, 1, 1, 1), "embed_dims": (32, 64, 128, 128, 128)},
    "vit_5b_patch16_sapiens2": {"num_kv_heads": (2, 1)},
    "vit_giant_patch16_sapiens2": {"num_kv_heads": (2, 1)},
    "vit_huge_patch16_sapiens2": {"num_kv_heads": (2, 1)},
    "vit_large_patch16_sapiens2": {"num_kv_heads": (2, 1)},
    "vitamin_large2_224": {"embed_dim": 1024},
    "vitamin_large2_256": {"embed_dim": 1024},
    "vitamin_large2_336": {"embed_dim": 1024},
    "vitamin_large2_384": {"embed_dim": 1024},
    "vitamin_large_224": {"embed_dim": 1024},
    "vitamin_large_256": {"embed_dim": 1024},
    "vitamin_large_336": {"embed_dim": 1024},
    "vitamin_large_384": {"embed_dim": 1024},
    "vitamin_small_224": {"embed_dim": 384},
    "vitamin_xlarge_256": {"embed_dim": 1152},
    "vitamin_xlarge_336": {"embed_dim": 1152},
    "vitamin_xlarge_384": {"embed_dim": 1152},
}
"Arguments of single archs, which go before those of the class: a number per block, or a width that a stem fixes."


@dataclass(frozen=True)
class Smaller:
    "A smaller configuration: other arguments for the arch's own function, or another arch of its class."

    arch: str  # a name
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request(self) -> Request:
        "The request for it."
        return Request(self.arch, pretrained=False, kwargs=dict(self.kwargs))

    def __str__(self) -> str:
        return " ".join(f"{k}={v}".replace(" ", "") for k, v in self.kwargs.items()) or self.arch


def smaller(
    kind: type[nn.Module],  # class of the network
    name: str,  # of the arch
) -> Smaller | None:
    "Find a network's smaller configuration, None where there is none."
    if name in STAND_INS:
        return Smaller(STAND_INS[name])
    kwargs = {**SHRUNKEN.get(kind, {}), **SHRUNKEN_ARCHS.get(name, {})}
    return Smaller(name, kwargs) if kwargs else None
