"""The data of a learner with several targets: which loader is meant, and loaders over new items."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import DataLoaders, Datasets, TfmdDL, test_set
from fastai.data.load import DataLoader
from fastcore.foundation import L
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader as TorchLoader

from fastai_heads.data.frames import make_frame
from fastai_heads.data.inputs import columns_of
from fastai_heads.data.present import check_present
from fastai_heads.data.watched import watch
from fastai_heads.data.whole import batch_whole
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.values import check_value, is_device, is_whole

__all__ = ["HeadsLoaders", "check_item", "pick_loader", "readable", "with_test_dl"]

_ONE_ITEM = (str, bytes, Path, Image.Image)


class HeadsLoaders(DataLoaders):
    "fastai's `DataLoaders`, whose `test_dl` takes no items at all, keeps `n_inp` and refuses what are no items."

    def test_dl(
        self,
        test_items: Any,  # as `get_items` of the data gives them: paths, a DataFrame, …
        rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the items have been through
        with_labels: bool = False,  # read the targets, too
        **kwargs: Any,  # fastai's: `bs`, `num_workers`, …
    ) -> TfmdDL:
        "fastai's `test_dl`, with the right `n_inp` also where there are labels; no items give no batch."
        test_items = _as_frame(test_items, self.train_ds, type(self.valid) is TfmdDL)
        _check_items(test_items, self.train_ds, with_labels)
        if kwargs != {"num_workers": 0}:  # what `predict` passes
            _check_loader_options(kwargs)
        if rm_type_tfms is not None:
            _check_steps(rm_type_tfms, self.train_ds)
        check_value("with_labels", "`test_dl`", with_labels, isinstance(with_labels, bool), "True or False")
        if not len(test_items):
            return self.valid.new(self.valid_ds.new_empty(), **kwargs)
        try:
            dataset = test_set(self.valid_ds, test_items, rm_tfms=rm_type_tfms, with_labels=with_labels)
        except AssertionError as error:  # fastai's: the type of the first item is not one that a transform gives
            raise HeadsError(f"`items` of `test_dl` {_types_in(str(error))}") from error
        dataset.n_inp = self.n_inp
        dl = self.valid.new(dataset, **kwargs)
        watch(dl, "test", ())
        check_present(dataset, "items")
        batch_whole(dl)
        return dl


def with_test_dl(
    dls: DataLoaders,  # fastai's
) -> DataLoaders:  # the same object
    "Let a plain `DataLoaders` answer as `HeadsLoaders`. A class of the user's own stays what it is."
    if type(dls) is DataLoaders:
        dls.__class__ = HeadsLoaders
    return dls


def pick_loader(
    dls: DataLoaders,  # the learner's
    ds_idx: Any,  # 0: training set, 1: validation set
    dl: Any = None,  # a data loader or a list of batches instead
    labels: str | None = None,  # what needs targets, as `validate`; None: nothing
    batches: bool = False,  # whether a list of batches will do
) -> Any:
    "Find the loader that is meant. Raise `HeadsError` for what is none, and for one without labels that are needed."
    if dl is None:
        if (
            isinstance(ds_idx, bool)
            or not isinstance(ds_idx, int)
            or not -len(dls.loaders) <= ds_idx < len(dls.loaders)
        ):
            raise HeadsError(
                f"`ds_idx` is 0 (training set) or 1 (validation set){_more(dls)}, found {_in_short(ds_idx)}. "
                "Other data is given as `dl=learn.dls.test_dl(items)`."
            )
        dl = dls[ds_idx]
    elif not isinstance(dl, DataLoader | TorchLoader) and not (batches and _are_batches(dl)):
        what = "a data loader or a list of batches" if batches else "a data loader"
        raise HeadsError(f"`dl` is {what}, found {_in_short(dl)}. `dl=learn.dls.test_dl(items)` makes one of items.")
    if labels and not _has_labels(dl):
        raise HeadsError(
            f"{labels} needs labels, and `dl` has no labels: `learn.dls.test_dl(items, with_labels=True)` reads them."
        )
    return dl


@contextmanager
def readable(
    item: Any,  # what is read inside
) -> Iterator[None]:
    "Turn what is raised for a file that is not there, or no image, and for an array that is none, into a `HeadsError`."
    try:
        yield
    except (HeadsError, OSError, TypeError) as error:
        said = _why_unreadable(item, error.__cause__ or error)
        if said is None:
            raise
        raise HeadsError(f"`item`{said}") from error


def _why_unreadable(item: Any, error: BaseException) -> str | None:
    "Say why an item cannot be read; None where it is not the item."
    if isinstance(error, IsADirectoryError):
        return f": {error.filename!r} is a folder. {_SEVERAL}"
    if isinstance(error, FileNotFoundError):
        return f": there is no file {error.filename!r}."
    if isinstance(error, UnidentifiedImageError):
        if isinstance(item, str | Path):
            return f": {str(item)!r} is no image that can be read."
        named = "<" not in str(error)  # Pillow names a file, or an object in memory
        return f": {error}." if named else f": what was given, {type(item).__name__}, is no image that can be read."
    if isinstance(error, TypeError) and isinstance(item, Tensor | np.ndarray):
        what = f"a {type(item).__name__} of {item.dtype} with shape {tuple(item.shape)}"
        return f" as an array is an image (height, width, 3) of uint8, found {what}. ({error})"
    return None


def check_item(
    item: Any,  # what stands where one item is to be predicted
    dls: DataLoaders,  # the learner's
) -> None:
    """Refuse several items where one is asked for, and none. A dict is a row, where the data reads columns, and a tuple
    has a part for each of several inputs."""
    if isinstance(item, Mapping) and _read_columns(dls.train_ds, with_labels=False):
        return
    if type(item) is tuple and _has_parts(dls.train_ds):
        return
    if isinstance(item, pd.DataFrame):
        raise HeadsError(f"`item` is one row, found {_in_short(item)}: `predict(df.iloc[0])`. {_SEVERAL}")
    if item is None or isinstance(item, list | tuple | dict | bool | int | float):
        raise HeadsError(f"`item` is one item, such as a path, an array or a row, found {_in_short(item)}. {_SEVERAL}")


_SEVERAL = "For several items there is `get_preds(dl=learn.dls.test_dl(items))`."


def _as_frame(items: Any, train_ds: Datasets, one_by_one: bool) -> Any:
    """Make a frame of a list of rows, or of tuples of the inputs, where an input is read from a frame, and not from its
    rows one by one."""
    if isinstance(items, list) and items and all(type(o) is tuple for o in items) and _has_parts(train_ds):
        items = [_row_of(parts, train_ds) for parts in items]
    rows = isinstance(items, list | tuple) and len(items) > 0 and all(isinstance(o, Mapping | pd.Series) for o in items)
    columns = _read_columns(train_ds, with_labels=False) if rows else []
    if not columns or (one_by_one and all(isinstance(o, pd.Series) and set(columns) <= set(o.index) for o in items)):
        return items
    return items if any(dict in L(tl.types) for tl in train_ds.tls) else make_frame(items)


def _has_parts(train_ds: Datasets) -> bool:
    "Tell whether an item has several inputs, which are read from columns that have names."
    inputs = getattr(train_ds, "tls", [])[: train_ds.n_inp]
    columns = [columns_of(tl) for tl in inputs]
    return len(inputs) > 1 and all(found and all(isinstance(c, str) for c in found) for found in columns)


def _row_of(parts: tuple, train_ds: Datasets) -> dict[str, Any]:
    "Make a row of a part for each input: what stands in its column, of a row of a table a dict."
    columns = [columns_of(tl) for tl in train_ds.tls[: train_ds.n_inp]]
    order = ", ".join(found[0] if len(found) == 1 else f"{{{', '.join(found)}}}" for found in columns)
    if len(parts) != len(columns):
        raise HeadsError(f"an item as a tuple has {len(columns)} parts ({order}), found {len(parts)}.")
    row: dict[str, Any] = {}
    for part, found in zip(parts, columns):
        if not isinstance(part, Mapping | pd.Series):
            if len(found) > 1 and part is not None:
                raise HeadsError(
                    f"an item as a tuple is ({order}); the columns {', '.join(found)} come as a dict, found {part!r}."
                )
            part = dict.fromkeys(found, part)
        lost = [c for c in found if c not in part]
        if lost:
            raise HeadsError(f"there is no column {lost[0]!r} in {dict(part)}.{did_you_mean(lost[0], map(str, part))}")
        row |= {c: part[c] for c in found}
    return row


def _check_items(items: Any, train_ds: Datasets, with_labels: bool) -> None:
    "Refuse what is no collection of items, and a table that lacks a column that is read."
    right = "`items` of `test_dl` are a list of paths, arrays or rows, or a DataFrame"
    if isinstance(items, _ONE_ITEM):
        more = " `get_image_files(folder)` lists a folder's." if isinstance(items, str | Path) else ""
        raise HeadsError(f"{right}, found one item, {_in_short(items)}: `test_dl([item])`.{more}")
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or isinstance(items, dict):
        raise HeadsError(f"{right}, found {_in_short(items)}. One item stands in a list: `test_dl([item])`.")
    known = getattr(getattr(train_ds, "items", None), "columns", None)
    if isinstance(items, pd.Series) and known is not None and set(items.index) & set(known):
        raise HeadsError(f"{right}, found one row: `test_dl(df.iloc[:1])` or `test_dl([row])`.")
    columns = getattr(items, "columns", None)
    if columns is None:
        return
    missing = [c for c in _read_columns(train_ds, with_labels) if isinstance(c, str) and c not in columns]
    if missing:
        near = did_you_mean(missing[0], columns)
        raise HeadsError(
            f"`items` of `test_dl` has no column {missing[0]!r}, which is read. It has {', '.join(map(str, columns))}."
            + near
        )


def _types_in(said: str) -> str:
    "Put the types that fastai's message names in a line: those that can be read, and what was found."
    *known, found = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>", said) or [""]
    known = [name for name in known if not name.startswith("_")]
    return f"are each a {', '.join(known) or 'type that the data reads'}, found {found or said}."


def _read_columns(train_ds: Datasets, with_labels: bool) -> list[Any]:
    "List the columns from which inputs, and perhaps targets, are read."
    tls = getattr(train_ds, "tls", [])
    lists = tls if with_labels else tls[: train_ds.n_inp]
    return [c for tl in lists for c in columns_of(tl)]


def _check_loader_options(kwargs: dict[str, Any]) -> None:
    "Refuse a keyword that no fastai loader takes."
    options = {*signature(TfmdDL.__init__).parameters, *signature(DataLoader.__init__).parameters, "process"}
    for name in kwargs:
        if name not in options and not hasattr(TfmdDL, name):
            near = did_you_mean(name, sorted(options - {"self", "kwargs", "dataset"}))
            raise HeadsError(f"`{name}` is not a keyword of `test_dl`.{near}")

    for name, fits, expected in _OPTIONS:
        if name in kwargs:
            check_value(name, "`test_dl`", kwargs[name], fits(kwargs[name]), expected)


def _check_steps(n: Any, train_ds: Datasets) -> None:
    "Refuse a number of transforms that items are said to have been through, and that there are not."
    most = min((len(tl.tfms.fs) for tl in getattr(train_ds, "tls", [])[: train_ds.n_inp]), default=0)
    fits = n is None or (is_whole(n, least=0) and n <= most)
    check_value("rm_type_tfms", "`test_dl`", n, fits, f"a number of the input's first transforms, at most {most}")


_OPTIONS = (
    ("bs", lambda v: v is None or is_whole(v), "how many items are read at once, at least 1"),
    ("batch_size", lambda v: v is None or is_whole(v), "how many items are read at once, at least 1"),
    ("num_workers", lambda v: v is None or is_whole(v, least=0), "how many processes read, at least 0"),
    ("shuffle", lambda v: v is None or isinstance(v, bool), "True or False"),
    ("drop_last", lambda v: v is None or isinstance(v, bool), "True or False"),
    ("device", lambda v: v is None or is_device(v), "a device of torch, such as 'cpu' or 'cuda'"),
)
"Keyword of `test_dl`, whether a value will do, and what will."


def _are_batches(dl: Any) -> bool:
    "Tell whether it is a list of batches, or anything else that gives batches of tensors and has a length."
    if isinstance(dl, pd.DataFrame | str | bytes | dict | Tensor) or not hasattr(dl, "__len__"):
        return False
    first = dl[0] if isinstance(dl, Sequence) and len(dl) else ()
    return isinstance(first, tuple | list) and all(isinstance(part, Tensor | tuple | list) for part in first)


def _has_labels(dl: Any) -> bool:
    "Tell whether a loader's items have targets; what is not fastai's is believed to."
    ds = getattr(dl, "dataset", None)
    return not isinstance(ds, Datasets) or not len(ds) or len(ds.tls) > ds.n_inp


def _more(dls: DataLoaders) -> str:
    return "" if len(dls.loaders) == 2 else f" of {len(dls.loaders)} loaders"


def _in_short(value: Any) -> str:
    "Write a value for a message, or the type of what is large."
    plain = value is None or isinstance(value, str | int | float | Path)
    return repr(value) if plain else f"a {type(value).__name__}"
