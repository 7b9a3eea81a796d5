"""fastai's distribution, for several heads and on any device.

Importing this imports `fastai.distributed`, which needs accelerate and gives fastai's `Learner` its methods: it is
imported where it is used and not with the package."""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import TrackerCallback
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL, DistributedTrainer
from fastai.torch_core import apply, get_model, num_distrib
from torch import Tensor

from fastai_heads.errors import HeadsError
from fastai_heads.training.across import from_first_rank, mean_over_ranks, world
from fastai_heads.training.joint import joint_batch, measure_batch
from fastai_heads.training.mixing import label_counts

__all__ = ["HeadsTrainer", "RanksDL", "gathered"]

_OF_FIRST_RANK = (ProgressCallback, ShowGraphCallback, CSVLogger)
"Callbacks that print, draw or write what is alike on all ranks."


class RanksDL(DistributedDL):
    """fastai's `DistributedDL` on any device, and in order: the ranks' n-th batches joined are the n-th batch of one
    process whose batches are as large as theirs together. Every rank has as many items as the others, so the last
    batch is filled up with items that have been; in validation they are left out again."""

    def __init__(
        self,
        dl: DataLoader,  # of the whole data
        **kwargs: Any,  # fastai's: `rank`, `world_size`, `device`
    ):
        super().__init__(dl, **kwargs)
        self.n, self.place = dl.n, -1

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.bs * self.world_size)
        return full + (rest > 0 and not self.drop_last)

    def new(self, *args: Any, **kwargs: Any) -> "RanksDL":
        "fastai's, of the data loader inside."
        return type(self)(self.dl.new(*args, **kwargs), rank=self.rank, world_size=self.world_size, device=self.device)

    def get_idxs(self) -> list[int]:
        "This rank's part of each batch of all ranks, in the first rank's order."
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
        "No batch yet."
        self.place = -1
        self.dl.before_iter()

    def after_batch(self, b: tuple) -> tuple:
        "The next batch."
        self.place += 1
        return self.dl.after_batch(b)

    @property
    def items(self) -> int:
        "How many items the current batch has over all ranks, none of them twice."
        whole = self.bs * self.world_size
        return min(whole, self.n - self.place * whole)

    @property
    def own_items(self) -> int:
        "How many of them are this rank's."
        size = -(-self.items // self.world_size)
        return min(max(self.items - self.rank * size, 0), size)

    def joined(
        self,
        tensor: Tensor,  # (B, …) of the current batch, without a graph
        alike: Callable[[list[Tensor]], list[Tensor]] = list,  # gives the ranks' tensors one shape, but for the items
    ) -> Tensor:  # one row per item, the same on all ranks
        "The items of all ranks, in order."
        return torch.cat(alike(gathered(tensor)))[: self.items]

    def to_detach(
        self,
        b: Any,  # tensors of the current batch, or scalars; tuples of them
        cpu: bool = True,  # bring them to the CPU
        gather: bool = True,  # from all ranks: items joined, scalars as their mean
    ) -> Any:
        "Without a graph."

        def one(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.detach()
            if gather:
                x = self.joined(x) if x.ndim else _mean(x)
            return x.cpu() if cpu else x

        return apply(one, b)


class HeadsTrainer(DistributedTrainer):
    """fastai's `DistributedTrainer` for a learner with several heads, on any device.

    Batch norms are synchronised on GPUs only, as torch's `SyncBatchNorm` knows no other. The first rank prints and
    logs. `learn.loss` is that of all ranks, so that every callback decides alike on each of them."""

    name = "distributed_trainer"  # fastai's

    def __init__(
        self,
        sync_bn: bool = True,  # on GPUs, replace batch norms by `nn.SyncBatchNorm`, for good
        **kwargs: Any,  # accelerate's `Accelerator`'s
    ):
        super().__init__(sync_bn, **kwargs)
        if self.accelerator.num_processes != num_distrib():
            raise HeadsError(
                f"`distrib_ctx`: {num_distrib()} processes were started, and accelerate, set up before that, knows "
                f"of {self.accelerator.num_processes}. On CPUs pass `cpu=True` to the first `Accelerator` of a "
                "process; fastai's `rank0_first` makes one without."
            )
        self.sync_bn = sync_bn and self.device.type == "cuda"
        self.old_dls, self._logger = [], None

    @property
    def device(self) -> torch.device:
        "This rank's. accelerate calls the CPU 'cpu:0', which `torch.load` does not know."
        device = self.accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device

    def before_fit(self) -> None:
        "fastai's, with all that has a device on this rank's, and the ranks but the first silent."
        self.learn.dls.to(self.device)
        self.learn.loss_func.to(self.device)
        self._logger = self.learn.logger
        super().before_fit()
        if self.accelerator.process_index:
            for cb in self.learn.cbs:
                _silence(cb)

    def _wrap_dl(self, dl: Any) -> Any:
        "Lists of batches stay what they are: every rank has all of them."
        if isinstance(dl, RanksDL) or not isinstance(dl, DataLoader):
            return dl
        dl.to(self.device)
        return RanksDL(dl, device=self.device)

    def after_pred(self) -> None:
        "In validation no item counts twice."
        n = getattr(self.learn.dl, "own_items", None)
        if not self.training and n is not None:
            self.learn.pred = apply(lambda t: t[:n], self.pred)
            self.learn.xb, self.learn.yb = (apply(lambda t: t[:n], b) for b in (self.xb, self.yb))

    def after_loss(self) -> None:
        "What the batch is over all ranks."
        self.learn.joint_batch = None
        if not isinstance(self.learn.dl, RanksDL) or not len(self.yb) or self.learn.loss.ndim:
            return
        heads = list(self.learn.heads.values())
        measures = [measure_batch(self.learn, head, place) for place, head in enumerate(heads)]
        self.learn.joint_batch = joint_batch(heads, measures, label_counts(self.learn.loss_func, self.yb))
        parts = zip(heads, self.learn.joint_batch.losses)
        self.learn.loss = sum(head.loss_weight * loss for head, loss in parts).to(self.learn.loss.dtype)

    def after_train(self) -> None:
        "The first rank's statistics of batch norms, on all ranks: not every strategy has the model exchange them."
        for buffer in self.model.buffers():
            buffer.copy_(from_first_rank(buffer))

    def after_fit(self) -> None:
        "The learner as it was."
        self.restore()

    def restore(self) -> None:
        "Model, data and logger as they were before the fit."
        if self._logger is None:
            return
        self.learn.model, self.learn.dls.loaders = get_model(self.learn.model), self.old_dls
        self.learn.logger, self._logger, self.learn.joint_batch = self._logger, None, None
        for cb in self.learn.cbs:
            cb.__dict__.pop("after_epoch", None)
        self.accelerator._models.clear()  # it keeps every model that it has prepared, gradients and all

    def detach(self) -> None:
        "Undo what is left of a fit that an error has ended."
        self.restore()
        for cb in self.learn.cbs:
            if isinstance(cb, _OF_FIRST_RANK):
                cb.run = True


def _silence(cb: Callback) -> None:
    "Let a callback of a rank that is not the first neither print nor write in this fit."
    if isinstance(cb, _OF_FIRST_RANK):
        cb.run = False
    elif isinstance(cb, TrackerCallback):
        cb.after_epoch = partial(_without_print, cb.after_epoch)


def _without_print(call: Callable[[], None]) -> None:
    with redirect_stdout(None):
        call()


def _mean(scalar: Tensor) -> Tensor:
    mean = scalar.clone()
    mean_over_ranks([mean])
    return mean


def gathered(
    tensor: Tensor,  # without a graph, of the same type and number of axes on every rank, of any shape
) -> list[Tensor]:  # one per rank, in order
    "Every rank's tensor, on every rank."
    if world() == 1:
        return [tensor]
    plain = tensor.as_subclass(Tensor).contiguous()
    shapes = [tuple(s.tolist()) for s in _exchanged(torch.tensor(plain.shape, dtype=torch.long, device=plain.device))]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = plain.new_zeros(max(sizes))
    flat[: plain.numel()] = plain.view(-1)
    sent = flat.byte() if flat.dtype == torch.bool else flat
    parts = [part[:n].view(shape).to(plain.dtype) for part, n, shape in zip(_exchanged(sent), sizes, shapes)]
    return [part.as_subclass(type(tensor)) for part in parts]


def _exchanged(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor)
    return parts
