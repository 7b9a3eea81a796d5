"""Times of training steps, of several learners in turn. The benchmarks of heads share this."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from fastai.callback.core import Callback
from fastai.learner import Learner

__all__ = ["StepTimes", "learner_steps", "quiet_fit", "seconds_per_step"]


class StepTimes(Callback):
    "Processor time of every training step. A step goes from a batch that is loaded to the weights that it changed."

    order = -1000  # the first callback that sees a batch

    def __init__(self):
        self.seconds: list[float] = []

    def before_batch(self) -> None:
        "Start the clock. The batch is loaded and augmented already, so that this does not count."
        self.start = time.process_time()

    def stop(self) -> None:
        "Stop the clock. `Stop` calls this."
        if self.training:
            self.seconds.append(time.process_time() - self.start)


class Stop(Callback):
    "Stops the clock. It is the last callback that sees a batch."

    order = 1000

    def __init__(self, times: StepTimes):
        self.times = times

    def after_batch(self) -> None:
        "Stop the clock, now that the step is done."
        self.times.stop()


def quiet_fit(
    learn: Learner,  # fastai's or ours
    fit: Callable[[], None],  # the training, such as `lambda: learn.fit_one_cycle(3, 1e-3)`
) -> None:
    "Train without any output."
    with ExitStack() as stack:
        stack.enter_context(learn.no_bar())
        stack.enter_context(learn.no_logging())
        fit()


def seconds_per_step(
    learners: Mapping[str, Callable[[], list[float]]],  # by name; a call takes steps and returns their times
    rounds: int = 4,  # turns of each, after one that does not count
) -> dict[str, float]:  # name → the median of all its steps
    "Time several things in turn, so that the machine's other work disturbs them alike."
    times: dict[str, list[float]] = {name: [] for name in learners}
    for i in range(rounds + 1):
        for name, steps in learners.items():
            found = steps()
            times[name] += found if i else []
    return {name: statistics.median(found) for name, found in times.items()}


def learner_steps(
    learn: Learner,  # its training set has the batches
    lr: float = 1e-3,  # small, so that nothing diverges
) -> Callable[[], list[float]]:
    "Make an epoch of a learner, in the form that `seconds_per_step` takes."

    def steps() -> list[float]:
        times = StepTimes()
        quiet_fit(learn, lambda: learn.fit(1, lr, cbs=[times, Stop(times)]))
        return times.seconds

    return steps
