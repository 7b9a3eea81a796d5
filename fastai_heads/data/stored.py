"""One tensor of every item, in memory or in a file of which a batch's rows alone are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastai_heads.errors import HeadsError

__all__ = ["Column", "ColumnWriter"]


class Column:
    "One tensor of every item. `column[rows]` gives those of a batch, in the type that the body gave."

    def __init__(
        self,
        values: Tensor | Path,  # (N, …), or a `.npy` file of it
        dtype: torch.dtype,  # of the batches
        kind: type = Tensor,  # of the batches, such as fastai's `TensorMask`
    ):
        self.dtype, self.kind, self.path = dtype, kind, values if isinstance(values, Path) else None
        self.values = values if self.path is None else None
        if self.path is not None:
            self._file = open(self.path, "rb")  # stays open: the rows are there even if another run removes the file
            version = np.lib.format.read_magic(self._file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            self._shape, _, self._stored = read(self._file)
            self._start = self._file.tell()

    def __len__(self) -> int:
        return len(self.values) if self.path is None else self._shape[0]

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        found = self.values[torch.from_numpy(rows)] if self.path is None else torch.from_numpy(self._read(rows))
        return found.to(self.dtype).as_subclass(self.kind)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        "Read rows of the file. It is mapped for this batch alone, so that no page of it stays in the process's memory."
        mapped = np.memmap(self._file, dtype=self._stored, mode="r", offset=self._start, shape=self._shape)
        return np.asarray(mapped[rows])

    def __del__(self) -> None:
        if getattr(self, "path", None) is not None:
            self._file.close()


class ColumnWriter:
    "Takes the batches of a pass in turn, and makes a `Column` of them."

    def __init__(
        self,
        n: int,  # how many rows there will be
        first: Tensor,  # (B, …) the first batch
        what: str,  # for messages
        path: Path | None = None,  # a file to write; None: memory
        dtype: torch.dtype | None = None,  # to store in, if not in its own
    ):
        self.n, self.shape, self.what, self.path = n, tuple(first.shape[1:]), what, path
        self.dtype, self.kind = first.dtype, type(first)
        self.stored = dtype or (torch.float32 if self.dtype == torch.bfloat16 else self.dtype)  # numpy has no bfloat16
        self.rows, self.error, self.largest = 0, 0.0, 0.0
        if path is None:
            self.values = torch.empty(n, *self.shape, dtype=self.stored)
            return
        self._file = open(path, "wb")
        descr = np.lib.format.dtype_to_descr(torch.empty(0, dtype=self.stored).numpy().dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    @staticmethod
    def row_bytes(
        batch: Tensor,  # (B, …)
        dtype: torch.dtype | None = None,  # to store in, if not in its own
    ) -> int:
        "Count the bytes of one row."
        size = (dtype or batch.dtype).itemsize if batch.dtype != torch.bfloat16 or dtype else 4
        return batch[0].numel() * size

    def append(
        self,
        batch: Tensor,  # (B, …), on any device
    ) -> None:
        "Take the next rows. Refuses those of another shape, and more than there should be."
        if tuple(batch.shape[1:]) != self.shape:
            raise HeadsError(
                f"`cache`: {self.what} is {self.shape} in one batch and {tuple(batch.shape[1:])} in another, and what "
                "is stored has one shape. Bring all items to one size, or train with `fit`."
            )
        if self.rows + len(batch) > self.n:
            raise HeadsError(f"`cache`: {self.what} has more rows than the {self.n} items of the data.")
        plain = batch.detach().as_subclass(Tensor).cpu()
        stored = plain.to(self.stored)
        if stored.dtype != plain.dtype and self.stored.itemsize < plain.dtype.itemsize:
            self._measure(plain, stored)
        if self.path is None:
            self.values[self.rows : self.rows + len(batch)] = stored
        else:
            self._file.write(np.ascontiguousarray(stored.numpy()).data)
        self.rows += len(batch)

    def _measure(self, plain: Tensor, stored: Tensor) -> None:
        "Note how far half precision is off. Refuses what it cannot hold."
        if stored.isinf().any() and not plain.isinf().any():
            raise HeadsError(f"`dtype`: {self.what} reaches {plain.abs().max():.3g}, which {self.stored} cannot hold.")
        self.error = max(self.error, (plain - stored.to(plain.dtype)).abs().max().item())
        self.largest = max(self.largest, plain.abs().max().item())

    def finish(self) -> Column:
        "Give the column. Refuses one that lacks rows: items that the data skips have no place in it."
        if self.path is not None:
            self._file.close()
        if self.rows != self.n:
            raise HeadsError(f"`cache`: the data gave {self.rows} of its {self.n} items. Take out those it skips.")
        return Column(self.values if self.path is None else self.path, self.dtype, self.kind)

    def close(self) -> None:
        "Leave the file as it is, after an error."
        if self.path is not None:
            self._file.close()


def total_bytes(columns: Sequence[Column]) -> int:
    "Count the bytes of some columns."
    return sum(c.path.stat().st_size if c.path is not None else c.values.nbytes for c in columns)
