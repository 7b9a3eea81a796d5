"""A task with a loss or a decoding of the user's own: all else is that of the target's kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastai_heads.tasks.task import Task, has_shape

__all__ = ["OwnTask"]

_BY_ELEMENT = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
_BY_ELEMENT_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
"Of torch's losses those that compare number by number."


@dataclass(eq=False)
class OwnTask(Task):
    """A task of a kind with a loss or a decoding of the user's own. The loss gets prediction and target as they are.
    A prediction of the kind's shape is read as the kind reads it, else it stands for itself. What is not defined here,
    such as how it is reported, is the kind's."""

    kind: Task | None = None  # the task of the target's kind; a plain `Task` where there is none
    decoder: Callable[[Tensor], Tensor] | None = None  # the prediction to what is said of it; None: by the kind

    shown_by_fastai: ClassVar[bool] = False

    with_loss, loss_count, counted, default_loss = Task.with_loss, Task.loss_count, Task.counted, Task.default_loss

    def make_loss(self) -> Callable:
        "Return the user's loss, or else the kind's."
        return self.kind.loss_func if self.loss is None else super().make_loss()

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        "Any with a loss of its own, else the kind's."
        return None if self.loss is not None else self.kind.output_shape

    def default_metrics(self) -> Sequence[Callable]:
        "Return the kind's, where the outputs are as many as it has."
        return () if self.loss is not None and self.n_out != self.kind.n_out else self.kind.default_metrics()

    def prepare_target(self, pred: Tensor, targ: Tensor) -> Tensor:
        "Give torch's losses by element, which broadcast, one shape. Other losses get the target as it is."
        made = super().make_loss()
        by_element = isinstance(made, _BY_ELEMENT) or made in _BY_ELEMENT_FUNCTIONS
        return targ.reshape(pred.shape) if by_element and targ.numel() == pred.numel() else targ

    def train_loss(self, pred: Tensor, targ: Tensor) -> Tensor:
        return self.kind.train_loss(pred, targ) if self.loss is None else super().train_loss(pred, targ)

    def item_loss(self, pred: Tensor, targ: Tensor) -> Tensor:
        return self.kind.item_loss(pred, targ) if self.loss is None else super().item_loss(pred, targ)

    def empty(self) -> Tensor:
        return self.kind.empty() if self.loss is None else super().empty()

    def activation(self, pred: Tensor) -> Tensor:
        "Activate as the kind does where the prediction has its shape, else as the loss says."
        reader = None if self.loss is not None and self.decoder is not None else self._reader(pred)
        return super().activation(pred) if reader is None else reader.activation(pred)

    def decode(self, pred: Tensor) -> Tensor:
        "Decode by `decoder`; else as the kind does where the prediction has its shape; else as the loss says."
        if self.decoder is not None:
            return self.decoder(pred)
        reader = self._reader(pred)
        return super().decode(pred) if reader is None else reader.decode(pred)

    def in_form(self, decoded: Tensor) -> bool:
        "Tell by what the kind would decode to."
        shape = self.kind.output_shape
        if shape is None:
            return True
        form = self.kind.decode(self.kind.activation(torch.zeros(1, *(size or 1 for size in shape))))
        sizes = None in shape or form.shape[1:] == decoded.shape[1:]
        return form.ndim == decoded.ndim and sizes and decoded.is_floating_point() <= form.is_floating_point()

    def _reader(self, pred: Tensor) -> Task | None:
        "Return the kind's task with the loss in use, where a prediction has the kind's shape."
        shape = self.kind.output_shape
        fits = self.loss is None or (shape is not None and has_shape(pred, shape))
        return self.kind.with_loss(self.loss_func) if fits else None


def _of_kind(name: str) -> property:
    return property(lambda task: getattr(task.kind, name))


_OWN = {*vars(OwnTask), *(f.name for f in fields(Task))}
for _name in (name for name in vars(Task) if not name.startswith("_") and name not in _OWN):
    setattr(OwnTask, _name, _of_kind(_name))
