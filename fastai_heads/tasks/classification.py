"""One class of a vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import Tensor

from fastai_heads.tasks.task import Task

__all__ = ["ClassificationTask"]


@dataclass(eq=False)
class ClassificationTask(Task):
    "One class of a vocabulary, by softmax cross-entropy. Logits (B, n_out), target (B,) class indices."

    label_smoothing: float = 0.0  # as torch's `CrossEntropyLoss` has it
    class_weights: Sequence[float] | None = None  # (n_out,)

    shown_by_fastai: ClassVar[bool] = True
    near_loss: ClassVar[str] = "CrossEntropyLossFlat()"

    def default_loss(self) -> Callable:
        weight = None if self.class_weights is None else torch.tensor(self.class_weights)
        return CrossEntropyLossFlat(weight=weight, label_smoothing=self.label_smoothing)

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        "A logit per class."
        return (self.n_out,)

    def activation(self, pred: Tensor) -> Tensor:
        "Activate by the loss where it is fastai's, else by softmax: torch's losses and plain functions take logits."
        return super().activation(pred) if hasattr(self.loss_func, "activation") else pred.softmax(-1)

    def decode(self, pred: Tensor) -> Tensor:
        "Return the class, also where the loss does not say how."
        found = super().decode(pred)
        return found.argmax(-1) if found.ndim > 1 else found

    def default_metrics(self) -> Sequence[Callable]:
        return (accuracy,)

    def flatten_pairs(self, said: Any, truth: Any) -> tuple[Any, Any]:
        return said.reshape(-1), truth.reshape(-1)
