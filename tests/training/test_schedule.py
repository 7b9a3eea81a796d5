"""Loss weights that follow a schedule."""

import pytest
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedExp, SchedLin, SchedNo, combine_scheds

from fastai_heads.errors import HeadsError
from fastai_heads.training.schedule import LossWeightScheduler


class Weights(Callback):
    "The weights in use at every training step, and whether the loss was their sum."

    run_valid = False

    def __init__(self):
        self.seen = []

    def after_loss(self):
        heads = self.learn.heads.values()
        self.seen.append([h.loss_weight for h in heads])
        by_hand = sum(h.loss_weight * loss for h, loss in zip(heads, self.learn.head_losses))
        assert self.learn.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(*args, **kwargs)


def test_the_weights_follow_fastais_annealers_and_are_recorded(learner):
    learn, weights = learner(("digit", "ink")), Weights()
    scheduler = LossWeightScheduler({"digit": SchedLin(1, 0.2), "ink": SchedCos(0, 2)})
    fit(learn, 2, cbs=[scheduler, weights])
    steps = [i / 8 for i in range(8)]
    digit, ink = zip(*weights.seen)
    assert digit == pytest.approx([SchedLin(1, 0.2)(s) for s in steps])
    assert ink == pytest.approx([SchedCos(0, 2)(s) for s in steps])
    assert scheduler.loss_weights == {"digit": list(digit), "ink": list(ink)}
    assert learn.recorder.hps == {"digit_loss_weight": list(digit), "ink_loss_weight": list(ink)}
    learn.recorder.plot_sched()


def test_the_last_weights_stay_and_the_table_agrees_with_validate(learner):
    learn = learner(("digit", "ink"))
    scheduler = LossWeightScheduler({"digit": combine_scheds([0.5, 0.5], [SchedNo(1, 1), SchedNo(3, 3)])})
    fit(learn, 1, cbs=scheduler)
    assert (learn.heads.digit.loss_weight, learn.heads.ink.loss_weight) == (3.0, 1.0)
    recorded = dict(scheduler.loss_weights)
    with learn.no_bar():
        assert learn.validate()[0] == pytest.approx(learn.recorder.values[-1][1], rel=1e-5)
    assert scheduler.loss_weights == recorded == {"digit": [1.0, 1.0, 3.0, 3.0]}


def test_beside_one_cycle_and_in_every_fit_anew(learner):
    learn = learner(("digit", "ink"), cbs=LossWeightScheduler({"digit": SchedExp(1, 0.1)}))
    for epochs in (1, 2):
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs)
            learn.validate()
        hps = learn.recorder.hps
        assert list(hps) == ["lr", "mom", "digit_loss_weight"]
        assert hps["digit_loss_weight"][0] == 1 and len(hps["digit_loss_weight"]) == len(hps["lr"]) == 4 * epochs


def test_seeking_the_learning_rate_changes_no_weight(learner):
    learn = learner(("digit", "ink"), cbs=LossWeightScheduler({"digit": SchedLin(0.3, 0.1)}))
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=6, show_plot=False)
    assert learn.heads.digit.loss_weight == 1.0


def test_a_schedule_and_a_parameter_scheduler_do_not_meet(learner):
    learn = learner(("digit", "ink"))
    fit(learn, 1, cbs=[ParamScheduler({"lr": SchedNo(1e-3, 1e-3)}), LossWeightScheduler({"ink": lambda share: share})])
    assert learn.recorder.hps["ink_loss_weight"] == [0.0, 0.25, 0.5, 0.75]
    assert learn.recorder.hps["lr"] == [1e-3] * 4


@pytest.mark.parametrize(
    ("scheds", "message"),
    [
        ({"digits": SchedLin(1, 0)}, "there is no head 'digits'. There is digit, ink. Did you mean 'digit'"),
        ({"digit": 0.3}, r"`scheds\['digit'\]` of LossWeightScheduler is a function .* found 0.3"),
        ({"digit": SchedLin(1, -1)}, r"`scheds\['digit'\]` .* found weights 1.0 to -1"),
        ({"digit": lambda share: None}, "found weights None to None"),
    ],
)
def test_what_is_no_schedule_is_refused_before_training(learner, scheds, message):
    learn, weights = learner(("digit", "ink")), Weights()
    with pytest.raises(HeadsError, match=message):
        learn.fit(1, cbs=[LossWeightScheduler(scheds), weights])
    assert not weights.seen and learn.heads.digit.loss_weight == 1.0
