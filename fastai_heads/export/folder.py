"""A table of what a predictor says of every image of a folder. No module that this one imports imports torch."""

import csv
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastai_heads.disk import whole_file
from fastai_heads.errors import HeadsError, writing
from fastai_heads.export.answers import Mask, as_plain
from fastai_heads.export.predictor import Predictor

__all__ = ["predict_to_csv"]

ERROR = "error"  # the column of what cannot be read


def predict_to_csv(
    predictor: Predictor,  # over one image
    folder: str | Path,  # its images, those in folders within it, too
    file: str | Path,  # that is written
    heads: str | Sequence[str] | None = None,  # those that answer; None: all
    bs: int = 32,  # images that are computed at once
    overwrite: bool = False,  # take the place of a file that is there
) -> tuple[int, int]:  # how many images have an answer, and how many could not be read
    """Write a row for each image: a class with its probability, tags with theirs, numbers, places in pixels.

    A mask is a PNG file in a folder beside the table. An image that cannot be read has its reason in the column
    `error`."""
    folder, file, chosen = Path(folder), Path(file), predictor.choose(heads)
    paths = _find_images(predictor, folder)
    if file.exists() and not overwrite:
        raise HeadsError(f"`file`: there is {file} already; pass `overwrite=True`, or another name.")
    kinds = {head: predictor.manifest["answers"][head]["answer"] for head in chosen}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), bs):
        for path, answer in _answer(predictor, paths[start : start + bs], chosen):
            row = {"image": path.relative_to(folder).as_posix()}
            if isinstance(answer, HeadsError):
                rows.append(row | {ERROR: str(answer)})
                continue
            for head, value in answer.pairs():
                mask = kinds[head] == "mask"
                row |= _write_mask(value, head, row["image"], file) if mask else _say(value, head, kinds[head])
            rows.append(row)
    _write_rows(rows, file)
    failed = sum(ERROR in row for row in rows)
    return len(rows) - failed, failed


def _find_images(predictor: Predictor, folder: Path) -> list[Path]:
    if [reader.said["kind"] for reader in predictor.readers.values()] != ["image"]:
        raise HeadsError(f"`folder` holds images, and the bundle reads {', '.join(predictor.inputs)}: use a Predictor.")
    if not folder.is_dir():
        raise HeadsError(f"`folder`: there is no folder {folder}.")
    paths = sorted(p for p in folder.rglob("*") if (mimetypes.guess_type(p.name)[0] or "").startswith("image/"))
    if not paths:
        raise HeadsError(f"`folder`: {folder} holds no image.")
    return paths


def _write_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    "Write a table whole or not at all. What went wrong stands in the last column."
    columns = dict.fromkeys(column for row in rows for column in row if column != ERROR)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part, part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*columns, *([ERROR] if any(ERROR in row for row in rows) else [])])
        writer.writeheader()
        writer.writerows(rows)


def _answer(predictor: Predictor, paths: Sequence[Path], heads: tuple[str, ...]) -> Iterator[tuple[Path, Any]]:
    "Give each path's answer, or why it has none. Images of one size that follow each other are computed together."
    read = []
    for path in paths:
        try:
            read.append((path, predictor.read(path)))
        except HeadsError as error:
            read.append((path, error))
    for size, group in groupby(read, lambda pair: getattr(pair[1], "sizes", None)):
        same, items = zip(*group)
        yield from zip(same, items if size is None else predictor.answer(items, heads))


def _say(answer: Any, head: str, kind: str) -> dict[str, Any]:
    "Say an answer in columns."
    if kind == "label":
        return {head: answer.label, f"{head}_probability": answer.probability}
    if kind == "tags":
        there = ";".join(map(str, answer.labels))
        return {head: there} | {f"{head}_{tag}": probability for tag, probability in answer.probabilities.items()}
    if kind in ("numbers", "points", "box"):
        numbers = np.asarray(answer).reshape(-1).tolist()
        return dict(zip(_name_numbers(head, kind, len(numbers)), numbers))
    return {head: json.dumps(as_plain(answer), ensure_ascii=False)}


def _name_numbers(head: str, kind: str, n: int) -> list[str]:
    "Name columns: `ink`; of several numbers `size_1`, `size_2`; of places `centre_x`, `box_x1`."
    if kind == "numbers":
        return [head] if n == 1 else [f"{head}_{i + 1}" for i in range(n)]
    return [f"{head}_{'xy'[i % 2]}{i // 2 + 1 if n > 2 else ''}" for i in range(n)]


def _write_mask(mask: Mask, head: str, name: str, file: Path) -> dict[str, str]:
    "Write a mask's codes as grey values; of several masks a file each, by its number."
    layers = [(head, mask.codes)] if mask.codes.ndim == 2 else [(f"{head}_{i}", c) for i, c in enumerate(mask.codes)]
    found = {}
    for column, codes in layers:
        path = file.parent / f"{file.stem}_{column}" / f"{name}.png"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(codes, np.uint8)).save(path)
        found[column] = path.relative_to(file.parent).as_posix()
    return found
