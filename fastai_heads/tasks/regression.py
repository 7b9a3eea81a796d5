"""Real numbers in the user's own unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from fastai.losses import MSELossFlat
from fastai.metrics import mae
from torch import Tensor, nn

from fastai_heads.tasks.numbers import NumbersTask

__all__ = ["RegressionTask", "StandardizedLoss"]


class StandardizedLoss(nn.Module):
    "A loss on (prediction − target) / deviation, so that targets of unlike size have losses of like size."

    deviation: Tensor

    def __init__(
        self,
        loss_func: Callable,  # (pred, target) → a scalar
        deviation: Sequence[float],  # one per output, in the user's unit
    ):
        super().__init__()
        self.loss_func = loss_func
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    @property
    def reduction(self) -> str:
        "The inner loss's."
        return self.loss_func.reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        self.loss_func.reduction = value

    def forward(
        self,
        pred: Tensor,  # (B, n_out) in the user's unit
        targ: Tensor,  # (B, n_out), or (B,) where n_out is 1, in the user's unit
        **kwargs,  # to the inner loss
    ) -> Tensor:
        off = (pred - targ.float().view_as(pred)) / self.deviation
        return self.loss_func(off, torch.zeros_like(off), **kwargs)


@dataclass(eq=False)
class RegressionTask(NumbersTask):
    "One or several numbers, (B, n_out) in the user's unit; target (B,) or (B, n_out) likewise."

    standardize: bool | tuple[Sequence[float], Sequence[float]] = False  # (means, deviations): a `StandardizedLoss`

    near_loss: ClassVar[str] = "MSELossFlat()"

    def default_loss(self) -> Callable:
        return MSELossFlat()

    def make_loss(self) -> Callable:
        "Return the loss in use, over the deviations where the numbers are standardised."
        loss = super().make_loss()
        return loss if self.standardize is False else StandardizedLoss(loss, self.standardize[1])

    def decode(self, pred: Tensor) -> Tensor:
        "Return the numbers as they are; where there is one per image (B,), as fastai's `RegressionBlock` has it."
        decoded = super().decode(pred)
        return decoded.squeeze(-1) if self.n_out == 1 else decoded

    def default_metrics(self) -> Sequence[Callable]:
        return (mae,)
