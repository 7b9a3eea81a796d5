"""Boxes with labels, any number per image."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from fastai_heads.archs.records import INPUT, Level
from fastai_heads.errors import HeadsError, did_you_mean, first_line
from fastai_heads.heads.spec import HeadSpec, TapShape, is_number
from fastai_heads.tasks.detection import DetectionTask
from fastai_heads.tasks.detection_loss import Grid, pack

__all__ = ["DetectionHead"]

KINDS = ("retinanet", "fcos")


def group_norm(
    channels: int,  # of a map, a multiple of 32
) -> nn.GroupNorm:
    "Make the norm of FCOS's head and of torchvision's `retinanet_resnet50_fpn_v2`. Without it little is learned."
    return nn.GroupNorm(32, channels)


@dataclass(frozen=True, kw_only=True)
class DetectionHead(HeadSpec):
    """Boxes with labels. torchvision's pyramid, heads, matching, losses and suppression over any body: with the same
    features and weights, losses, boxes, scores and labels are those of its `RetinaNet` and `FCOS`.

    The maps are the body's, under a pyramid of the head's own, or with `pyramid=False` those of a pyramid `Trunk` that
    other heads read, too (`tap='neck'`).

    The prediction is one tensor (B, anchors, numbers), which only the loss reads; activated it is
    (B, detections, 6): x1, y1, x2, y2 from −1 to 1 over the image, the class's index (−1: no box), the score.
    Sources: Lin et al. 2017 (RetinaNet), Tian et al. 2019 (FCOS)."""

    kind: str = "retinanet"  # or 'fcos', which has no anchors and a GroupNorm
    tap: str | int | tuple[str | int, ...] = (8, 16, 32)  # the maps under the pyramid, fine to coarse
    pyramid: bool = True  # torchvision's feature pyramid over the maps; False: they are one, as a pyramid `Trunk` gives
    extra_levels: int | None = None  # of its pyramid on top: 0, 1 (pooled) or 2 (strided convolutions); None: 2
    channels: int | None = None  # width of its pyramid, a multiple of 64 for the norm; None: 256
    anchor_scale: float = 4.0  # 'retinanet': the smallest anchor's side in strides of its level
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # 'retinanet': heights over widths of the anchors
    norm_layer: Callable[[int], nn.Module] | None = group_norm  # 'retinanet': in its head; as in torchvision's v2
    score_thresh: float | None = None  # least score of a detection; None: torchvision's 0.05 and 0.2
    nms_thresh: float | None = None  # IoU from which on boxes of one class are one; None: torchvision's 0.5 and 0.6
    detections_per_img: int = 100  # at most
    topk_candidates: int = 1000  # at most, of each level, before suppression
    decode_score: float = 0.5  # least score of a box that `predict` and `show_results` give

    kinds: ClassVar[frozenset[str]] = frozenset({"detection"})
    predicts: ClassVar[type[DetectionTask]] = DetectionTask

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise HeadsError(
                f"`kind` of {self.label} is 'retinanet' or 'fcos', found {self.kind!r}."
                + did_you_mean(str(self.kind), KINDS)
            )
        self.check("loss", self.loss is None, "torchvision's for its `kind`, and no other")
        self.check("pyramid", isinstance(self.pyramid, bool), "True or False")
        own = self.pyramid or (self.extra_levels is None and self.channels is None)
        self.check("pyramid", own, "True with `extra_levels` or `channels`, which are of its own pyramid")
        self.check("extra_levels", self.extra_levels in (None, 0, 1, 2), "0, 1 or 2")
        width = self.channels is None or (_whole(self.channels, self._group) and self.channels % self._group == 0)
        self.check("channels", width, f"a multiple of {self._group}")
        self.check("anchor_scale", is_number(self.anchor_scale, least=0.125), "a number of at least 0.125")
        ratios = isinstance(self.aspect_ratios, tuple) and bool(self.aspect_ratios)
        ratios = ratios and all(is_number(r, least=0.01) for r in self.aspect_ratios)
        self.check("aspect_ratios", ratios, "a tuple of numbers above 0")
        fits = self.norm_layer is None or callable(self.norm_layer)
        fits = fits and (self.kind == "retinanet" or self.norm_layer is group_norm)
        self.check("norm_layer", fits, "a function of the channels or None, for 'retinanet' alone: 'fcos' has its own")
        for field in ("score_thresh", "nms_thresh", "decode_score"):
            value = getattr(self, field)
            optional = value is None and field != "decode_score"
            self.check(field, optional or (is_number(value, least=0) and value <= 1), "a number from 0 to 1")
        for field in ("detections_per_img", "topk_candidates"):
            self.check(field, _whole(getattr(self, field), 1), "a whole number of at least 1")

    @property
    def taps(self) -> tuple[str | int, ...]:
        "The maps, and last the images, whose size places the anchors."
        return (*super().taps, INPUT)

    @property
    def reads(self) -> tuple[str | int | Level, ...]:
        "The same, as the body resolves it."
        return (*super().reads, INPUT)

    @property
    def _group(self) -> int:
        "What the width of the maps is a multiple of: two to a group, as torch refuses a group of one cell."
        return 64 if self.norm_layer is group_norm else 1

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        maps = taps[:-1]
        self._check_maps(maps)
        strides = [t.stride for t in maps]
        width = (self.channels or 256) if self.pyramid else maps[0].channels
        if self.pyramid:
            extra = 2 if self.extra_levels is None else self.extra_levels
            top = [None, LastLevelMaxPool(), LastLevelP6P7(maps[-1].channels, width)][extra]
            pyramid: nn.Module = FeaturePyramidNetwork([t.channels for t in maps], width, top)
            strides += [strides[-1] * 2 ** (i + 1) for i in range(extra)]
        else:
            pyramid = nn.Identity()
        head = FCOSHead(width, 1, self.n_out) if self.kind == "fcos" else self._retinanet(width)
        return Detector(pyramid, head, strides)

    def _retinanet(self, width: int) -> nn.Module:
        "Make torchvision's head; `norm_layer` is the user's, and may raise anything."
        try:
            return RetinaNetHead(width, 3 * len(self.aspect_ratios), self.n_out, self.norm_layer)
        except Exception as error:
            raise HeadsError(
                f"`norm_layer` of {self.label} is a function of the {width} channels that makes an nn.Module, found "
                f"{self.norm_layer!r}: {first_line(error)}."
            ) from error

    def _check_maps(self, maps: tuple[TapShape, ...]) -> None:
        "Maps, fine to coarse; where they are a pyramid already, of one width."
        found = ", ".join(f"{t.name!r} at {t.stride}" for t in maps)
        for before, tap in zip((None, *maps), maps):
            if tap.stride is None:
                raise HeadsError(
                    f"`tap` of {self.label}: {tap.name!r} is a vector, and boxes are looked for in maps.", tap=tap.name
                )
            if before is not None and tap.stride <= before.stride:
                raise HeadsError(f"`tap` of {self.label} goes from fine to coarse strides, found {found}.")
        widths = [t.channels for t in maps]
        if not self.pyramid and (len(set(widths)) > 1 or widths[0] % self._group):
            raise HeadsError(
                f"`pyramid=False` of {self.label} reads the levels of a pyramid, of one width, a multiple of "
                f"{self._group}; found {found} with {widths} channels. `pyramid=True` makes one of them."
            )


class Detector(nn.Module):
    """A feature pyramid, then torchvision's head on every level. It reads maps and their images, and answers as `pack`
    does."""

    def __init__(
        self,
        pyramid: nn.Module,  # {name: map} → {name: map}, all of one width
        head: nn.Module,  # of torchvision: maps → its outputs
        strides: Sequence[int],  # of the pyramid's levels
    ):
        super().__init__()
        self.pyramid, self.head, self.strides = pyramid, head, tuple(strides)

    def forward(self, *taps: Tensor) -> Tensor:
        *maps, images = taps
        found = list(self.pyramid(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())
        levels = [Grid(*f.shape[-2:], stride) for f, stride in zip(found, self.strides)]
        return pack(self.head(found), levels, tuple(images.shape[-2:]))


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and is_number(value, least=least)
