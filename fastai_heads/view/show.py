"""Images with every head's target and prediction."""

from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
from fastai.vision.core import TensorBBox, TensorMask, TensorPoint
from fastcore.foundation import L
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fastai_heads.data.partial import Missing
from fastai_heads.head_tuple import HeadTuple

__all__ = ["show_samples"]

TARGET, PREDICTION = "#2ca02c", "#ff7f0e"  # what is true, what is predicted: the two that are drawn into the image
RIGHT, WRONG, PLAIN = "green", "red", "black"
_LINE, _LETTER = 0.19, 0.074  # inches of a line of text and of a letter, at 9 points
_OUTLINE = [patheffects.Stroke(linewidth=3, foreground="black"), patheffects.Normal()]


def show_samples(
    inputs: Sequence[Any],  # decoded images, with fastai's `show`
    targets: Sequence[HeadTuple],  # per image its decoded targets
    preds: Sequence[HeadTuple] | None = None,  # per image its decoded predictions; None: targets alone
    shown: Mapping[str, str] | None = None,  # head → its target; None: every target alone
    ncols: int = 3,  # images in a row
    imsize: float = 2.4,  # inches of an image's side
) -> Figure:
    """Images in a grid: boxes, points and masks drawn in (the target green, the prediction orange), texts beside.
    A text says `head: prediction`, green where it is right, and red with the target behind it where it is wrong."""
    shown = {name: name for name in targets[0].names} if shown is None else shown
    ncols = min(ncols, len(inputs))
    nrows = ceil(len(inputs) / ncols)
    lines = [_texts(t, None if preds is None else preds[i], shown) for i, t in enumerate(targets)]
    lines = [_broken(one, int(imsize / _LETTER)) for one in lines]
    height = max(imsize, _LINE * max(map(len, lines)) + 0.1)
    fig, axes = plt.subplots(nrows, ncols, figsize=(ncols * imsize * 2, nrows * height), squeeze=False)
    for ax in axes.flat[len(inputs) :]:
        ax.set_axis_off()
    for i, ax in enumerate(axes.flat[: len(inputs)]):
        inputs[i].show(ctx=ax)
        ax.set_anchor("W")
        pred = None if preds is None else preds[i]
        _draw(ax, targets[i], pred, shown)
        _write(ax, lines[i], imsize)
    drawn = preds is not None and any(_is_shape(targets[0][name]) for name in shown.values())
    fig.tight_layout(rect=(0, 0.25 / fig.get_figheight() if drawn else 0, 1, 1))
    if drawn:
        for inch, text, color in ((0.1, "green: target", TARGET), (1.2, "orange: prediction", PREDICTION)):
            fig.text(inch / fig.get_figwidth(), 0.05 / fig.get_figheight(), text, color=color, fontsize=9)
    return fig


def _is_shape(value: Any) -> bool:
    return isinstance(value, TensorPoint | TensorMask)


def _draw(ax: Axes, target: HeadTuple, pred: HeadTuple | None, shown: Mapping[str, str]) -> None:
    "Boxes, points and masks into the image; the axes stay those of the image."
    limits = ax.get_xlim(), ax.get_ylim()
    for head, name in shown.items():
        for value, color in ((target[name], TARGET), (None if pred is None else pred[head], PREDICTION)):
            if _is_shape(value):
                _draw_shape(ax, value, color)
    ax.set(xlim=limits[0], ylim=limits[1])


def _draw_shape(ax: Axes, value: Tensor, color: str) -> None:
    if isinstance(value, TensorBBox):
        for x1, y1, x2, y2 in value.view(-1, 4).tolist():
            box = ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=1.5))
            box.set_path_effects(_OUTLINE)
    elif isinstance(value, TensorPoint):
        x, y = value.view(-1, 2).t().tolist()
        ax.scatter(x, y, s=70, marker="+" if color == TARGET else "x", c=color, linewidths=1.8, path_effects=_OUTLINE)
    else:
        value.show(ctx=ax, alpha=0.35 if color == TARGET else 0.55)


def _texts(target: HeadTuple, pred: HeadTuple | None, shown: Mapping[str, str]) -> list[tuple[str, str]]:
    "(text, colour) for every head whose value is no shape."
    lines = []
    for head, name in shown.items():
        if _is_shape(target[name]):
            continue
        truth = _text(target[name])
        if pred is None:
            lines.append((f"{head}: {truth}", PLAIN))
        else:
            lines.append(_compared(head, target[name], truth, pred[head]))
    return lines


def _compared(head: str, target: Any, truth: str, pred: Any) -> tuple[str, str]:
    said = _text(pred)
    if isinstance(target, Missing):
        return f"{head}: {said}", PLAIN
    if isinstance(target, float) or (isinstance(target, tuple) and all(isinstance(t, float) for t in target)):
        return f"{head}: {said} ({truth})", PLAIN  # a number is seldom met exactly: neither right nor wrong
    return (f"{head}: {said}", RIGHT) if said == truth else (f"{head}: {said} ({truth})", WRONG)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, L | tuple | list):
        return ", ".join(_text(v) for v in value) or "–"
    return str(value)


def _broken(lines: Sequence[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    "Texts that are longer than `width` letters, over several lines."
    return [(part, color) for text, color in lines for part in wrap(text, width, subsequent_indent="    ")]


def _write(ax: Axes, lines: Sequence[tuple[str, str]], height: float) -> None:
    "The texts to the right of an image that is `height` inches high, one below the other."
    for i, (text, color) in enumerate(lines):
        ax.text(1.04, 1 - i * _LINE / height, text, color=color, fontsize=9, va="top", transform=ax.transAxes)
