"""One pass over the items of a loader, through the frozen body: what is stored of them."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.torch_core import no_random
from fastcore.basics import chunked
from fastprogress.fastprogress import progress_bar
from torch import Tensor

from fastai_heads.bodies.stored import StoredBody
from fastai_heads.data.detection_block import TensorDetections, same_count
from fastai_heads.data.stored import Column, row_bytes
from fastai_heads.data.stored_dl import Stored
from fastai_heads.data.tap_cache import TapCache, in_bytes, write_said
from fastai_heads.errors import HeadsError
from fastai_heads.modes import evaluate

__all__ = ["Filling", "put"]

_SKIPPED = "`cache`: the data skips items, which have no place in what is stored. Take them out of it."

Batch = tuple[dict[Hashable, Tensor], tuple[Tensor, ...]]
"What is stored of a batch: what the body gave, and the targets."


@dataclass(frozen=True)
class Filling:
    "The pass over the items of one loader, `views` times."

    body: StoredBody
    dl: TfmdDL  # over fastai `Datasets`
    views: int
    dtype: torch.dtype | None  # to store taps in, if not in their own
    autocast: Callable[[], AbstractContextManager]  # of the fit
    shown: bool  # draw a progress bar

    def store(
        self,
        cache: TapCache,  # its folder is set
        key: str,  # says what is stored
    ) -> Stored:
        "Open what is stored under a key, or store it, in memory where it is small enough."
        found = cache.find(key)
        if found is not None:
            return found
        with ExitStack() as stack:
            for context in (no_random(), evaluate(self.body.body), self.autocast()):
                stack.enter_context(context)
            batches = self._batches()
            first = next(batches)
            n_bytes, every = self._bytes(first[1]), chain([first], batches)
            if n_bytes <= cache.memory * 2**30:
                return self._fill(first[1], every, n_bytes, None)
            stack.enter_context(cache.lock(key))
            found = cache.find(key)  # another process may have filled it
            if found is not None:
                return found
            with cache.part(key, n_bytes) as path:
                write_said(path, self._fill(first[1], every, n_bytes, path))
        return cache.find(key)

    def _order(self) -> list[int]:
        """List the places of the items. Batches are of the sizes that the fit has: in training whole ones, in
        validation those of the loader."""
        n, dl = len(self.dl.dataset), self.dl
        if dl.shuffle or dl.drop_last:
            return [*range(n), *range(-n % dl.bs if dl.drop_last else 0)]
        found = list(dl.get_idxs())
        return found if sorted(found) == list(range(n)) else list(range(n))

    def _batches(self) -> Iterator[tuple[np.ndarray, Batch]]:  # rows, what is stored of them
        order, n = self._order(), len(self.dl.dataset)
        loader = self.dl.new(shuffle=False, drop_last=False, get_idxs=lambda: order)
        for view in range(self.views):
            for batch, rows in zip(loader, chunked(order, self.dl.bs)):
                yield np.array(rows) + view * n, self._take(batch, len(rows))

    def _take(self, batch: tuple[Any, ...], n: int) -> Batch:
        "Run the body on a batch. Refuses a batch that lacks items, and targets that are no tensors."
        n_inp = self.dl.dataset.n_inp
        inputs, targets = batch[:n_inp], tuple(batch[n_inp:])
        kept = self.body.store(*inputs)
        for place, target in enumerate(targets):
            if not isinstance(target, Tensor):
                raise HeadsError(f"`cache`: target {place} is a {type(target).__name__}, and tensors alone are stored.")
        if any(len(x) != n for x in (*kept.values(), *targets)):
            raise HeadsError(_SKIPPED)
        return kept, targets

    def _bytes(self, first: Batch) -> int:
        kept, targets = first
        sizes = [row_bytes(x, self.dtype) for x in kept.values()] + [row_bytes(x) for x in targets]
        return len(self.dl.dataset) * self.views * sum(sizes)

    def _bar(self, total: int, comment: str) -> Iterable[int]:
        if not self.shown:
            return range(total)
        bar = progress_bar(range(total), leave=False)
        bar.comment = comment
        return bar

    def _fill(
        self,
        like: Batch,
        batches: Iterable[tuple[np.ndarray, Batch]],
        n_bytes: int,
        folder: Path | None,
    ) -> Stored:
        n, (kept, targets) = len(self.dl.dataset) * self.views, like
        places = iter(range(len(kept) + len(targets)))

        def column(like: Tensor, dtype: torch.dtype | None = None) -> Any:
            path = None if folder is None else folder / f"{next(places)}.npy"
            return _Boxes(n, path) if isinstance(like, TensorDetections) else Column.empty(n, like, path, dtype)

        taps = {key: column(x, self.dtype) for key, x in kept.items()}
        labels = [column(x) for x in targets]
        total = self.views * -(-len(self._order()) // self.dl.bs)
        done, where = 0, "in memory" if folder is None else "on disk"
        for _, (rows, (kept, targets)) in zip(self._bar(total, f"taps, {in_bytes(n_bytes)} {where}"), batches):
            done += 1
            for name, x in (*kept.items(), *enumerate(targets)):
                put(labels[name] if isinstance(name, int) else taps[name], rows, x, name)
        if done < total:
            raise HeadsError(_SKIPPED)
        return Stored(taps, tuple(c.finish() if isinstance(c, _Boxes) else c for c in labels), self.views)


def put(
    column: Any,  # a `Column`, or boxes
    rows: np.ndarray,  # (B,) places
    batch: Tensor,  # (B, …)
    name: Hashable,  # of the tap, or the target's place
) -> None:
    "Store a batch. Refuses one of another shape than the others."
    if isinstance(column, Column) and batch.shape[1:] != column.shape[1:]:
        what = f"target {name}" if isinstance(name, int) else f"tap {name!r}"
        raise HeadsError(
            f"`cache`: {what} is {tuple(column.shape[1:])} in one batch and {tuple(batch.shape[1:])} in another, and "
            "what is stored has one shape. Bring all items to one size, or train with `freeze` and `fit`."
        )
    column[rows] = batch


class _Boxes:
    "A column of boxes, whose batches are padded to as many as their items have: it is padded to the most of all."

    def __init__(self, n: int, path: Path | None):
        self.n, self.path, self.rows, self.batches = n, path, [], []

    def __setitem__(self, rows: np.ndarray, batch: Tensor) -> None:
        self.rows.append(rows)
        self.batches.append(batch.cpu())

    def finish(self) -> Column:
        "Make the column."
        every = torch.cat(same_count(self.batches))
        column = Column.empty(self.n, every, self.path)
        column[np.concatenate(self.rows)] = every
        return column
