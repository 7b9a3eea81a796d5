"""The callback that passes the events of training to the strategy."""

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

__all__ = ["StrategyCallback"]


class StrategyCallback(Callback):
    """Passes the events of training on to `learn.strategy`. Before a step it runs after `GradientAccumulation`, which
    decides whether there is a step. It runs before `MixedPrecision` and `GradientClip`, which read the gradients."""

    name = "strategy_events"
    order, run_valid = MixedPrecision.order - 2, False

    def before_fit(self) -> None:
        self.learn.strategy.before_fit(self.learn)

    def before_step(self) -> None:
        self.learn.strategy.before_step(self.learn)

    def after_step(self) -> None:
        self.learn.strategy.after_step(self.learn)

    def after_train(self) -> None:
        self.learn.strategy.after_train(self.learn)
