"""Files and folders that are written whole or not at all, also where a process is killed or a disk is full.

All is written beside its place, brought to the disk, and then renamed. No module that this one imports imports
torch."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from fastai_heads.errors import writing

__all__ = ["beside", "in_place", "settle", "whole_file", "whole_folder"]

HOUR = 3600.0
"What a killed process has left is removed after so many seconds. Before, another process may still be writing it."


@contextmanager
def whole_file(
    path: Path,  # of a file, old or new; its folder is there
) -> Iterator[Path]:  # where to write; where nothing is written the old file stays
    "Give a place beside a file, which takes the file's place once it is written."
    part = path.with_name(f"{path.name}.part")  # one name: what a killed process has left is written over
    with writing(path):
        try:
            yield part
            if part.exists():
                settle(part)
                part.replace(path)
                _settle_names(path.parent)
        finally:
            if part.exists():
                part.unlink()


@contextmanager
def whole_folder(
    path: Path,  # of a folder, old or new; its parent is made
) -> Iterator[Path]:  # a new folder to write to
    "Give a folder beside another one, whose place it takes once it is written."
    with beside(path) as folder:
        yield folder
        with writing(path):
            settle(folder)
            folder.chmod(0o755)
            _exchange(folder, path)


@contextmanager
def beside(
    path: Path,  # of a file or folder, old or new; its parent is made
) -> Iterator[Path]:  # an empty folder, which is removed at the end
    "Give a folder for what is not whole yet, and remove those that killed processes have left."
    with writing(path, (OSError,)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def settle(
    path: Path,  # of a file, or of a folder with files
) -> None:
    "Bring to the disk what was written, so that no crash of the machine leaves a name without its content."
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def in_place(
    folder: Path,  # that was written by `whole_folder`
) -> Path:  # itself, or the old one that a killed process has moved aside
    "Find a folder whose place was being taken when the process was killed."
    old = _old(folder)
    return old if old.is_dir() and not folder.exists() else folder


def _settle_names(folder: Path) -> None:
    "Bring a folder's list of names to the disk. Windows does so itself."
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-old")


def _exchange(new: Path, place: Path) -> None:
    "Move an old folder aside and the new one to its place, and the old one back if that fails."
    old = _old(place)
    if in_place(place) == old:  # of a process that was killed between the two moves
        old.replace(place)
    if not place.exists():
        new.replace(place)
    else:
        shutil.rmtree(old, ignore_errors=True)
        place.replace(old)
        try:
            new.replace(place)
        except BaseException:
            old.replace(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _settle_names(place.parent)


def _remove_left(path: Path) -> None:
    name = re.compile(rf"\.{re.escape(path.name)}-[a-z0-9_]{{8}}")  # as `mkdtemp` makes them
    for found in path.parent.glob(f".{escape(path.name)}-*"):
        if name.fullmatch(found.name) and time.time() - found.stat().st_mtime > HOUR:
            shutil.rmtree(found, ignore_errors=True)
