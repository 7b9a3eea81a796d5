"""An exponential moving average of a network's weights, on which it is measured and with which it leaves."""

from collections.abc import Iterator

import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import need_heads

__all__ = ["Average", "EMACallback", "averaged"]


def averaged(
    model: nn.Module,  # a `MultiHeadModel`
) -> Iterator[tuple[str, Tensor]]:
    "List the tensors of which an average is taken: parameters and buffers, without what belongs to training alone."
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not name.startswith(("1.strategy.", "1.average.")):
            yield name, tensor.detach()


class Average(nn.Module):
    """The second weights of a network: the average while it trains, those that train while it has the average.

    It stands beside the heads, `model[1].average`, so that both go into every file of weights."""

    def __init__(
        self,
        model: nn.Module,  # a `MultiHeadModel`
    ):
        super().__init__()
        tensors = dict(averaged(model))
        self.names = tuple(tensors)
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(str(i), tensor.clone())
        device = next(iter(tensors.values())).device
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))  # that are in the average
        self.register_buffer("in_use", torch.zeros((), dtype=torch.bool, device=device))  # the network has the average

    def fits(self, model: nn.Module) -> bool:
        "Tell whether it is an average of this network, heads that were added or dropped among them."
        shapes = {name: tensor.shape for name, tensor in averaged(model)}
        return shapes == dict(zip(self.names, (tensor.shape for tensor in self._tensors())))

    def moves(self, model: nn.Module) -> bool:
        "Tell whether the body that trains is another than the averaged one."
        pairs = zip(self.names, self._tensors(), averaged(model))
        return self.steps > 0 and any(name.startswith("0.") and not mine.equal(t) for name, mine, (_, t) in pairs)

    def restart(self) -> None:
        "Forget what was averaged: the network's weights are others now."
        self.steps.zero_()
        self.in_use.fill_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        "Take the network's weights into the average. The first time they are the average."
        ours, theirs = self._tensors(), [tensor for _, tensor in averaged(model)]
        if self.steps == 0:
            for mine, tensor in zip(ours, theirs):
                mine.copy_(tensor)
        else:
            for dtype in {tensor.dtype for tensor in ours}:
                pairs = [(a, b) for a, b in zip(ours, theirs) if a.dtype == dtype]
                get_ema_multi_avg_fn(decay)(*map(list, zip(*pairs)), self.steps)
        self.steps += 1

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        "Exchange the network's weights for those that are here."
        for mine, (_, tensor) in zip(self._tensors(), averaged(model)):
            kept = tensor.clone()
            tensor.copy_(mine)
            mine.copy_(kept)
        self.in_use.logical_not_()

    def _tensors(self) -> list[Tensor]:
        return [self.get_buffer(str(i)) for i in range(len(self.names))]


class EMACallback(Callback):
    """Keeps an exponential moving average of all weights and of batch norms' statistics, as torch's `AveragedModel`
    does with `get_ema_multi_avg_fn` and `use_buffers=True`.

    Validation is on the average, and so is what follows a fit: `validate`, `get_preds`, `predict`, `export`,
    `save_bundle`. `learn.save` and `SaveModelCallback` write both kinds of weights, so that a fit goes on after `load`
    with those that train. A file of them loads into a learner without this callback as the average.

        learn = multihead_learner(dls, arch, cbs=EMACallback())

    A callback of one fit alone, `fit(…, cbs=EMACallback())`, leaves the average as the weights. Heads that are added or
    dropped start a new average. Memory for the weights doubles."""

    order, run_valid = 65, False  # after trackers have loaded what was best

    def __init__(
        self,
        decay: float = 0.999,  # of the average for each step
        warmup: bool = True,  # with fewer than about 10 / (1 - decay) steps: a decay of (1 + steps) / (10 + steps)
    ):
        fits = isinstance(decay, int | float) and not isinstance(decay, bool) and 0 <= decay < 1
        if not fits:
            raise HeadsError(f"`decay` of EMACallback is a number from 0 to below 1, found {decay!r}.")
        if not isinstance(warmup, bool):
            raise HeadsError(f"`warmup` of EMACallback is True or False, found {warmup!r}.")
        self.decay, self.warmup = decay, warmup

    def begin(self) -> None:
        "Put the average beside the heads. A learner asks for it when the callback joins, before weights are loaded."
        model = get_model(self.learn.model)
        average = model[1].average
        if average is None or not average.fits(model):
            model[1].average = Average(model)

    def leave(self) -> None:
        "Take the average off. The network keeps the weights that it has."
        get_model(self.learn.model)[1].average = None

    def before_fit(self) -> None:
        "Begin anew where heads have changed. While a learning rate is sought nothing is averaged."
        need_heads(self)
        self.begin()
        self.seeking = hasattr(self.learn, "lr_finder")

    def before_train(self) -> None:
        "Train the weights that train."
        model, average = self._both()
        if average.in_use:
            average.swap(model)

    def after_step(self) -> None:
        "Take the weights into the average."
        model, average = self._both()
        if not self.seeking:
            steps = average.steps.item()
            average.update(model, min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay)

    def before_validate(self) -> None:
        "Measure the average. So it stays after the last epoch."
        self._use()

    def after_fit(self) -> None:
        "Leave the average in the network, also where there is no validation set, or a fit was cancelled."
        self._use()

    def _use(self) -> None:
        model, average = self._both()
        if average.steps > 0 and not average.in_use and not self.seeking:
            average.swap(model)

    def _both(self) -> tuple[nn.Module, Average]:
        model = get_model(self.learn.model)
        return model, model[1].average
