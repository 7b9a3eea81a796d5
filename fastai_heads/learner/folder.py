"""A folder of images as a table: a row for each file, and columns for what every head says of it."""

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.transforms import get_image_files
from fastai.learner import Learner
from fastprogress.fastprogress import progress_bar
from torch import Tensor

from fastai_heads.data.inputs import ImageInput, dls_inputs
from fastai_heads.data.kinds import Answer
from fastai_heads.disk import whole_file
from fastai_heads.errors import HeadsError, HeadsWarning, first_line
from fastai_heads.training.bound import BoundHead

__all__ = ["predict_folder"]

ERROR = "error"
_MOST = 16  # numbers that stand in columns of their own


def predict_folder(
    learn: Learner,  # a `MultiHeadLearner` over one image
    path: str | Path,  # a folder; its subfolders are read, too
    file: str | Path | None = None,  # a CSV file to write the table to
    bs: int = 64,  # images that are read and predicted together
) -> pd.DataFrame:  # a row per image, by its name in the folder; `error` says why one could not be read
    """Predict the images of a folder, with a progress bar. A class has a column with its probability beside it, tags
    stand in one column, separated by `;`, several numbers in columns of their own, places in pixels as the network sees
    the image. Of a mask there is the share of each code. A file that cannot be read has a row without answers, and a
    `HeadsWarning` says how many there are."""
    files = _list(learn, path, file)
    rows: dict[str, dict[str, Any]] = {}
    chunks = [files[i : i + bs] for i in range(0, len(files), bs)]
    for chunk in progress_bar(chunks, display=hasattr(learn, "progress"), leave=False):
        for name, row in zip(chunk, _rows(learn, chunk)):
            rows[str(name.relative_to(path))] = row
    columns = dict.fromkeys(column for row in rows.values() for column in row if column != ERROR)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*columns, ERROR]).rename_axis("file")
    unread = table[ERROR].notna()
    if unread.any():
        text = f"{unread.sum()} of {len(table)} files could not be read, the first of them {table.index[unread][0]!r}."
        warnings.warn(f"`path`: {text}", HeadsWarning, stacklevel=2)
    if file is not None:
        with whole_file(Path(file)) as part:
            table.to_csv(part)
    return table


def _list(learn: Learner, path: str | Path, file: str | Path | None) -> list[Path]:
    "List the images, in order. Refuses what is no folder of images, and a learner that does not read one image."
    inputs = dls_inputs(learn.dls)
    if len(inputs) != 1 or not isinstance(inputs[0], ImageInput):
        names = ", ".join(f"{source.name} ({source.a})" for source in inputs)
        raise HeadsError(f"`predict_folder` is for a learner over one image, and this one reads {names}.")
    if not Path(path).is_dir():
        raise HeadsError(f"`path` is a folder of images, found {str(path)!r}.")
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise HeadsError(f"`file` is to be written into {str(Path(file).parent)!r}, which is no folder.")
    files = sorted(get_image_files(path))
    if not files:
        raise HeadsError(f"`path`: there is no image in {str(path)!r}.")
    return files


def _rows(learn: Learner, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    "Predict files together, or one by one where that fails, to find out which of them cannot be read."
    items = [_as_item(learn, name) for name in files]
    try:
        found = learn.predict_many(items, bs=len(items), num_workers=0)
    except HeadsError as error:
        if len(items) == 1:
            yield {ERROR: first_line(error.__cause__ or error)}
            return
        for name in files:
            yield from _rows(learn, [name])
        return
    for values, _, activated in found:
        yield {
            column: value
            for head in learn.heads.deciding
            for column, value in _columns(head, values[head.name], activated[head.name]).items()
        }


def _as_item(learn: Learner, name: Path) -> Any:
    "Give a path in the type that the data reads."
    types = learn.dls.train_ds.tls[0].types
    return name if any(isinstance(name, kind) for kind in types) else str(name)


def _columns(head: BoundHead, value: Any, activated: Tensor) -> dict[str, Any]:
    "Say what a head says of an image, column by column."
    name, answers = head.name, head.task.answers
    if answers is Answer.CLASS:
        return {name: str(value), f"{name}_probability": float(activated.max())}
    if answers is Answer.TAGS:
        return {name: ";".join(map(str, value))}
    if answers is Answer.CODES:
        codes = torch.as_tensor(value)
        meanings = head.vocab or range(int(head.spec.n_out))
        return {f"{name}_{meaning}": float((codes == code).float().mean()) for code, meaning in enumerate(meanings)}
    numbers = torch.as_tensor(value).flatten() if answers is Answer.NUMBERS else None
    if numbers is None or numbers.numel() > _MOST:
        return {name: json.dumps(value, default=_plain)}
    if numbers.numel() == 1:
        return {name: float(numbers)}
    return {f"{name}_{i}": float(number) for i, number in enumerate(numbers)}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
