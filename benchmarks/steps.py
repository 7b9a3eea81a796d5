"""How long training steps take, of several learners in turn: what the benchmarks of heads share."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from fastai.callback.core import Callback
from fastai.learner import Learner

__all__ = ["StepTimes", "learner_steps", "quiet_fit", "seconds_per_step"]


class StepTimes(Callback):
    "Processor time of every training step, from the batch at hand to the weights that it changed."

    order = -1000  # the first to see a batch

    def __init__(self):
        self.seconds: list[float] = []

    def before_batch(self) -> None:
        "The batch is there: what loads and augments it is not counted."
        self.start = time.process_time()

    def stop(self) -> None:
        "Called by `Stop`."
        if self.training:
            self.seconds.append(time.process_time() - self.start)


class Stop(Callback):
    "The last to see a batch."

    order = 1000

    def __init__(self, times: StepTimes):
        self.times = times

    def after_batch(self) -> None:
        "The step is done."
        self.times.stop()


def quiet_fit(
    learn: Learner,  # fastai's or ours
    fit: Callable[[], None],  # what to do, such as `lambda: learn.fit_one_cycle(3, 1e-3)`
) -> None:
    "Trains and says nothing."
    with ExitStack() as stack:
        stack.enter_context(learn.no_bar())
        stack.enter_context(learn.no_logging())
        fit()


def seconds_per_step(
    learners: Mapping[str, Callable[[], list[float]]],  # name → takes some steps and gives their processor times
    rounds: int = 4,  # how often each has its turn, after one that does not count
) -> dict[str, float]:  # name → the median of all its steps
    "Several things in turn, so that what else the machine does disturbs them alike."
    times: dict[str, list[float]] = {name: [] for name in learners}
    for i in range(rounds + 1):
        for name, steps in learners.items():
            found = steps()
            times[name] += found if i else []
    return {name: statistics.median(found) for name, found in times.items()}


def learner_steps(
    learn: Learner,  # whose training set has the batches
    lr: float = 1e-3,  # small, so that nothing diverges
) -> Callable[[], list[float]]:
    "An epoch of a learner, as `seconds_per_step` wants it."

    def steps() -> list[float]:
        times = StepTimes()
        quiet_fit(learn, lambda: learn.fit(1, lr, cbs=[times, Stop(times)]))
        return times.seconds

    return steps
