"""Maps at strides that an arch does not have, for heads that read several levels."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PYRAMID_CHANNELS", "LevelFrom", "PyramidLevel"]

PYRAMID_CHANNELS = 256  # in every level of a simple feature pyramid, as in ViTDet


class LevelFrom(nn.Module):
    "A map at another stride. It is resized, and its channels stay as they are."

    def __init__(
        self,
        n_in: int,  # channels of the map
        stride_in: int,  # its stride
        stride: int,  # the stride wanted
    ):
        super().__init__()
        self.stride_in, self.stride, self.n_out = stride_in, stride, n_in

    def forward(
        self,
        x: Tensor,  # (B, n_in, H, W)
    ) -> Tensor:  # (B, n_out, H * stride_in / stride, W * stride_in / stride)
        return self.resize(x, x.shape[-2:])

    def resize(
        self,
        x: Tensor,  # (B, C, h, w)
        before: tuple[int, int],  # height and width at `stride_in`
    ) -> Tensor:
        "Resize the map to the size that `stride` gives. A map that has this size already stays as it is."
        size = [max(1, round(side * self.stride_in / self.stride)) for side in before]
        return x if list(x.shape[-2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"stride_in={self.stride_in}, stride={self.stride}"


class PyramidLevel(LevelFrom):
    """One level of a simple feature pyramid, made of the last map of an arch with a single stride. Transposed
    convolutions make a finer level, max pooling a coarser one. A 1 × 1 and a 3 × 3 convolution follow, each with a
    norm.

    Source: Li et al. 2022, "Exploring plain vision transformer backbones for object detection", sec. 3."""

    def __init__(
        self,
        n_in: int,  # channels of the map
        stride_in: int,  # its stride
        stride: int,  # the stride wanted, a quarter to four times `stride_in`
        n_out: int = PYRAMID_CHANNELS,  # channels of the level
    ):
        super().__init__(n_in, stride_in, stride)
        self.n_out = n_out
        doublings = round(math.log2(stride_in / stride))
        layers: list[nn.Module] = []
        for n in range(doublings):
            layers += [_norm(n_in), nn.GELU()] if n else []
            layers.append(nn.ConvTranspose2d(n_in, max(1, n_in // 2), 2, stride=2))
            n_in = max(1, n_in // 2)
        # an odd side keeps its last row or column, as in a strided convolution
        layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
        self.scale = nn.Sequential(*layers)
        self.smooth = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1, bias=False),
            _norm(n_out),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            _norm(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.smooth(self.resize(self.scale(x), x.shape[-2:]))


class _ChannelNorm(nn.LayerNorm):
    "Layer norm over the channels of a map."

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(channels: int) -> nn.Module:
    return _ChannelNorm(channels, eps=1e-6)
