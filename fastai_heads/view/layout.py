"""Where everything of a grid of images stands, in inches."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastai_heads.view.keywords import GridOptions
from fastai_heads.view.texts import LETTER, LINE, break_lines

__all__ = ["Layout", "lay_out"]

_GAP, _WIDEST = 0.14, 15.0  # between panels; of a figure whose number of columns is free
_TITLE, _LEAST = 0.42, 0.3  # height of the figure's title; the smallest side of an image that a `figsize` can ask for
Lines = Sequence[Sequence[tuple[str, str]]]  # per image its lines, each a text and a colour


@dataclass(frozen=True)
class Layout:
    "A grid of samples, each with one or several panels of one size and texts beside them. All lengths in inches."

    n: int  # samples
    n_panels: int  # of each sample
    size: tuple[float, float]  # of a panel: width, height
    text: float  # width beside the panels
    beside: Lines  # the texts there
    over: Lines  # the texts over the panels
    named: bool  # whether each panel has a title of its own
    nrows: int  # rows of samples
    ncols: int  # samples in a row
    title: bool  # whether the figure has one
    page: tuple[float, float] | None  # width and height of the figure, if given; None: what everything takes
    keys: int  # entries of the legend
    key: float  # width of one of them

    @property
    def above(self) -> float:
        "Height of the titles over a panel."
        lines = max(map(len, self.over)) + self.named
        return lines * LINE + 0.05 if lines else 0.0

    @property
    def cell(self) -> tuple[float, float]:
        "Width and height of a sample with its texts."
        height = max(self.size[1], max(map(len, self.beside)) * LINE)
        return self.n_panels * (self.size[0] + _GAP) + self.text, self.above + height + _GAP

    @property
    def keys_in_row(self) -> int:
        "Entries of the legend side by side."
        return max(1, int((self.ncols * self.cell[0]) / self.key)) if self.keys else 1

    @property
    def taken(self) -> tuple[float, float]:
        "Width and height that everything takes."
        legend = 0.1 + 0.21 * ceil(self.keys / self.keys_in_row) if self.keys else 0.0
        return self.ncols * self.cell[0] + _GAP, self.nrows * self.cell[1] + _GAP + legend + self.head

    @property
    def whole(self) -> tuple[float, float]:
        "Width and height of the figure."
        return self.page or self.taken

    @property
    def head(self) -> float:
        "Height of the figure's title."
        return _TITLE if self.title else 0.0

    def corner(
        self,
        i: int,  # which sample
    ) -> tuple[float, float]:
        "Find the upper left corner of a sample's cell, from the lower left of the figure."
        row, col = divmod(i, self.ncols)
        return _GAP + col * self.cell[0], self.whole[1] - _GAP - self.head - row * self.cell[1]

    def panel(
        self,
        i: int,  # which sample
        place: int,  # which of its panels
    ) -> tuple[float, float, float, float]:  # left, bottom, width, height as shares of the figure
        "Say where a panel lies."
        left, top = self.corner(i)
        left, bottom = left + place * (self.size[0] + _GAP), top - self.above - self.size[1]
        width, height = self.whole
        return left / width, bottom / height, self.size[0] / width, self.size[1] / height

    def spot(
        self,
        x: float,
        y: float,
    ) -> tuple[float, float]:
        "Inches as shares of the figure."
        return x / self.whole[0], y / self.whole[1]


def lay_out(
    inputs: Sequence[Sequence[Any]],  # per item its pictures
    lines: Lines,  # per image a text for each head, not broken yet
    titles: Sequence[str] | None,  # per image a text over it
    panels: Sequence[str],  # titles of a sample's panels
    keys: Sequence[str],  # entries of the legend
    options: GridOptions,  # rows, columns, sizes
) -> Layout:
    "Lay out a grid in which every text has its place; in a figure of a given size, with images as large as fit."

    def at(imsize: float) -> Layout:
        return _sized(inputs, lines, titles, panels, keys, options, imsize)

    if options.figsize is None:
        return at(options.imsize)
    low, high = _LEAST, max(options.figsize)
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = all(taken <= given for taken, given in zip(at(middle).taken, options.figsize))
        low, high = (middle, high) if fits else (low, middle)
    return at(low)


def _sized(
    inputs: Sequence[Sequence[Any]],
    lines: Lines,
    titles: Sequence[str] | None,
    panels: Sequence[str],
    keys: Sequence[str],
    options: GridOptions,
    imsize: float,  # the longer side of a panel
) -> Layout:
    "Lay out the grid with images of one size."
    ratio = max((_height_by_width(image) for pictures in inputs for image in pictures), default=0.0)
    size = (imsize, imsize * ratio) if ratio <= 1 else (imsize / ratio, imsize)
    text = imsize if any(map(len, lines)) else 0.0
    cell = len(panels) * (size[0] + _GAP) + text
    nrows, ncols = _grid(len(inputs), options, cell)
    return Layout(
        n=len(inputs),
        n_panels=len(panels),
        size=size,
        text=text,
        beside=[break_lines(one, text - 0.1) for one in lines],
        over=[break_lines([(t, "black")], cell - 2 * _GAP) for t in titles] if titles else [[] for _ in inputs],
        named=any(panels),
        nrows=nrows,
        ncols=ncols,
        title=options.title is not None,
        page=options.figsize and tuple(options.figsize),
        keys=len(keys),
        key=max(map(len, keys), default=0) * LETTER + 0.6,
    )


def _grid(n: int, options: GridOptions, cell: float) -> tuple[int, int]:
    "Return (rows, columns): one follows from the other; of neither at most three columns, as many as fit."
    if options.nrows:
        return options.nrows, options.ncols or ceil(n / options.nrows)
    widest = _WIDEST if options.figsize is None else options.figsize[0]
    ncols = min(n, options.ncols or max(1, min(3, int(widest / cell))))
    return ceil(n / ncols), ncols


def _height_by_width(image: Any) -> float:
    "Divide the height of a tensor (C, H, W) or a PIL image by its width. Where it does not tell, the answer is 1."
    if hasattr(image, "ndim"):
        return image.shape[-2] / image.shape[-1] if image.ndim >= 2 else 1.0
    size = getattr(image, "size", None)
    return size[1] / size[0] if isinstance(size, tuple) else 1.0
