"""Keywords of what people look at: fastai's, matplotlib's and scikit-learn's. One that means nothing for a grid of
several targets is refused by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from matplotlib import colormaps
from torch import Tensor

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.spec import is_number

__all__ = [
    "GridOptions",
    "check_cmap",
    "check_k",
    "figure_options",
    "grid_options",
    "places_in",
    "report_options",
]

_FIGURE = ("figsize", "dpi", "facecolor", "edgecolor", "frameon", "num", "clear")
"What matplotlib's `figure` takes, and a drawing hands on to it."

_MEANINGLESS = {
    "ctxs": "texts and masks need places of their own, so that the figure is made here; it is returned",
    "ax": "texts and masks need places of their own, so that the figure is made here; it is returned",
    "show": "a figure is drawn in any case; `learn.dls.train.show_batch(show=False)` gives the decoded batch",
    "double": "every mask has a panel of its own already",
    "return_fig": "the figure is always returned",
    "flatten": "the figure is returned, and its axes are `fig.axes`",
}
"What fastai's drawings take and a grid of several targets has no use for."


@dataclass(frozen=True)
class GridOptions:
    "How a grid of images is laid out. What is None follows from the rest."

    nrows: int | None = None  # rows of images
    ncols: int | None = None  # images in a row
    figsize: tuple[float, float] | None = None  # inches of the whole figure; the images take what it leaves them
    imsize: float = 2.4  # inches of an image's longer side, where `figsize` is None
    title: str | None = None  # over the whole figure
    figure: Mapping[str, Any] = field(default_factory=dict)  # to matplotlib's `figure`: `dpi`, `facecolor`, …

    def __post_init__(self) -> None:
        for name in ("nrows", "ncols"):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and is_number(value, least=1)
            _check(name, value, value is None or whole, "a whole number of at least 1")
        _check("imsize", self.imsize, is_number(self.imsize) and self.imsize > 0, "a number of inches above 0")
        _check_figsize(self.figsize)

    def shown(
        self,
        n: int,  # images that there are
    ) -> int:
        "Count the images that are drawn: as in fastai, no more than a grid of given rows and columns holds."
        return min(n, self.nrows * self.ncols) if self.nrows and self.ncols else n


def grid_options(
    **kwargs: Any,  # as the user wrote them, to any drawing of images
) -> GridOptions:
    "Sort the keywords of a drawing; refuse, by name, one that has no meaning here, and one that nobody knows."
    if "suptitle" in kwargs:  # fastai's `subplots` calls it so, `get_grid` calls it `title`
        kwargs.setdefault("title", kwargs.pop("suptitle"))
    own = {name: kwargs.pop(name) for name in GridOptions.__dataclass_fields__.keys() & kwargs.keys() - {"figure"}}
    if kwargs.pop("show", True) is not True:
        raise HeadsError(f"`show` has no meaning for a drawing of several targets: {_MEANINGLESS['show']}.")
    return GridOptions(**own, figure=figure_options(own, **kwargs))


def figure_options(
    known: Mapping[str, Any] | None = None,  # what a drawing takes besides, for the message
    **kwargs: Any,  # as the user wrote them
) -> dict[str, Any]:  # to matplotlib's `figure`
    "Refuse what matplotlib's `figure` does not take, with the nearest keyword."
    for name in kwargs:
        if name in _MEANINGLESS:
            raise HeadsError(f"`{name}` has no meaning for a drawing of several targets: {_MEANINGLESS[name]}.")
        if name not in _FIGURE:
            grid = () if known is None else [o for o in GridOptions.__dataclass_fields__ if o != "figure"]
            options = [*dict.fromkeys([*grid, *_FIGURE])]
            raise HeadsError(
                f"`{name}` is not a keyword of this drawing. There is {', '.join(options)}."
                f"{did_you_mean(name, options)}"
            )
    _check_figsize(kwargs.get("figsize"))
    return kwargs


def check_cmap(
    cmap: Any,  # a name, or a colormap of matplotlib's
) -> None:
    "Refuse the name of a colormap that matplotlib does not have."
    if isinstance(cmap, str) and cmap not in colormaps:
        raise HeadsError(f"`cmap` is a colormap of matplotlib, found {cmap!r}.{did_you_mean(cmap, colormaps)}")


def report_options(
    kwargs: dict[str, Any],  # as the user wrote them
) -> dict[str, Any]:
    "Refuse what scikit-learn's report does not take, or what is filled in here."
    options = ("output_dict", "digits", "zero_division", "sample_weight")
    for name in kwargs:
        if name not in options:
            raise HeadsError(
                f"`{name}` is not a keyword of `classification_report`. There is {', '.join(options)}."
                f"{did_you_mean(name, options)}"
            )
    return kwargs


def check_k(
    k: Any,  # what the user wrote
) -> None:
    "Refuse what is no number of items."
    if k is not None and not (isinstance(k, Integral) and is_number(k, least=0)):
        hint = f"; a head is named as `head={k!r}`" if isinstance(k, str) else ""
        raise HeadsError(f"`k` is how many items, or None for all, found {k!r}{hint}.")


def places_in(
    idxs: int | Sequence[int] | Tensor,  # what the user wrote
    n: int,  # items that there are
    name: str = "idxs",  # of the parameter
) -> list[int]:
    "Give places of items as a list; refuse those that are not there."
    found = idxs.tolist() if isinstance(idxs, Tensor | np.ndarray) else idxs
    found = [found] if isinstance(found, Integral) else list(found) if isinstance(found, Iterable) else [found]
    for place in found:
        if not isinstance(place, Integral) or not -n <= place < n:
            raise HeadsError(f"`{name}` holds places of the {n} items, 0 to {n - 1}, found {place!r}.")
    return [int(place) for place in found]


def _check_figsize(value: Any) -> None:
    pair = isinstance(value, tuple | list) and len(value) == 2
    fits = value is None or (pair and all(is_number(side) and side > 0 for side in value))
    _check("figsize", value, fits, "(width, height) in inches, as `figsize=(12, 8)`")


def _check(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise HeadsError(f"`{name}` of a drawing is {expected}, found {value!r}.")
