"""Loss weights that change while training."""

from collections.abc import Callable, Mapping
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler

from fastai_heads.errors import HeadsError
from fastai_heads.heads.spec import is_number
from fastai_heads.training.bound import BoundHeads, need_heads

__all__ = ["LossWeightScheduler"]


class LossWeightScheduler(Callback):
    """Sets heads' `loss_weight`s before every training step: `LossWeightScheduler({'digit': SchedLin(1, .1)})`.

    A schedule is one of fastai's annealers, or a function. It takes the share of the training that is done, 0 to 1,
    and gives a weight. The weights of every step are in `loss_weights` and, for `learn.recorder.plot_sched()`, in
    `recorder.hps`. After the fit the last weights stay, as fastai's hyperparameters do. `learn.validate()` then
    gives the last row of the table. No weight is set while the learning rate is sought."""

    order, run_valid = ParamScheduler.order + 1, False

    def __init__(
        self,
        scheds: Mapping[str, Callable[[float], float]],  # head → schedule: share of the training done → weight
    ):
        if not isinstance(scheds, Mapping) or not scheds:
            raise HeadsError(
                "`scheds` of LossWeightScheduler is a dict of head to its schedule, such as "
                f"`LossWeightScheduler({{'digit': SchedLin(1, .1)}})`, found {scheds!r}."
            )
        self.scheds = dict(scheds)
        self.loss_weights: dict[str, list[float]] = {name: [] for name in self.scheds}
        self._starts = False

    def check_heads(
        self,
        heads: BoundHeads,  # of the learner
    ) -> None:
        "Refuse, before any training, a head that does not exist and a schedule that gives no weight."
        for name, sched in self.scheds.items():
            _ = heads[name]
            ends, why = _ends(sched)
            if why or not all(is_number(end, least=0) for end in ends):
                found = why or f"weights {ends[0]!r} to {ends[1]!r}"
                raise HeadsError(
                    f"`scheds[{name!r}]` of LossWeightScheduler is a function of the share of the training done that "
                    f"gives a weight of at least 0, such as `SchedLin(1, .1)`, found {found}."
                )

    def before_fit(self) -> None:
        "Ask for a new record at the first step. A validation keeps the last record."
        need_heads(self)
        self._starts, self.run = True, not hasattr(self.learn, "lr_finder")

    def before_batch(self) -> None:
        "Set this step's weights."
        if self._starts:
            self._starts, self.loss_weights = False, {name: [] for name in self.scheds}
        for name, sched in self.scheds.items():
            self.learn.heads[name].loss_weight = sched(self.pct_train)

    def after_batch(self) -> None:
        "Record this step's weights."
        for name, weights in self.loss_weights.items():
            weights.append(self.learn.heads[name].loss_weight)

    def after_fit(self) -> None:
        "Put the weights into `recorder.hps`, beside the values that a `ParamScheduler` of the same fit has recorded."
        if self._starts or not hasattr(self.learn, "recorder"):
            return
        others = self.recorder.hps if any(isinstance(cb, ParamScheduler) for cb in self.learn.cbs) else {}
        self.recorder.hps = others | {f"{name}_loss_weight": w for name, w in self.loss_weights.items()}


def _ends(sched: Any) -> tuple[list[Any], str]:
    "Return the weights at the start and at the end of a training, and why there are none."
    if not callable(sched):
        return [], repr(sched)
    try:
        return [sched(share) for share in (0.0, 1.0)], ""
    except TypeError as error:  # it takes no share, or not one alone
        return [], f"one that cannot be called so: {error}"
