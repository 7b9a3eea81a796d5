"""A callback that names heads which do not learn: no label, a loss of zero or NaN, no gradient to the body."""

import warnings
from collections.abc import Iterable

import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastai_heads.errors import HeadsWarning
from fastai_heads.training.bound import BoundHead
from fastai_heads.training.ranks.exchange import sum_over_ranks
from fastai_heads.training.ranks.joint import is_shared, speaks
from fastai_heads.training.step import read_labels

__all__ = ["HeadsMonitor", "reaches"]

_CAUSES = {
    "no label": "saw no label. Every label of target {target!r} in the training set is missing, or the sampling leaves "
    "them out",
    "not finite": "had a loss that is NaN or infinite in {count} of {steps} batches. Likely the learning rate is too "
    "high, a label is not finite (`PartialBlock` lets missing ones through), or its loss overflows",
    "zero": "had a loss of exactly 0 in every batch. Likely its loss leaves out every item (`ignore_index`, a weight "
    "of 0), or does not depend on the prediction",
    "no gradient": "sent no gradient to the body. Likely its module or its loss detaches the prediction (`detach`, "
    "`no_grad`, `argmax`, rounding), or its output is saturated",
}


class HeadsMonitor(Callback):
    """Warns of a head that did not learn in an epoch, with the likely cause (`HeadsWarning`). The warning comes once.
    It comes again only if the head was well for an epoch in between.

    After an epoch it reads the recorder's tally of the losses. A backward pass through one head alone asks whether its
    gradient reaches the body. It runs in the first batch of an epoch, and in further batches until a gradient has
    reached the body. It does not run where the body does not train. `learn.remove_cb(HeadsMonitor)` turns all this
    off."""

    order, run_valid = 20, False  # after MixedPrecision has left autocast

    def __init__(self):
        self._named: set[tuple[str, str]] = set()
        self._hook: RemovableHandle | None = None

    def before_fit(self) -> None:
        "Stop watching while the learning rate is sought. That search goes on until the loss explodes."
        self._unhook()
        self.run = hasattr(self.learn, "recorder") and not hasattr(self.learn, "lr_finder")

    def before_train(self) -> None:
        "Start an epoch: no head was asked yet."
        self._silent = set(self.learn.heads) if self._body_trains() else set()
        self._asked: set[str] = set()
        self._first = self.run_train = True

    def before_batch(self) -> None:
        "Keep the taps of this batch if any head is still to be asked for its gradient."
        self._unhook()
        self._taps: tuple[Tensor, ...] = ()
        if self._select_heads():
            self._hook = get_model(self.model)[1].register_forward_hook(self._keep)

    def after_pred(self) -> None:
        "Remove the hook, now that the taps are there."
        self._unhook()

    def after_loss(self) -> None:
        "Ask the heads for their gradient. When no head is left to be asked, the steps of this epoch go on without it."
        taps = [tap for tap in self._taps if tap.requires_grad]
        if taps:
            self._ask(taps)
        self._taps, self._first = (), False
        self.run_train = bool(self._select_heads())

    def after_train(self) -> None:
        "Warn of the heads that did not learn in this epoch."
        if self.learn.recorder.tally.steps:
            self._warn(self._diagnose())

    def after_cancel_fit(self) -> None:
        "Warn of the losses that are not finite, as they may have stopped training (`TerminateOnNaNCallback`)."
        self._unhook()
        if self.learn.training and self.learn.recorder.tally.steps:
            self._warn({name: cause for name, cause in self._diagnose().items() if cause == "not finite"}, whole=False)

    def _body_trains(self) -> bool:
        """Tell whether gradients are expected at the taps: the body trains, and the model is not compiled. The taps of
        a compiled model cannot be kept."""
        model, opt = get_model(self.model), self.opt
        plain = isinstance(model, nn.Sequential) and getattr(model, "_compiled_call_impl", None) is None
        return plain and opt.frozen_idx < max(1, len(opt.hypers) - 1)

    def _select_heads(self) -> list[BoundHead]:
        """List the heads to ask in this batch: those that have not reached the body in this epoch. A head with a
        warning is asked in the first batch alone."""
        return [
            head
            for name, head in self.learn.heads.items()
            if name in self._silent and (self._first or (name, "no gradient") not in self._named)
        ]

    def _keep(self, _heads: nn.Module, inputs: tuple[dict[str, Tensor]], _preds: tuple) -> None:
        self._taps = tuple(inputs[0].values())  # as the heads read them

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _ask(self, taps: list[Tensor]) -> None:
        scaler = getattr(self.learn, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for head in self._select_heads():
            place = self.learn.heads.names.index(head.name)
            if read_labels(self.learn, head, place):
                self._asked.add(head.name)
                if self._on_any_rank(reaches(self.learn.head_losses[place], taps, scale), taps[0].device):
                    self._silent.discard(head.name)

    def _on_any_rank(self, found: bool, device: torch.device) -> bool:
        return bool(sum_over_ranks(torch.tensor(int(found), device=device))) if is_shared(self.learn) else found

    def _diagnose(self) -> dict[str, str]:  # head → what is wrong
        tally = self.learn.recorder.tally
        zeros, odd = tally.zeros.tolist(), tally.odd.int().tolist()
        found: dict[str, str] = {}
        for i, name in enumerate(self.learn.heads.names):
            if name in tally.labels and not int(tally.labels[name]):
                found[name] = "no label"
            elif odd[i]:
                found[name] = "not finite"
            elif zeros[i] == tally.steps:
                found[name] = "zero"
            elif name in self._silent and (name in self._asked or (name, "no gradient") in self._named):
                found[name] = "no gradient"
        return found

    def _warn(self, found: dict[str, str], whole: bool = True) -> None:
        tally = self.learn.recorder.tally
        where = f"in epoch {self.epoch}" if whole else f"in epoch {self.epoch}, where training stopped"
        for name, cause in found.items():
            if speaks(self.learn) and (name, cause) not in self._named:
                head = self.learn.heads[name]
                odd, steps = tally.odd[self.learn.heads.names.index(name)], tally.steps
                text = _CAUSES[cause].format(target=head.target.name, count=int(odd), steps=steps)
                warnings.warn(f"head {name!r} {text} ({where}).", HeadsWarning, stacklevel=2)
        self._named = set(found.items()) if whole else self._named | set(found.items())


def reaches(
    loss: Tensor,  # a scalar
    tensors: Iterable[Tensor],  # with a graph
    scale: float = 1.0,  # factor of the loss, in half precision
) -> bool:
    "Tell whether a loss has a gradient with respect to any of some tensors. The graph is kept."
    if not loss.requires_grad:
        return False
    grads = torch.autograd.grad(loss * scale, list(tensors), retain_graph=True, allow_unused=True)
    return any(bool(grad.any()) for grad in grads if grad is not None)
