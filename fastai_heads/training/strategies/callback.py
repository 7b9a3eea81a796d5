"""What tells a strategy where training is."""

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision

__all__ = ["StrategyCallback"]


class StrategyCallback(Callback):
    """Passes the events of training on to `learn.strategy`: before a step it runs after `GradientAccumulation`, which
    says whether there is one, and before `MixedPrecision` and `GradientClip`, which look at the gradients."""

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
