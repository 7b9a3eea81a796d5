"""fastai's `Recorder` with a column for every head's loss."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from fastai.learner import AvgSmoothLoss, Learner, Metric, Recorder
from fastai.torch_core import to_detach
from fastcore.foundation import L
from torch import Tensor, lerp

from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.metrics import HeadValidLoss, distinct
from fastai_heads.training.step import read_labels, read_loss

__all__ = ["HeadsRecorder"]


class HeadTrainLoss(AvgSmoothLoss):
    "One head's training loss, smoothed as fastai smooths the total; a batch without a label says nothing of it."

    def __init__(
        self,
        head: BoundHead,  # the head
        place: int,  # its place among the losses
        beta: float,  # the smoothing
    ):
        super().__init__(beta)
        self.head, self.place = head, place

    @property
    def name(self) -> str:
        return f"{self.head.name}_loss"

    def accumulate(self, learn: Learner) -> None:
        if not read_labels(learn, self.head, self.place):
            return
        loss = to_detach(read_loss(learn, self.place), gather=False)
        self.count += 1
        self.val = lerp(loss, self.val.to(loss.dtype), self.beta)


class TotalTrainLoss(AvgSmoothLoss):
    "fastai's smoothed loss, of `learn.loss` as it is: under distribution it is that of all ranks already."

    def accumulate(self, learn: Learner) -> None:
        self.count += 1
        loss = to_detach(learn.loss.mean(), gather=False)
        self.val = lerp(loss, self.val.to(loss.dtype), self.beta)


class TotalValidLoss(Metric):
    """The sum of the heads' validation losses by their `loss_weight`s. Each of them is over all items that have a
    label for its head, so that the size of the batches does not matter."""

    name = "loss"

    def __init__(self):
        self.heads: Sequence[HeadValidLoss] = ()  # what it is the sum of, which count for themselves

    def reset(self) -> None:
        pass

    def accumulate(self, learn: Learner) -> None:
        pass

    @property
    def value(self) -> Tensor | None:
        found = [(loss.head.loss_weight, loss.value) for loss in self.heads]
        known = [weight * value for weight, value in found if value is not None]
        return torch.stack(known).sum() if known else None


class Tally:
    "What was seen of the heads' losses in an epoch of training: a few sums over K numbers, which stay on the device."

    def __init__(
        self,
        heads: BoundHeads,  # of the learner, K of them
    ):
        self.steps = 0
        self.zeros, self.odd = torch.zeros(()), torch.zeros(())  # (K,) batches with a loss of 0, or not finite
        self.labels: dict[str, Tensor | int] = {h.name: 0 for h in heads.values() if h.target.partial}

    def add(
        self,
        learn: Learner,  # after the losses of a batch
    ) -> None:
        "Count a batch."
        heads = list(learn.heads.values())
        losses = torch.stack([read_loss(learn, place).float() for place in range(len(heads))])
        self.steps += 1
        self.zeros = self.zeros.to(losses.device) + (losses == 0)
        self.odd = self.odd.to(losses.device) + ~losses.isfinite()
        for place, head in enumerate(heads):
            if head.name in self.labels:
                self.labels[head.name] = self.labels[head.name] + read_labels(learn, head, place)


class HeadsRecorder(Recorder):
    """fastai's `Recorder`, whose table also has `train_<head>_loss` and `valid_<head>_loss` for every head.

    The totals stand first, where fastai looks for them (`ShowGraphCallback` takes the second value of a row).

    `losses_by_head[name]` is that head's smoothed training loss after every step, as `losses` is of the total."""

    name = "recorder"  # callbacks and users know fastai's `learn.recorder`

    def __init__(
        self,
        add_time: bool = True,  # fastai's: a column for the time of an epoch
        train_metrics: bool = False,  # fastai's: measure in training, too
        valid_metrics: bool = True,  # fastai's: measure in validation
        beta: float = 0.98,  # fastai's: how the training losses are smoothed
    ):
        super().__init__(add_time, train_metrics, valid_metrics, beta)
        self.loss, self.smooth_loss = TotalValidLoss(), TotalTrainLoss(beta)
        self.tally = Tally(BoundHeads({}))  # of the last epoch

    def before_fit(self) -> None:
        "Prepare the table: fastai's columns, each total followed by the heads' own."
        heads = self.learn.heads
        self._train_heads = L(HeadTrainLoss(h, i, self.smooth_loss.beta) for i, h in enumerate(heads.values()))
        self._valid_heads = L(HeadValidLoss(h, i) for i, h in enumerate(heads.values()))
        self.loss.heads = self._valid_heads
        self.losses_by_head = {name: [] for name in heads.names}
        super().before_fit()
        self.metric_names = "epoch" + L(distinct(self.columns())) + (L("time") if self.add_time else L())

    def columns(self) -> L:
        "List the names of a row's values, in order."
        names, metrics = L(self.learn.heads.names), self.learn.metrics.attrgot("name")
        train = names.map("train_{}_loss") + (metrics.map("train_{}") if self.train_metrics else L())
        if not self.valid_metrics:
            return L("train_loss") + train
        valid = names.map("valid_{}_loss") + (metrics.map("valid_{}") if self.train_metrics else metrics)
        return L("train_loss", "valid_loss") + train + valid

    def before_train(self) -> None:
        "Reset what is counted by epoch; the smoothed losses go on."
        self.tally = Tally(self.learn.heads)
        if self.train_metrics:
            for metric in self.metrics:
                metric.reset()

    def after_loss(self) -> None:
        "Count a training batch by its losses, also where its step is to be left out."
        if self.training and len(self.yb):
            self.tally.add(self.learn)

    def after_batch(self) -> None:
        "Record a batch as fastai does, and every head's smoothed loss."
        super().after_batch()
        if self.training and len(self.yb):
            for loss in self._train_heads:
                self.losses_by_head[loss.head.name].append(loss.value)

    def after_epoch(self) -> None:
        "Record an epoch as fastai does, the totals first. A row that an epoch has left short stays as it is."
        at = 2 + len(self._train_mets[1:])  # after the epoch and what was measured in training
        if self.valid_metrics and at > 2 and len(self.log) == at + len(self._valid_mets) > at:
            self.log = self.log[:2] + self.log[at : at + 1] + self.log[2:at] + self.log[at + 1 :]
        super().after_epoch()

    @contextmanager
    def keep(self) -> Iterator[None]:
        "Keep what was recorded of the last fit; fastai's predictions start the record anew."
        names = ("lrs", "iters", "losses", "values", "losses_by_head", "metric_names")
        before = {name: getattr(self, name) for name in names if name in self.__dict__}
        smooth = self.smooth_loss.count, self.smooth_loss.val
        try:
            yield
        finally:
            self.__dict__.update(before)
            self.smooth_loss.count, self.smooth_loss.val = smooth

    @property
    def _train_mets(self) -> L:
        mets = super()._train_mets
        return mets[:1] + self._train_heads + mets[1:] if len(mets) else mets

    @property
    def _valid_mets(self) -> L:
        mets = super()._valid_mets
        return mets[:1] + self._valid_heads + mets[1:] if len(mets) else mets
