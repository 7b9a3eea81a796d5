"""fastai's distribution, for several heads and on any device.

Importing this imports `fastai.distributed`, which needs accelerate and gives fastai's `Learner` its methods: it is
imported where it is used and not with the package."""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import TrackerCallback
from fastai.data.load import DataLoader
from fastai.distributed import DistributedTrainer
from fastai.torch_core import apply, get_model, num_distrib

from fastai_heads.errors import HeadsError
from fastai_heads.training.ranks.exchange import from_first_rank
from fastai_heads.training.ranks.joint import SharedLoader, join_batch
from fastai_heads.training.ranks.loader import RanksDL
from fastai_heads.training.step import count_labels, measure_batch

__all__ = ["HeadsTrainer"]

_OF_FIRST_RANK = (ProgressCallback, ShowGraphCallback, CSVLogger)
"Callbacks that print, draw or write what is alike on all ranks."


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
        "Prepare a fit as fastai does. All that has a device comes to this rank's, and only the first rank speaks."
        self.learn.dls.to(self.device)
        self.learn.loss_func.to(self.device)
        self._logger = self.learn.logger
        super().before_fit()
        if self.accelerator.process_index:
            for cb in self.learn.cbs:
                _silence(cb)

    def _wrap_dl(self, dl: Any) -> Any:
        "Share a data loader out. Lists of batches stay what they are: every rank has all of them."
        if isinstance(dl, RanksDL) or not isinstance(dl, DataLoader):
            return dl
        dl.to(self.device)
        return RanksDL(dl, device=self.device)

    def after_pred(self) -> None:
        "Cut this rank's part of a validation batch, so that no item counts twice."
        if self.training or not isinstance(self.learn.dl, SharedLoader):
            return
        n = self.learn.dl.own_items
        self.learn.pred = apply(lambda t: t[:n], self.pred)
        self.learn.xb, self.learn.yb = (apply(lambda t: t[:n], b) for b in (self.xb, self.yb))

    def after_loss(self) -> None:
        "Measure what the batch is over all ranks."
        dl = self.learn.dl
        if not isinstance(dl, SharedLoader) or not len(self.yb) or self.learn.loss.ndim:
            return
        heads = list(self.learn.heads.values())
        measures = [measure_batch(self.learn, head, place) for place, head in enumerate(heads)]
        dl.joint = join_batch(heads, measures, count_labels(self.learn.loss_func, self.yb))
        total = sum(head.loss_weight * loss for head, loss in zip(heads, dl.joint.losses))
        self.learn.loss = total.to(self.learn.loss.dtype)

    def after_train(self) -> None:
        "Give all ranks the first one's statistics of batch norms: not every strategy has the model exchange them."
        for buffer in self.model.buffers():
            buffer.copy_(from_first_rank(buffer))

    def after_fit(self) -> None:
        "Leave the learner as it was."
        self.restore()

    def restore(self) -> None:
        "Put model, data and logger back as they were before the fit."
        if self._logger is None:
            return
        self.learn.model, self.learn.dls.loaders = get_model(self.learn.model), self.old_dls
        self.learn.logger, self._logger = self._logger, None
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
