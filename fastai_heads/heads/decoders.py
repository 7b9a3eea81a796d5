"""Decoders make one map of several: those of segmentation_models_pytorch (SMP), by name, and fastai's U-Net."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from fastai.layers import BatchNorm, ConvLayer, PixelShuffle_ICNR, ResBlock, apply_init
from fastai.vision.models.unet import UnetBlock
from torch import Tensor, nn

from fastai_heads.errors import HeadsError
from fastai_heads.tasks.smp import smp

__all__ = [
    "DECODERS",
    "DPT",
    "DYNAMIC_UNET",
    "DptDecoder",
    "DynamicDecoder",
    "PaddedDecoder",
    "SmpDecoder",
    "SmpKind",
    "make_decoder",
]

DYNAMIC_UNET, DPT = "dynamic_unet", "dpt"


@dataclass(frozen=True)
class SmpKind:
    "The way in which SMP's own model makes and feeds one of its decoders."

    module: str  # below `segmentation_models_pytorch.decoders`
    cls: str  # the decoder's class
    options: Mapping[str, Any] = field(default_factory=dict)  # defaults of SMP's model, where the class has none
    kernel: int = 1  # side of the last convolution
    levels: int = 5  # how many of the strides 2, 4, 8, 16, 32 it reads
    last: int = 32  # the stride of the deepest map that it takes: SMP dilates the encoder, here the map is resized
    divisible: bool = False  # it needs sides that 32 divides: the maps are padded, and the answer is cropped
    depth: str = "encoder_depth"  # the class's parameter for the number of levels; '' where it has none
    image_channels: int = 0  # of a level at the image's own stride that a head adds to it; SMP has none


_WIDTHS = {"decoder_channels": (256, 128, 64, 32, 16)}
_ASPP = {"out_channels": 256, "atrous_rates": (12, 24, 36), "aspp_dropout": 0.5}

DECODERS: dict[str, SmpKind] = {
    "unet": SmpKind("unet", "UnetDecoder", _WIDTHS, 3, depth="n_blocks", image_channels=16),
    "unetplusplus": SmpKind("unetplusplus", "UnetPlusPlusDecoder", _WIDTHS, 3, divisible=True, depth="n_blocks"),
    "manet": SmpKind("manet", "MAnetDecoder", _WIDTHS, 3, divisible=True, depth="n_blocks"),
    "linknet": SmpKind("linknet", "LinknetDecoder", divisible=True, depth="n_blocks"),
    "fpn": SmpKind("fpn", "FPNDecoder", divisible=True),
    "upernet": SmpKind("upernet", "UPerNetDecoder"),
    "segformer": SmpKind("segformer", "SegformerDecoder"),
    "pan": SmpKind("pan", "PANDecoder", {"decoder_channels": 32}, 3, last=16, divisible=True),
    "pspnet": SmpKind("pspnet", "PSPDecoder", kernel=3, last=8, depth=""),
    "deeplabv3": SmpKind("deeplabv3", "DeepLabV3Decoder", {**_ASPP, "aspp_separable": False}, last=8, depth=""),
    "deeplabv3plus": SmpKind(
        "deeplabv3",
        "DeepLabV3PlusDecoder",
        {**_ASPP, "aspp_separable": True, "output_stride": 16},
        last=16,
        divisible=True,
    ),
}


class PaddedDecoder(nn.Module):
    "A decoder that may need an image whose sides 32 divides. Its answer is then of the padded image."

    divisible = True

    def pad_size(
        self,
        size: Sequence[int],  # height and width of the image
    ) -> tuple[int, int]:  # of the image that the answer is of
        "Return the size of the image, or the next size that 32 divides where the decoder needs it."
        height, width = size
        return (-(-height // 32) * 32, -(-width // 32) * 32) if self.divisible else (height, width)


class SmpDecoder(PaddedDecoder):
    """One of SMP's decoders with its last convolution, initialised as in SMP. Its answer may be coarser than the image.

    With `image_channels=16` its U-Net also reads a level that the image gives, as Ronneberger et al. 2015 draw it
    (fig. 1). SMP's own has none, which costs small images most."""

    def __init__(
        self,
        kind: SmpKind,  # of `DECODERS`
        channels: Sequence[int],  # of the image, then at strides 2, 4, 8, 16, 32; 0 where there is no such map
        n_out: int,  # channels of the answer
        **options: Any,  # for SMP's decoder class, instead of its defaults; `image_channels`, where the kind has it
    ):
        super().__init__()
        self.kind, self.channels, self.divisible = kind, tuple(channels), kind.divisible
        width = options.pop("image_channels", 0) if kind.image_channels else 0
        if type(width) is not int or width < 0:
            raise HeadsError(f"`decoder_options`: 'image_channels' is a whole number of at least 0, found {width!r}.")
        self.level = ConvLayer(channels[0], width) if width else None
        channels = [channels[0], *([width] if width else []), *channels[1:]]
        cls = getattr(smp(f"decoders.{kind.module}.decoder"), kind.cls)
        known = [p for p in signature(cls).parameters if p not in ("encoder_channels", "in_channels", kind.depth)]
        _check_options(kind.cls, options, known)
        given = {**kind.options, **options, **({kind.depth: kind.levels} if kind.depth else {})}
        first = {"in_channels": channels[-1]} if "in_channels" in signature(cls).parameters else None
        self.decoder = cls(**(first or {"encoder_channels": list(channels)}), **given)
        self.last = nn.Conv2d(self._width(given, cls), n_out, kind.kernel, padding=kind.kernel // 2)
        init = smp("base.initialization")
        init.initialize_decoder(self.decoder)
        init.initialize_head(self.last)

    def _width(self, given: Mapping[str, Any], cls: type) -> int:
        "Say how many channels the decoder gives."
        names = ("decoder_channels", "out_channels", "segmentation_channels", "prefinal_channels")
        options = {n: p.default for n, p in signature(cls).parameters.items()} | dict(given)
        if cls.__name__ == "FPNDecoder":  # its merge policy may be to concatenate
            return self.decoder.out_channels
        width = next(options[n] for n in names if n in options)
        return width if isinstance(width, int) else width[-1]

    def forward(
        self,
        image: Tensor,  # (B, C, H, W)
        *maps: Tensor,  # the maps of the strides that exist, fine to coarse
    ) -> Tensor:  # (B, n_out, H / s, W / s) with the decoder's own s; H and W are padded where it needs that
        return self.last(self.decoder(self._features(image, maps)))

    def _features(self, image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Make what SMP's encoders give: the image, then a map per stride. A stride without a map gets one without
        channels."""
        sides, left = self.pad_size(image.shape[-2:]), list(maps)
        found = [_fit(image, sides) if self.divisible else image]
        found += [] if self.level is None else [self.level(image)]
        for level, channels in enumerate(self.channels[1:], 1):
            size = tuple(-(-side // 2**level) for side in sides)
            x = left.pop(0) if channels else image.new_zeros(len(image), 0, *size)
            found.append(_fit(x, size) if self.divisible else x)
        if self.kind.last != 32:
            size = tuple(-(-side // self.kind.last) for side in sides)
            found[-1] = F.interpolate(found[-1], size, mode="bilinear", align_corners=False)
        return found


class DptDecoder(PaddedDecoder):
    """SMP's decoder of DPT (Ranftl et al. 2021, "Vision transformers for dense prediction") with its last layers.

    It reads maps of any strides, four by default. They may be the levels of a pyramid, or four depths of a ViT, as in
    `tap=('input', 'blocks.2', 'blocks.5', 'blocks.8', 'blocks.11')`. A tap is a map and holds no class token: this is
    SMP's `decoder_readout='ignore'`."""

    def __init__(
        self,
        channels: Sequence[int],  # of the maps, in the order in which they are read
        strides: Sequence[int],  # of the maps: powers of two from 4 to 32
        n_out: int,  # channels of the answer
        **options: Any,  # SMP's: `intermediate_channels`, one for each map, and `fusion_channels`
    ):
        super().__init__()
        module, self.strides = smp("decoders.dpt.decoder"), tuple(strides)
        _check_options("DPTDecoder", options, ("intermediate_channels", "fusion_channels"))
        options = {"intermediate_channels": (256, 512, 1024, 1024), "fusion_channels": 256, **options}
        if len(options["intermediate_channels"]) != len(channels) or not set(strides) <= {4, 8, 16, 32}:
            raise HeadsError(
                f"`decoder='dpt'` reads {len(options['intermediate_channels'])} maps, one for each of its "
                f"`intermediate_channels`, at strides of 4, 8, 16 or 32; the taps are at {list(strides)}."
            )
        self.decoder = module.DPTDecoder(list(channels), list(strides), False, "ignore", **options)
        self.last = module.DPTSegmentationHead(options["fusion_channels"], n_out).head
        init = smp("base.initialization")
        init.initialize_decoder(self.decoder)
        init.initialize_head(self.last)

    def forward(
        self,
        image: Tensor,  # (B, C, H, W)
        *maps: Tensor,  # in the order of `strides`
    ) -> Tensor:  # (B, n_out, H / 2, W / 2) of the padded image
        height, width = self.pad_size(image.shape[-2:])
        found = [_fit(x, (height // stride, width // stride)) for x, stride in zip(maps, self.strides)]
        return self.last(self.decoder(found, [None] * len(found)))


def _check_options(decoder: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            raise HeadsError(f"`decoder_options`: SMP's {decoder} has no {name!r}. It has: {', '.join(known)}.")


def _fit(x: Tensor, size: tuple[int, int]) -> Tensor:
    "Pad with zeros below and to the right, or crop there."
    height, width = size
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


class SkipBlock(UnetBlock):
    "fastai's `UnetBlock`. It gets the skip connection as an argument, where fastai reads it from a hook."

    def forward(
        self,
        up_in: Tensor,  # (B, up_in_c, h, w) from below
        skip: Tensor,  # (B, x_in_c, H, W)
    ) -> Tensor:
        up_out = self.shuf(up_in)
        if skip.shape[-2:] != up_out.shape[-2:]:
            up_out = F.interpolate(up_out, skip.shape[-2:], mode="nearest")
        return self.conv2(self.conv1(self.relu(torch.cat([up_out, self.bn(skip)], dim=1))))


class DynamicDecoder(nn.Module):
    "fastai's `DynamicUnet` without its encoder, layer for layer. Source: `fastai.vision.models.unet.DynamicUnet`."

    def __init__(
        self,
        channels: Sequence[int],  # of the image, then of the maps, fine to coarse
        n_out: int,  # channels of the answer
        blur: bool = False,  # blur after upsampling, against checkerboard patterns
        blur_final: bool = True,  # in the last block too
        self_attention: bool = False,  # in the third block from the end
        last_cross: bool = True,  # the image itself joins before the last layers
    ):
        super().__init__()
        image, *skips, n = channels
        self.norm = nn.Sequential(BatchNorm(n), nn.ReLU())
        self.middle = nn.Sequential(ConvLayer(n, n * 2, norm_type=None), ConvLayer(n * 2, n, norm_type=None))
        self.blocks = nn.ModuleList()
        for i, skip in enumerate(reversed(skips)):
            final = i == len(skips) - 1
            options = {"blur": blur and (not final or blur_final), "self_attention": self_attention}
            options["self_attention"] &= i == len(skips) - 3
            self.blocks.append(SkipBlock(n, skip, None, final_div=not final, norm_type=None, **options))
            n = n // 2 + skip if not final else (n // 2 + skip) // 2
        self.shuffle = PixelShuffle_ICNR(n, norm_type=None)
        n += image if last_cross else 0
        self.cross = ResBlock(1, n, n, norm_type=None) if last_cross else None
        self.last = ConvLayer(n, n_out, ks=1, act_cls=None, norm_type=None)
        apply_init(nn.Sequential(self.middle, *([self.cross] if last_cross else [])), nn.init.kaiming_normal_)

    def forward(
        self,
        image: Tensor,  # (B, C, H, W)
        *maps: Tensor,  # fine to coarse
    ) -> Tensor:  # (B, n_out, H, W)
        x = self.middle(self.norm(maps[-1]))
        for block, skip in zip(self.blocks, reversed(maps[:-1])):
            x = block(x, skip)
        x = self.shuffle(x)
        if x.shape[-2:] != image.shape[-2:]:
            x = F.interpolate(x, image.shape[-2:], mode="nearest")
        return self.last(x if self.cross is None else self.cross(torch.cat([x, image], dim=1)))


def make_decoder(
    decoder: nn.Module | Callable[..., nn.Module],  # a module, or a function of the channels that makes one
    channels: Sequence[int],  # of everything that the head reads
) -> nn.Module:
    "Make a decoder of the user's own: take the module, or call the function with the channels."
    module = decoder if isinstance(decoder, nn.Module) else decoder(*channels)
    if not isinstance(module, nn.Module):
        raise HeadsError(
            f"`decoder` of SegmentationHead is a function that makes an nn.Module, and it made {module!r}."
        )
    return module
