"""A loader over what is stored of the items: its batches are those of the loader that it stands for, in its order."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from fastai.data.load import DataLoader
from fastcore.basics import chunked

from fastai_heads.data.stored import Column

__all__ = ["Stored", "StoredDL"]


@dataclass(frozen=True)
class Stored:
    "What is stored of the items of one loader. With several views the rows are all items, then all items again."

    taps: dict[Hashable, Column]  # what the network takes in place of its inputs
    targets: tuple[Column, ...]  # in order
    views: int = 1  # how often each item is stored

    @property
    def columns(self) -> list[Column]:
        "All of them."
        return [*self.taps.values(), *self.targets]

    @property
    def nbytes(self) -> int:
        "How many bytes they take."
        return sum(column.nbytes for column in self.columns)

    @property
    def error(self) -> float:
        "How far a stored tap is off at most."
        return max((column.error for column in self.taps.values()), default=0.0)


class StoredDL(DataLoader):
    """A loader that reads no item. Its batches hold a dictionary in place of the first input, and nothing for others.

    It asks the loader that it stands for for the order of each epoch: that one has moved on as if it had been read
    itself. Whatever is made of this loader (`new`, one item) comes from there."""

    def __init__(
        self,
        source: DataLoader,  # that it stands for
        stored: Stored,  # of its items
    ):
        self.source, self.stored = source, stored
        super().__init__(
            source.dataset,
            bs=source.bs,
            shuffle=source.shuffle,
            drop_last=source.drop_last,
            n=source.n,
            device=source.device,
        )

    def __len__(self) -> int:
        return len(self.source)

    def randomize(self) -> None:
        "Start an epoch."
        self.source.randomize()

    def get_idxs(self) -> list[int]:
        "List the items of an epoch, in the order that the loader itself would take."
        return list(self.source.get_idxs())

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        "Gather whole batches by the items' places; of several views, one at random for each item."
        views, n = self.stored.views, len(self.dataset)
        chance = Random(self.source.rng.random()) if views > 1 else None
        for chosen in chunked(samps, self.bs, self.drop_last):
            rows = np.array(chosen, dtype=np.int64)
            if chance is not None:
                rows += n * np.array([chance.randrange(views) for _ in chosen])
            taps = {key: column[rows] for key, column in self.stored.taps.items()}
            yield (taps, *[()] * (self.dataset.n_inp - 1), *(column[rows] for column in self.stored.targets))

    def do_item(self, s: Any) -> Any:
        "Read one item, as the loader itself does."
        return self.source.do_item(s)

    def do_batch(self, b: Any) -> Any:
        "Collate items, as the loader itself does."
        return self.source.do_batch(b)

    def after_batch(self, b: Any) -> Any:
        "Leave stored batches as they are: they have been through the transforms."
        return b if isinstance(b[0], dict) else self.source.after_batch(b)

    def new(self, *args: Any, **kwargs: Any) -> DataLoader:
        "Make another loader, which reads items: as of the loader that it stands for."
        return self.source.new(*args, **kwargs)
