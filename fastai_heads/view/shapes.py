"""Drawings of targets that lie in the image: boxes, points, masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.vision.core import TensorBBox, TensorMask, TensorPoint
from matplotlib import colormaps, patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from fastai_heads.data.missing import IGNORE_PIXEL

__all__ = [
    "PREDICTION",
    "TARGET",
    "code_patches",
    "count_codes",
    "draw_mask",
    "draw_shape",
    "is_mask",
    "is_shape",
    "shape_keys",
]

TARGET, PREDICTION = "#0072b2", "#e69f00"  # blue and orange of Okabe and Ito: colour-blind people tell them apart
_OUTLINE = [patheffects.Stroke(linewidth=3, foreground="black"), patheffects.Normal()]
_SAFE = ("#999999", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito
_ALPHA = 0.5  # of a mask over its image
_LABEL = 0.07  # height of a text at a box, as a share of the image's


def is_mask(value: Any) -> bool:
    "Tell whether a decoded value is a mask."
    return isinstance(value, TensorMask)


def is_shape(value: Any) -> bool:
    "Tell whether a decoded value is drawn into the image by its outline. Points and boxes are."
    return isinstance(value, TensorPoint)  # a box is a TensorPoint, too


def draw_shape(
    ax: Axes,  # with the image
    value: Tensor,  # points or boxes, in pixels
    color: str,  # `TARGET` or `PREDICTION`
) -> None:
    "Draw points as crosses and boxes as frames. The limits of the axes stay those of the image."
    limits = ax.get_xlim(), ax.get_ylim()
    if isinstance(value, TensorBBox):
        for x1, y1, x2, y2 in value.view(-1, 4).tolist():
            box = ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=1.5))
            box.set_path_effects(_OUTLINE)
        for box, text in zip(value.view(-1, 4).tolist(), getattr(value, "texts", ())):
            _write_label(ax, box, text, color, limits[1])
    else:
        x, y = value.view(-1, 2).t().tolist()
        ax.scatter(x, y, s=70, marker="+" if color == TARGET else "x", c=color, linewidths=1.8, path_effects=_OUTLINE)
    ax.set(xlim=limits[0], ylim=limits[1])


def _write_label(ax: Axes, box: list[float], text: str, color: str, y_limits: tuple[float, float]) -> None:
    """Write a text at a box: over it for a target, under it for a prediction. A text that would leave the image is
    written inside the box."""
    x1, y1, _, y2 = box
    top, bottom = sorted(y_limits)
    room = _LABEL * (bottom - top)
    if color == TARGET:
        y, side = y1, "bottom" if y1 - room > top else "top"
    else:
        y, side = y2, "top" if y2 + room < bottom else "bottom"
    frame = {"facecolor": color, "edgecolor": "none", "pad": 1.0}
    ax.text(x1, y, text, color="white", fontsize=7, va=side, clip_on=True, bbox=frame)


def shape_keys() -> list[Artist]:
    "Make the keys of a legend that explain the two colours of points and boxes."
    marks = (("target", TARGET, "+"), ("prediction", PREDICTION, "x"))
    return [Line2D([], [], color=c, marker=m, lw=1.5, label=text) for text, c, m in marks]


def draw_mask(
    ax: Axes,  # with the image
    mask: Tensor,  # (H, W) codes; pixels of code 0, and of 255, which have no label, stay clear
    n_codes: int,  # number of codes
) -> None:
    "Draw a mask over its image, one colour per code. Code 0 is as a rule the background."
    codes = np.asarray(mask.as_subclass(torch.Tensor).detach().cpu()).squeeze()
    clear = np.ma.masked_where((codes == 0) | ((codes == IGNORE_PIXEL) & (n_codes <= IGNORE_PIXEL)), codes)
    ax.imshow(clear, cmap=_colors(n_codes), vmin=-0.5, vmax=n_codes - 0.5, alpha=_ALPHA, interpolation="nearest")


def count_codes(
    masks: Sequence[Tensor],  # of one head
) -> int:  # the number of names, or if there are none, of codes up to the highest one
    "Count the codes that some masks have."
    named = [len(m.codes) for m in masks if getattr(m, "codes", None) is not None]
    if named:
        return named[0]
    plain = [m.as_subclass(torch.Tensor) for m in masks]
    return 1 + max(int(p[p != IGNORE_PIXEL].max()) if (p != IGNORE_PIXEL).any() else 0 for p in plain)


def code_patches(
    masks: Sequence[Tensor],  # of one head
    prefix: str = "",  # before each name
) -> list[Artist]:
    "Make the patches of a legend that explain the colours of some masks."
    n = count_codes(masks)
    codes = next((m.codes for m in masks if getattr(m, "codes", None) is not None), range(n))
    colors = _colors(n)
    drawn = [{"facecolor": colors(i), "alpha": _ALPHA} for i in range(1, n)]
    looks = [{"facecolor": "none", "edgecolor": "grey"}, *drawn]
    return [Patch(**look, label=f"{prefix}{code}") for look, code in zip(looks, codes)]


def _colors(n: int) -> ListedColormap:
    "Choose a colour per code, first those that colour-blind people can tell. Neighbours are never alike."
    pairs = colormaps["tab20"].colors  # each a dark and a pale one
    palette = [*_SAFE, *pairs[1::2], *pairs[::2]]
    return ListedColormap([palette[i % len(palette)] for i in range(n)])
