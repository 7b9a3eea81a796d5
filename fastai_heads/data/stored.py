"""One tensor of every item, in memory or in a file of which a batch's rows alone are read."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastai_heads.errors import HeadsError, writing

__all__ = ["Column", "row_bytes"]


class Column:
    """One tensor of every item. `column[rows]` gives those of a batch, in the type that the batch had, and
    `column[rows] = batch` stores it.

    A file is mapped or written for one batch at a time, so that none of its pages stays in the process's memory. It
    stays open: the rows are there even if another process removes the file."""

    def __init__(
        self,
        values: Tensor | Path,  # (N, …), or a `.npy` file of it
        dtype: torch.dtype,  # of the batches
        kind: type = Tensor,  # of the batches, such as fastai's `TensorMask`
        error: float = 0.0,  # how far what is stored is off at most, where it is stored in half precision
        strides: Sequence[int] | None = None,  # of the batches; None: contiguous
        write: bool = False,  # the file may be written to
    ):
        self.values, self.dtype, self.kind, self.error = values, dtype, kind, error
        self.strides = tuple(strides) if strides else None
        if isinstance(values, Path):
            mapped = np.load(values, mmap_mode="r")
            self._shape, self._stored, self._start = mapped.shape, mapped.dtype, mapped.offset
            self._file = open(values, "r+b" if write else "rb")  # noqa: SIM115  it stays open

    @classmethod
    def empty(
        cls,
        n: int,  # rows
        like: Tensor,  # (B, …) a batch
        path: Path | None = None,  # a file to make; None: memory
        dtype: torch.dtype | None = None,  # to store numbers in, if not in their own
    ) -> "Column":
        "Make a column without values yet."
        stored, shape = _stored_in(like, dtype), (n, *like.shape[1:])
        if path is None:
            return cls(torch.empty(shape, dtype=stored), like.dtype, type(like), strides=_strides(like))
        with writing(path):
            np.lib.format.open_memmap(path, "w+", torch.empty(0, dtype=stored).numpy().dtype, shape)
        return cls(path, like.dtype, type(like), strides=_strides(like), write=True)

    @property
    def in_memory(self) -> bool:
        "Whether its rows are in memory."
        return isinstance(self.values, Tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        "(N, …)."
        return tuple(self.values.shape) if self.in_memory else self._shape

    @property
    def nbytes(self) -> int:
        "How many bytes it takes."
        return self.values.nbytes if self.in_memory else self.values.stat().st_size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        found = self.values[torch.from_numpy(rows)] if self.in_memory else torch.from_numpy(self._read(rows))
        found = found.to(self.dtype)
        if self.strides is not None:  # kernels go another way for another layout, and a last bit may hang on it
            found = torch.empty_strided(found.shape, self.strides, dtype=self.dtype).copy_(found)
        return found.as_subclass(self.kind)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        mapped = np.memmap(self._file, dtype=self._stored, mode="r", offset=self._start, shape=self._shape)
        return np.asarray(mapped[rows])

    def __setitem__(self, rows: np.ndarray, batch: Tensor) -> None:
        plain = batch.detach().as_subclass(Tensor).cpu()
        like = self.values if self.in_memory else torch.from_numpy(np.empty(0, self._stored))
        stored = plain.to(like.dtype)
        if stored.is_floating_point() and stored.dtype.itemsize < plain.dtype.itemsize:
            self._measure(plain, stored)
        if self.in_memory:
            self.values[torch.from_numpy(rows)] = stored
            return
        found = stored.contiguous().numpy()
        with writing(self.values):
            for row, values in zip(rows.tolist(), found):
                self._file.seek(self._start + row * values.nbytes)
                self._file.write(values.tobytes())

    def _measure(self, plain: Tensor, stored: Tensor) -> None:
        "Note how far half precision is off. Refuses what it cannot hold."
        if stored.isinf().any() and not plain.isinf().any():
            raise HeadsError(
                f"`dtype`: taps reach {plain.abs().max():.3g}, which {stored.dtype} cannot hold. Leave `dtype` out."
            )
        self.error = max(self.error, (plain - stored.to(plain.dtype)).abs().max().item())

    def flush(self) -> None:
        "Write what is not on the disk yet."
        if not self.in_memory:
            with writing(self.values):
                self._file.flush()

    def describe(self) -> dict[str, Any]:
        "Say in JSON what the file does not."
        kind = f"{self.kind.__module__}:{self.kind.__qualname__}"
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "kind": kind, "error": self.error, "strides": self.strides}

    @classmethod
    def read(
        cls,
        path: Path,  # a `.npy` file
        said: dict[str, Any],  # by `describe`
    ) -> "Column":
        "Open a column again."
        module, name = said["kind"].split(":")
        kind = getattr(import_module(module), name)
        return cls(path, getattr(torch, said["dtype"]), kind, said["error"], said["strides"])

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def row_bytes(
    batch: Tensor,  # (B, …)
    dtype: torch.dtype | None = None,  # to store numbers in, if not in their own
) -> int:
    "Count the bytes of one row."
    return batch[0].numel() * _stored_in(batch, dtype).itemsize


def _strides(batch: Tensor) -> tuple[int, ...] | None:
    "Tell the layout of a batch, where it is not contiguous and does not depend on the number of items."
    strides = batch.stride()
    fixed = not batch.is_contiguous() and strides[0] == max(strides)
    return strides if fixed else None


def _stored_in(batch: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    own = torch.float32 if batch.dtype == torch.bfloat16 else batch.dtype  # numpy has no bfloat16
    return dtype if dtype is not None and batch.is_floating_point() and dtype.itemsize < own.itemsize else own
