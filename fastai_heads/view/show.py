"""Images with every head's target and prediction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import matplotlib.pyplot as plt
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastcore.basics import Inf
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fastai_heads.data.bbox_blocks import join_boxes
from fastai_heads.data.decode import decode_targets
from fastai_heads.data.given import check_loaders
from fastai_heads.data.inputs import dls_inputs
from fastai_heads.data.missing import Missing
from fastai_heads.data.targets import dls_targets
from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads.spec import is_number
from fastai_heads.view.decoded import decode_heads
from fastai_heads.view.inputs import sort_inputs
from fastai_heads.view.keywords import grid_options
from fastai_heads.view.layout import Layout, lay_out
from fastai_heads.view.shapes import (
    PREDICTION,
    TARGET,
    code_patches,
    count_codes,
    draw_mask,
    draw_shape,
    is_mask,
    is_shape,
    shape_keys,
)
from fastai_heads.view.texts import LINE, PLAIN, say_both

__all__ = ["show_predictions", "show_samples", "show_targets"]


@dataclass(frozen=True)
class Seen:
    "One head's values on one image."

    head: str
    truth: Any  # the decoded target; None: not known
    said: Any  # the decoded prediction; None: there is none

    @property
    def drawn(self) -> list[tuple[Any, str]]:
        "The values that lie in the image, each with its colour."
        both = ((self.truth, TARGET), (self.said, PREDICTION))
        return [(value, color) for value, color in both if is_shape(value) or is_mask(value)]

    @property
    def line(self) -> tuple[str, str] | None:
        "Text and colour; None where everything is in the image."
        if not self.drawn:
            return say_both(self.head, self.truth, self.said)
        return (f"{self.head}: {self.truth}", PLAIN) if isinstance(self.truth, Missing) else None


Rows = Sequence[Sequence[Seen]]  # per image, per head


@dataclass(frozen=True)
class Panel:
    "One picture of a sample: an image by itself, the first one under the mask of one head, or a row as a table."

    title: str = ""
    head: str | None = None  # whose mask
    side: str = "truth"  # or 'said'
    place: int = 0  # which of the sample's pictures


def show_samples(
    inputs: Sequence[Any],  # per item its image, or a tuple of all its inputs; decoded, with fastai's `show`
    targets: Sequence[HeadTuple],  # per image its decoded targets; empty ones: not known
    preds: Sequence[HeadTuple] | None = None,  # per image its decoded predictions; None: targets alone
    shown: Mapping[str, str] | None = None,  # head → its target; None: every target alone
    titles: Sequence[str] | None = None,  # per image a text over it
    names: Sequence[str] = (),  # of the inputs, where there are several
    **kwargs: Any,  # fastai's, as for `grid_options`: `nrows`, `ncols`, `figsize`, `imsize`, `title`, `dpi`, …
) -> Figure:
    """Draw images in a grid: points and boxes in the image (the target blue, the prediction orange), each mask in a
    panel of its own, texts beside. A text says `head: prediction`, green where it is right, and red with the target
    behind it where it is wrong; a missing label is a dash. A row of a table is a small table, a text stands beside."""
    options = grid_options(**kwargs)
    if not len(inputs):
        raise HeadsError("there is no image to show: the data holds none, or `max_n` is 0.")
    items = [sort_inputs(item, names) for item in inputs[: options.shown(len(inputs))]]
    inputs = [item.pictures for item in items]
    targets = targets[: len(inputs)]
    shown = {name: name for name in targets[0].names} if shown is None else shown
    rows = [list(_seen(t, None if preds is None else preds[i], shown)) for i, t in enumerate(targets)]
    masks = {seen.head: found for seen in rows[0] if (found := _masks(rows, seen.head))}
    panels, keys = _panels(rows, masks, items[0].titles), _keys(rows, masks, preds is not None)
    lines = [[*item.lines, *(seen.line for seen in row if seen.line is not None)] for item, row in zip(items, rows)]
    labels = [key.get_label() for key in keys]
    layout = lay_out(inputs, lines, titles, [p.title for p in panels], labels, options)
    fig = plt.figure(**{"figsize": layout.whole, **options.figure})
    if options.title is not None:
        fig.suptitle(options.title, weight="bold", size=14, y=1 - 0.1 / layout.whole[1], va="top")
    for i, (pictures, row) in enumerate(zip(inputs, rows)):
        _draw_sample(fig, layout, i, pictures, row, panels, masks)
    if keys:
        fig.legend(handles=keys, loc="lower left", ncols=layout.keys_in_row, frameon=False, fontsize=9, borderpad=0.1)
    return fig


def _seen(target: HeadTuple, pred: HeadTuple | None, shown: Mapping[str, str]) -> Iterator[Seen]:
    for head, name in shown.items():
        truth = target[name] if name in getattr(target, "names", ()) else None
        yield Seen(head, truth, None if pred is None else pred[head])


def _masks(rows: Rows, head: str) -> list[Tensor]:
    "List every mask of one head, true and predicted."
    return [v for row in rows for seen in row if seen.head == head for v, _ in seen.drawn if is_mask(v)]


def _panels(rows: Rows, masks: Mapping[str, list[Tensor]], titles: Sequence[str]) -> list[Panel]:
    "List the first picture by itself, or for every head of masks its target and its prediction, and other pictures."
    found: list[Panel] = []
    for first in (seen for seen in rows[0] if seen.head in masks):
        sides = [("truth", "target")] if first.truth is not None else []
        sides += [("said", "prediction")] if first.said is not None else []
        for side, what in sides:
            title = f"{first.head}: {what}" if first.said is not None else first.head
            found.append(Panel(title, first.head, side))
    alone = [Panel(title, place=place) for place, title in enumerate(titles)]
    return [*found, *alone[1:]] if found else alone


def _keys(rows: Rows, masks: Mapping[str, list[Tensor]], predicted: bool) -> list[Artist]:
    "Make the legend: the colours of target and prediction, and of each mask's codes."
    shapes = any(is_shape(value) for row in rows for seen in row for value, _ in seen.drawn)
    keys = shape_keys() if shapes and predicted else []
    for head, found in masks.items():
        keys += code_patches(found, f"{head}: " if len(masks) > 1 else "")
    return keys


def _draw_sample(
    fig: Figure,
    layout: Layout,
    i: int,  # which sample
    pictures: Sequence[Any],
    row: Sequence[Seen],
    panels: Sequence[Panel],
    masks: Mapping[str, list[Tensor]],  # per head all that are shown, which tell its codes
) -> None:
    if not panels:  # texts alone
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        _write(ax, layout, i)
    for place, panel in enumerate(panels):
        ax = fig.add_axes(layout.panel(i, place))
        pictures[panel.place].show(ctx=ax)
        ax.set_anchor("NW")
        ax.set_title(panel.title, fontsize=9, loc="left", pad=3)
        mask = next((getattr(seen, panel.side) for seen in row if seen.head == panel.head), None)
        if is_mask(mask):
            draw_mask(ax, mask, count_codes(masks[panel.head]))
        if place == 0:
            _draw_shapes(ax, row)
            _write(ax, layout, i)


def _draw_shapes(ax: Axes, row: Sequence[Seen]) -> None:
    for seen in row:
        for value, color in seen.drawn:
            if is_shape(value):
                draw_shape(ax, value, color)


def _write(ax: Axes, layout: Layout, i: int) -> None:
    "Write the texts over a sample's panels, and those beside them, one below the other."
    left, top = layout.corner(i)
    right = left + layout.cell[0] - layout.text
    places = [(left, top - n * LINE, line) for n, line in enumerate(layout.over[i])]
    places += [(right, top - layout.above - n * LINE, line) for n, line in enumerate(layout.beside[i])]
    for x, y, (text, color) in places:
        ax.text(*layout.spot(x, y - 0.7 * LINE), text, color=color, fontsize=9, transform=ax.figure.transFigure)


def show_targets(
    dls: DataLoaders,  # over fastai `Datasets` with any number of targets
    max_n: int = 9,  # how many images
    ds_idx: int = 0,  # 0: training set, 1: validation set
    unique: bool = False,  # one item, again and again, as augmentation changes it
    names: str | Sequence[str] | None = None,  # of the targets; None: as inferred from the data
    b: Any = None,  # a batch to show instead of the first one
    **kwargs: Any,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
) -> Figure:
    "Show a batch with every target on its image, as fastai's `dls.show_batch` shows one target."
    check_loaders(dls)
    _check_max_n(max_n)
    dls = join_boxes(dls)
    names = _target_names(dls, names)
    dl = dls[ds_idx].new(drop_last=False)
    if unique:
        dl = dl.new(get_idxs=lambda: Inf.zeros, num_workers=0)
    samples = list(dl.decode_batch(dl.one_batch() if b is None else b, max_n=max_n))
    n_inp = dls.n_inp
    return show_samples(
        [s[:n_inp] for s in samples],
        [HeadTuple(s[n_inp:], names) for s in samples],
        names=[source.name for source in dls_inputs(dls)],
        **kwargs,
    )


def _target_names(dls: DataLoaders, names: str | Sequence[str] | None) -> list[str]:
    "Give a name to each target: those that are passed, else those that the data tells."
    if names is None:
        return [t.name for t in dls_targets(dls)]
    names, n = [names] if isinstance(names, str) else list(names), len(dls.train_ds.tls) - dls.n_inp
    if len(names) != n:
        found = ", ".join(t.name for t in dls_targets(dls))
        raise HeadsError(f"`names` has a name for each target, {found}, found {names!r}.")
    return names


def show_predictions(
    learn: Learner,  # a `MultiHeadLearner`
    inputs: tuple[Tensor, ...],  # (B, …) each, as in a batch
    targets: Sequence[Tensor] | None,  # (B, …) each, as in a batch; None: not known
    decoded: HeadTuple,  # (B, …) each, from `get_preds(with_decoded=True)`
    max_n: int = 9,  # how many images
    **kwargs: Any,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`, `titles`
) -> Figure:
    "Show images with what every deciding head says of them, and its target."
    _check_max_n(max_n)
    dl, n_inp = learn.dls.valid, len(inputs)
    names = [t.name for t in learn.data_targets] if targets else []
    truths = decode_targets(dl, inputs, targets or (), range(len(names)), max_n)
    heads = learn.heads.deciding
    samples = decode_heads(dl, inputs, heads, decoded, max_n)
    return show_samples(
        [s[:n_inp] for s in samples],
        [HeadTuple(t[n_inp:], names) for t in truths],
        [s[-1] for s in samples],
        {h.name: h.target.name for h in heads},
        names=[source.name for source in dls_inputs(learn.dls)],
        **kwargs,
    )


def _check_max_n(max_n: Any) -> None:
    if not isinstance(max_n, Integral) or not is_number(max_n, least=0):
        raise HeadsError(f"`max_n` is how many images are shown at most, a whole number, found {_in_short(max_n)}.")


def _in_short(value: Any) -> str:
    "Write a value for a message, or the type of what is large."
    return repr(value) if value is None or isinstance(value, str | Real) else type(value).__name__
