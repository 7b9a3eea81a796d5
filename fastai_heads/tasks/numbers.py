"""Real numbers per image, whatever they stand for."""

from dataclasses import dataclass

from torch import Tensor

from fastai_heads.tasks.task import Task

__all__ = ["NumbersTask"]


@dataclass(eq=False)
class NumbersTask(Task):
    "Real numbers, (B, n_out). The loss sees targets in the shape of the predictions, whatever the block's axes."

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        "As many numbers as `n_out`."
        return (self.n_out,)

    def prepare_target(self, pred: Tensor, targ: Tensor) -> Tensor:
        return targ.reshape(pred.shape) if targ.numel() == pred.numel() else targ
