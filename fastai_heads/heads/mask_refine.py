"""Sharper boundaries of a mask: a residual block on its logits, or its uncertain points predicted again."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastai.layers import ConvLayer
from torch import Tensor, nn

__all__ = ["REFINEMENTS", "BoundaryRefine", "PointRefine", "resize_logits"]

REFINEMENTS = (False, True, "points")
SHARE = 1 / 8  # of the pixels of an image are predicted again
OVERSAMPLE, IMPORTANT = 3, 0.75  # in training: points drawn for one that is used; the share that uncertainty picks


class BoundaryRefine(nn.Module):
    """A residual block on logits; it starts as what changes nothing.

    Source: Peng et al. 2017, "Large kernel matters", sec. 3.2 (boundary refinement)."""

    def __init__(
        self,
        n: int,  # channels
    ):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(
        self,
        x: Tensor,  # (B, n, H, W)
    ) -> Tensor:
        return x + self.layers(x)


class PointRefine(nn.Module):
    """Predict the uncertain points of a mask again, from the logits there, the finest map and the image. It starts as
    what changes nothing: the new prediction is added to the logits.

    In training the points are drawn, most of them where the mask is uncertain. Otherwise the mask grows in steps of 2,
    and in each step its most uncertain points are predicted again.

    Source: Kirillov et al. 2020, "PointRend: image segmentation as rendering", sec. 3. Here one loss is taken of the
    whole mask with its new points, and the layers see three by three pixels of the image, too."""

    def __init__(
        self,
        n_out: int,  # channels of the logits
        n_image: int,  # channels of the image
        n_fine: int,  # channels of the finest map; 0: there is none
        exclusive: bool = True,  # the codes exclude each other: a point is uncertain between two of them
        width: int = 64,  # channels of the two hidden layers
        n_detail: int = 16,  # channels that are made of the image
    ):
        super().__init__()
        self.exclusive = exclusive and n_out > 1
        self.detail = ConvLayer(n_image, n_detail, norm_type=None)
        n_in = n_detail + n_fine + n_out
        self.layers = nn.ModuleList([nn.Conv1d(n_in, width, 1), nn.Conv1d(width + n_out, width, 1)])
        self.last = nn.Conv1d(width + n_out, n_out, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        coarse: Tensor,  # (B, n_out, h, w) logits of the whole image
        image: Tensor,  # (B, C, H, W)
        fine: Sequence[Tensor],  # the finest map, (B, n_fine, H / stride, W / stride), or nothing
        size: tuple[int, int],  # height and width of what the logits are of: the image, padded below and to the right
    ) -> Tensor:  # (B, n_out, *size)
        stride = round(image.shape[-2] / fine[0].shape[-2]) if fine else 1
        detail = self.detail(F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2])))
        count = max(1, int(SHARE * size[0] * size[1]))
        if self.training:
            logits = resize_logits(coarse, size)
            return self._predict_again(logits, detail, fine, stride, self._draw_points(logits, count))
        logits = coarse
        for step in _steps(coarse.shape[-2:], size):
            logits = resize_logits(logits, step)
            points = self._uncertainty(logits).topk(min(count, step[0] * step[1]), 1).indices
            logits = self._predict_again(logits, detail, fine, stride, points)
        return logits

    def _predict_again(
        self, logits: Tensor, detail: Tensor, fine: Sequence[Tensor], stride: int, points: Tensor
    ) -> Tensor:
        (height, width), (full_h, full_w) = logits.shape[-2:], detail.shape[-2:]
        y = (points // width + 0.5) * (full_h / height)  # in pixels of the image
        x = (points % width + 0.5) * (full_w / width)
        flat = logits.flatten(2)
        where = points[:, None].expand(-1, logits.shape[1], -1)
        known = flat.gather(2, where)
        features = torch.cat([_sample(detail, y, x, 1), *(_sample(one, y, x, stride) for one in fine), known], 1)
        for layer in self.layers:
            features = torch.cat([F.relu(layer(features)), known], 1)
        return flat.scatter(2, where, (known + self.last(features)).to(flat.dtype)).view_as(logits)

    def _uncertainty(self, logits: Tensor) -> Tensor:
        "Tell how uncertain each point is, (B, H · W): how near its two best codes are, or one code to a half."
        flat = logits.detach().flatten(2)
        if not self.exclusive:
            return -flat.abs().amin(1)
        best = flat.topk(2, 1).values
        return best[:, 1] - best[:, 0]

    def _draw_points(self, logits: Tensor, count: int) -> Tensor:
        "Draw points for each image, (B, N): most are the most uncertain of three times as many, the rest any."
        size = logits.shape[-2] * logits.shape[-1]
        pool, important = torch.randperm(size, device=logits.device)[: OVERSAMPLE * count], int(IMPORTANT * count)
        order = self._uncertainty(logits)[:, pool].argsort(1, descending=True)
        others = torch.randperm(order.shape[1] - important, device=logits.device)[: count - important] + important
        return pool[torch.cat([order[:, :important], order[:, others]], 1)]


def _sample(map_: Tensor, y: Tensor, x: Tensor, stride: int) -> Tensor:
    "Read a map at points, (B, N) in pixels of the image: (B, C, N)."
    height, width = map_.shape[-2:]
    grid = torch.stack([x / (width * stride), y / (height * stride)], -1)[:, :, None] * 2 - 1
    found = F.grid_sample(map_, grid.to(map_.dtype), padding_mode="border", align_corners=False)
    return found[..., 0]


def _steps(start: Sequence[int], end: Sequence[int]) -> list[tuple[int, int]]:
    "List the sizes from `start`, not with it, to `end`, each twice the one before; `end` alone where they are equal."
    found = [tuple(end)]
    while all(-(-side // 2) > low for side, low in zip(found[0], start)):
        found.insert(0, tuple(-(-side // 2) for side in found[0]))
    return found


def resize_logits(
    x: Tensor,  # (B, C, h, w)
    size: Sequence[int],  # height and width
) -> Tensor:  # (B, C, H, W)
    "Resize as segmentation_models_pytorch upsamples what its decoders give."
    return x if list(x.shape[-2:]) == list(size) else F.interpolate(x, size, mode="bilinear", align_corners=True)
