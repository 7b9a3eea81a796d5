"""Files of images and masks: whether they are there, and what their headers say. No pixel is read."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["HEADERS", "Header", "Headers", "first_missing", "spread"]

HEADERS = 20_000  # files of which the header is read when data is looked at, 25 µs each on a local disk
_FEW = 64  # files in a folder that are looked up one by one, rather than in a list of the folder


def first_missing(
    files: Sequence[Any],  # a path each; what is no path is not looked at
) -> int | None:  # its place; None: all are there
    "Find the first file that does not exist. A folder is listed once."
    folders: dict[str, list[tuple[str, int]]] = defaultdict(list)
    once: dict[str | Path, int] = {}
    for i, file in enumerate(files):
        if isinstance(file, str | Path):
            once.setdefault(file, i)
    for file, i in once.items():
        folder, name = os.path.split(file)
        folders[folder].append((name, i))
    missing = [i for folder, held in folders.items() for i in _missing_in(folder, held, files)]
    return min(missing, default=None)


def _missing_in(folder: str, held: list[tuple[str, int]], files: Sequence[Any]) -> Iterable[int]:
    "Find the first of a folder's files that is not there."
    names = set() if len(held) <= _FEW else _list_files(folder)
    # a name that is not listed as it is written may be found all the same: letters' case, accents
    return [i for name, i in held if name not in names and not os.path.exists(files[i])][:1]


def _list_files(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


@dataclass(frozen=True)
class Header:
    "What an image file says of itself before its pixels."

    size: tuple[int, int]  # width and height
    mode: str  # PIL's: 'RGB', 'L', 'P', '1', …


@dataclass
class Headers:
    "The headers of files, each read once, and of no more than `most` files."

    most: int = HEADERS
    known: dict[str, Header | None] = field(default_factory=dict)

    def of(
        self,
        file: Any,  # a path, or anything else
    ) -> Header | None:  # None: no image file, or one file too many
        "Give the header of a file."
        if not isinstance(file, str | Path):
            return None
        key = str(file)
        if key not in self.known:
            if len(self.known) >= self.most:
                return None
            self.known[key] = _read(file)
        return self.known[key]

    def sizes(
        self,
        files: Sequence[Any],  # a path each, or anything else
    ) -> np.ndarray:  # (N, 2) width and height; NaN where there is no header
        "Give the sizes of images."
        once = {file: self.of(file) for file in dict.fromkeys(f for f in files if isinstance(f, str | Path))}
        found = [once.get(f) if isinstance(f, str | Path) else None for f in files]
        return np.array([(np.nan, np.nan) if h is None else h.size for h in found], dtype=float).reshape(-1, 2)


def _read(file: str | Path) -> Header | None:
    try:
        with Image.open(file) as image:
            return Header(image.size, image.mode)
    except (OSError, UnidentifiedImageError):
        return None


def spread(
    rows: Sequence[int],  # all
    most: int,  # how many at most
) -> list[int]:
    "Choose rows evenly from the first to the last."
    if len(rows) <= most:
        return list(rows)
    return [rows[int(n)] for n in np.linspace(0, len(rows) - 1, most).round()]
