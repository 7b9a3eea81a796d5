"""A row per family of torchvision's segmentation networks. The body is the backbone that the mask's head reads."""

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3

from fastai_heads.archs.family import Family
from fastai_heads.archs.records import FEATURES, INPUT
from fastai_heads.archs.steps import Step
from fastai_heads.archs.torchvision_rows import children, to_features

__all__ = ["SEGMENTATION"]

NO_VECTOR = "its head gives a mask and reads maps"


def backbone_steps(net: nn.Module) -> tuple[Step, ...]:
    "List the layers of the backbone as steps. The blocks, and the activation of a stem, are taps."
    steps = children(net, "backbone", lambda m: isinstance(m, nn.Sequential | nn.ReLU) or bool(list(m.children())))
    return to_features(steps)


def mask(net: FCN | DeepLabV3, taps: dict[str, Tensor]) -> Tensor:
    "Apply the mask's head to the last map, and resize its answer to the image."
    out = net.classifier(taps[FEATURES])
    return F.interpolate(out, size=taps[INPUT].shape[-2:], mode="bilinear", align_corners=False)


def mask_of_two(net: LRASPP, taps: dict[str, Tensor]) -> Tensor:
    "Apply LR-ASPP's head, which also reads an inner map, and resize its answer to the image."
    low = next(path for path, key in net.backbone.return_layers.items() if key == "low")
    out = net.classifier({"low": taps[f"backbone.{low}"], "high": taps[FEATURES]})
    return F.interpolate(out, size=taps[INPUT].shape[-2:], mode="bilinear", align_corners=False)


SEGMENTATION: tuple[Family, ...] = (
    Family(name="fcn", module=FCN, steps=backbone_steps, classifier=(), no_vector=NO_VECTOR, logits=mask),
    Family(name="deeplabv3", module=DeepLabV3, steps=backbone_steps, classifier=(), no_vector=NO_VECTOR, logits=mask),
    Family(name="lraspp", module=LRASPP, steps=backbone_steps, classifier=(), no_vector=NO_VECTOR, logits=mask_of_two),
)
"All rows. A network's row is found by its class."
