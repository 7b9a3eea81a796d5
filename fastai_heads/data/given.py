"""What careless users give where `DataLoaders` stand, and what makes `DataLoaders` of it."""

from pathlib import Path
from typing import Any

import pandas as pd
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.load import DataLoader
from fastai.data.transforms import ColReader
from fastai.learner import Learner
from fastcore.foundation import L
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset
from torchvision.datasets import VisionDataset

from fastai_heads.errors import HeadsError

__all__ = ["check_columns", "check_loaders"]

_BLOCK = (
    "`DataBlock(blocks=(ImageBlock, CategoryBlock, RegressionBlock), n_inp=1, get_x=ColReader('image'), "
    "get_y=[ColReader('class'), ColReader('number')]).dataloaders(df)`, a block and a reader for each target"
)

_MAKERS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((pd.DataFrame,), f"DataLoaders of a table are made by {_BLOCK}"),
    ((DataBlock,), "DataLoaders are made of it by `block.dataloaders(items)`"),
    ((Datasets, TfmdLists), "DataLoaders are made of them by `datasets.dataloaders(bs=64)`"),
    ((Learner,), "its data is `learn.dls`"),
    (
        (DataLoader, TorchLoader),
        "DataLoaders are made of one for training and one for validation: `DataLoaders(train, valid)`",
    ),
    (
        (VisionDataset, Dataset),
        "DataLoaders are made of one for training and one for validation: "
        "`DataLoaders.from_dsets(train, valid, bs=64)`",
    ),
    (
        (Path,),
        "DataLoaders of a folder are made by `ImageDataLoaders.from_folder(path)` where its folders are the classes, "
        f"and of a table of labels by {_BLOCK}",
    ),
)
"What makes `DataLoaders` of it, by type."


def check_loaders(
    dls: Any,  # what the user passed as data
) -> None:
    "Refuse what are no `DataLoaders`, and name the call that makes them of it."
    if isinstance(dls, DataLoaders):
        if not dls.loaders:
            raise HeadsError(f"`dls` holds no loader: they are made by {_BLOCK}.")
        return
    if isinstance(dls, str):
        path = Path(dls)
        how = (
            _how(path) if path.exists() else "the data comes first, then the arch: `multihead_learner(dls, 'resnet18')`"
        )
    elif isinstance(dls, list | tuple) and dls and all(isinstance(part, DataLoader | TorchLoader) for part in dls):
        how = "DataLoaders are made of them by `DataLoaders(*loaders)`"
    else:
        how = _how(dls)
    what = repr(dls) if dls is None or isinstance(dls, str | Path | int | float) else f"a {type(dls).__name__}"
    raise HeadsError(f"`dls` holds fastai `Datasets` in a `DataLoaders`, found {what}: {how}.")


def _how(value: Any) -> str:
    "Name the call for a value's type; for any other the one that is most often right."
    named = (how for kinds, how in _MAKERS if isinstance(value, kinds))
    return next(named, f"they are made by {_BLOCK}")


def check_columns(
    dls: DataLoaders,  # the user's
) -> None:
    "Refuse several columns that are read as one target of no kind, as fastai's `from_df(…, y_block=[…])` does."
    ds = getattr(dls, "train_ds", None)
    for tl in ds.tls[ds.n_inp :] if isinstance(ds, Datasets) and len(ds) else ():
        columns = [c for f in tl.tfms.fs if isinstance(f, ColReader) and len(f.cols) > 1 for c in f.cols]
        if columns and len(tl.tfms.fs) == 1 and isinstance(tl[0], list | tuple | L):
            readers = ", ".join(f"ColReader({column!r})" for column in columns)
            raise HeadsError(
                f"`dls` reads the columns {', '.join(map(str, columns))} as one target without a block, as "
                "`ImageDataLoaders.from_df(…, y_block=[…])` does. Every target has a block and a reader of its own: "
                "`DataBlock(blocks=(ImageBlock, CategoryBlock, RegressionBlock), n_inp=1, get_x=ColReader('image'), "
                f"get_y=[{readers}]).dataloaders(df)`."
            )
