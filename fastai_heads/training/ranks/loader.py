"""The data loader of one rank: its part of every batch."""

from collections.abc import Callable
from typing import Any

import torch
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL
from fastai.torch_core import apply
from torch import Tensor

from fastai_heads.training.ranks.exchange import from_first_rank, gather_tensors, mean_over_ranks
from fastai_heads.training.ranks.joint import SharedLoader

__all__ = ["RanksDL"]


class RanksDL(SharedLoader, DistributedDL):
    """fastai's `DistributedDL` on any device, and in order: the ranks' n-th batches joined are the n-th batch of one
    process whose batches are as large as theirs together. Every rank has as many items as the others. For that the
    last batch is filled up with items that have been there before. In validation these are left out again."""

    def __init__(
        self,
        dl: DataLoader,  # of the whole data
        **kwargs: Any,  # fastai's: `rank`, `world_size`, `device`
    ):
        super().__init__(dl, **kwargs)
        self.n, self.turn = dl.n, -1

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.bs * self.world_size)
        return full + (rest > 0 and not self.drop_last)

    def new(self, *args: Any, **kwargs: Any) -> "RanksDL":
        "Make another, as fastai does, of the data loader inside."
        return type(self)(self.dl.new(*args, **kwargs), rank=self.rank, world_size=self.world_size, device=self.device)

    def get_idxs(self) -> list[int]:
        "List this rank's part of each batch of all ranks, in the first rank's order."
        idxs = from_first_rank(torch.tensor(list(self.dl.get_idxs()), dtype=torch.long, device=self.device)).tolist()
        whole = self.bs * self.world_size
        self.n = len(idxs) // whole * whole if self.drop_last else len(idxs)
        batches = [idxs[start : min(start + whole, self.n)] for start in range(0, self.n, whole)]
        return [i for batch in batches for i in self._part(batch, idxs)]

    def _part(self, batch: list[int], idxs: list[int]) -> list[int]:
        size = -(-len(batch) // self.world_size)
        again = size * self.world_size - len(batch)
        filled = batch + (idxs * (again // len(idxs) + 1))[:again]
        return filled[self.rank * size : (self.rank + 1) * size]

    def before_iter(self) -> None:
        "Start anew: there is no batch yet."
        self.turn, self.joint = -1, None
        self.dl.before_iter()

    def after_batch(self, b: tuple) -> tuple:
        "Go on to the next batch."
        self.turn, self.joint = self.turn + 1, None
        return self.dl.after_batch(b)

    @property
    def items(self) -> int:
        "How many items the current batch has over all ranks, none of them twice."
        whole = self.bs * self.world_size
        return min(whole, self.n - self.turn * whole)

    @property
    def own_items(self) -> int:
        "How many of them are this rank's."
        size = -(-self.items // self.world_size)
        return min(max(self.items - self.rank * size, 0), size)

    def join(
        self,
        tensor: Tensor,  # (B, …) of the current batch, without a graph
        alike: Callable[[list[Tensor]], list[Tensor]] = list,  # gives the ranks' tensors one shape, but for the items
    ) -> Tensor:  # one row per item, the same on all ranks
        "Join the items of all ranks, in order."
        return torch.cat(alike(gather_tensors(tensor)))[: self.items]

    def to_detach(
        self,
        b: Any,  # tensors of the current batch, or scalars; tuples of them
        cpu: bool = True,  # bring them to the CPU
        gather: bool = True,  # from all ranks: items joined, scalars as their mean
    ) -> Any:
        "Take tensors out of the graph."

        def one(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.detach()
            if gather:
                x = self.join(x) if x.ndim else _mean(x)
            return x.cpu() if cpu else x

        return apply(one, b)


def _mean(scalar: Tensor) -> Tensor:
    mean = scalar.clone()
    mean_over_ranks([mean])
    return mean
