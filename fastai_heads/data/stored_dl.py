"""A loader over what is stored of the items: its batches are those of the loader that it stands for, in its order."""

from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any

import numpy as np
from fastai.data.load import DataLoader

from fastai_heads.data.stored import Column

__all__ = ["StoredDL"]


class StoredDL(DataLoader):
    """A loader that reads no item. It asks the loader that it stands for for the order of each epoch, so that this one
    has moved on as if it had been read itself, and whatever is made of it (`new`, one item) comes from there."""

    def __init__(
        self,
        source: DataLoader,  # that it stands for
        kept: Mapping[Any, Column],  # what the network takes in place of its inputs
        targets: tuple[Column, ...],  # in order
        n_inp: int,  # inputs of a batch; the stored ones stand for all
        views: int = 1,  # how often each item is stored: rows are all items, then all items again
    ):
        self.source, self.kept, self.targets, self.inputs, self.views = source, kept, targets, n_inp, views
        super().__init__(
            source.dataset, bs=source.bs, shuffle=source.shuffle, drop_last=source.drop_last, n=source.n,
            device=source.device,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.source)

    def randomize(self) -> None:
        self.source.randomize()

    def get_idxs(self) -> list[int]:
        "List the items of an epoch, in the order that the loader itself would take."
        return list(self.source.get_idxs())

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        "Gather whole batches by their items' places; of several views, one at random for each item."
        chance, n = Random(self.source.rng.random()) if self.views > 1 else None, len(self.dataset)
        for chosen in self.chunkify(samps):
            rows = np.array(chosen, dtype=np.int64)
            if chance is not None:
                rows += n * np.array([chance.randrange(self.views) for _ in chosen])
            kept = {key: column[rows] for key, column in self.kept.items()}
            yield (kept, *[None] * (self.inputs - 1), *(column[rows] for column in self.targets))

    def do_item(self, s: Any) -> Any:
        return self.source.do_item(s)

    def do_batch(self, b: Any) -> Any:
        return self.source.do_batch(b)

    def after_batch(self, b: Any) -> Any:
        "Leave stored batches as they are: they have been through the transforms."
        return b if isinstance(b[0], dict) else self.source.after_batch(b)

    def new(self, *args: Any, **kwargs: Any) -> DataLoader:
        "Make another loader, which reads items: as of the loader that it stands for."
        return self.source.new(*args, **kwargs)
