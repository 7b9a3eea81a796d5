"""Where stored taps are: in memory, or in a folder of files that several processes share."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fastai_heads.data.stored import Column
from fastai_heads.data.stored_dl import Stored
from fastai_heads.disk import settle
from fastai_heads.errors import HeadsError, writing

__all__ = ["TapCache", "in_bytes"]

GIB = 2**30
_SAID, _PART = "columns.json", ".part"


@dataclass(frozen=True)
class TapCache:
    """Where taps are stored: in memory up to a size, and else as files in a folder, which has a limit. What was used
    longest ago is removed to keep to it. `print(TapCache(folder))` says how much is there, `clear()` removes it.

    Several processes may share the folder. One of them fills it, and the others wait. What is not whole has a name of
    its own, and is never read."""

    folder: str | Path | None = None  # None: `taps` in the learner's `path/model_dir`
    memory: float = 1.0  # GiB that the taps of a training or of a validation set may take in memory; 0: files always
    limit: float = 20.0  # GiB that the folder may take

    def __post_init__(self) -> None:
        for name in ("memory", "limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise HeadsError(f"`{name}` of TapCache is a number of GiB, found {value!r}.")
        if not isinstance(self.folder, str | Path | None):
            raise HeadsError(f"`folder` of TapCache is a folder, as a `Path` or a text, found {self.folder!r}.")

    def __str__(self) -> str:
        where = "no folder yet" if self.folder is None else f"{self.folder}: {len(self.entries())} sets of taps"
        return f"TapCache, {where}, {in_bytes(self.size)} of {in_bytes(self.limit * GIB)}"

    def entries(self) -> list[Path]:
        "List what is stored, a folder for the items of each loader, the one used longest ago first."
        folder = Path(self.folder) if self.folder is not None else None
        found = [p for p in folder.iterdir() if p.is_dir()] if folder is not None and folder.is_dir() else []
        return sorted(found, key=lambda path: path.stat().st_mtime)

    @property
    def size(self) -> int:
        "How many bytes the folder takes."
        return sum(map(_size, self.entries()))

    def clear(self) -> None:
        "Remove what is stored."
        for entry in self.entries():
            shutil.rmtree(entry, ignore_errors=True)

    def find(
        self,
        key: str,  # says what is stored
    ) -> Stored | None:
        "Open what is stored under a key."
        path = Path(self.folder) / key
        try:
            said = json.loads((path / _SAID).read_text())
            columns = [Column.read(path / f"{i}.npy", one) for i, one in enumerate(said["columns"])]
        except FileNotFoundError:
            return None
        with suppress(OSError):  # a folder that may only be read
            path.touch()  # it was used now
        taps = {tuple(tap) if isinstance(tap, list) else tap: column for tap, column in zip(said["taps"], columns)}
        return Stored(taps, tuple(columns[len(taps) :]), said["views"])

    @contextmanager
    def lock(
        self,
        key: str,  # says what is stored
    ) -> Iterator[None]:
        "Let one process at a time fill a key."
        folder = Path(self.folder)
        lock = FileLock(folder / f"{key}.lock")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def part(
        self,
        key: str,  # says what is stored, and is locked
        n_bytes: int,  # that it will take
    ) -> Iterator[Path]:
        "Give a folder to write to, which has its name once it is whole. After an error it is removed."
        path = Path(self.folder) / f"{key}{_PART}"
        self._remove_left(key)
        self._make_room(n_bytes)
        with writing(path):
            path.mkdir()
        try:
            yield path
            with writing(path):
                settle(path)
                path.rename(Path(self.folder) / key)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _remove_left(self, key: str) -> None:
        "Remove what processes that were killed have left, under this key and under others: nobody holds their locks."
        for left in Path(self.folder).glob(f"*{_PART}"):
            if left.stem == key:
                shutil.rmtree(left, ignore_errors=True)
                continue
            with suppress(Timeout), FileLock(left.with_suffix(".lock")).acquire(timeout=0):
                shutil.rmtree(left, ignore_errors=True)

    def _make_room(self, n_bytes: int) -> None:
        "Remove what was used longest ago. Refuses what the folder or the disk has no room for."
        what, limit = f"the taps take {in_bytes(n_bytes)}", self.limit * GIB
        fix = "`TapCache(folder, limit=…)` sets another limit, `dtype=torch.float16` halves them."
        if n_bytes > limit:
            raise HeadsError(f"`cache`: {what}, and the folder {self.folder} may take {in_bytes(limit)}. {fix}")
        entries = [entry for entry in self.entries() if entry.suffix != _PART]
        while entries and self.size + n_bytes > limit:
            shutil.rmtree(entries.pop(0), ignore_errors=True)
        free = shutil.disk_usage(self.folder).free
        if n_bytes > free:
            raise HeadsError(f"`cache`: {what}, and the disk of {self.folder} has {in_bytes(free)} left. {fix}")


def write_said(
    path: Path,  # the folder of one key
    stored: Stored,  # whose columns are its files, in order
) -> None:
    "Write down what the files do not say. It is the last file of a folder."
    for column in stored.columns:
        column.flush()
    said = {"taps": list(stored.taps), "views": stored.views, "columns": [c.describe() for c in stored.columns]}
    with writing(path):
        (path / _SAID).write_text(json.dumps(said))


def in_bytes(
    n: float,
) -> str:
    "Write a number of bytes for people."
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.4g} GiB"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
