"""A strategy of one's own: what it has to define, what it is told, and that it is what trains."""

import pytest
import torch

from fastai_heads import Strategy

TARGETS = ("digit", "ink")


class Told(Strategy):
    "The plain sum, written by a user, that notes what it is told."

    label, weights = "told", {}

    def __init__(self):
        self.events = []

    def before_fit(self, learn):
        self.events.append("before_fit")

    def predict(self, learn):
        self.events.append("predict")
        return super().predict(learn)

    def objective(self, learn):
        self.events.append("objective")
        self.weights = {name: head.loss_weight for name, head in learn.heads.items()}
        return torch.stack([loss * self.weights[name] for name, loss in self.losses(learn).items()]).sum()

    def backward(self, learn):
        self.events.append("backward")
        super().backward(learn)

    def before_step(self, learn):
        self.events.append("before_step")

    def after_step(self, learn):
        self.events.append("after_step")

    def after_train(self, learn):
        self.events.append("after_train")


class OneHead(Told):
    "The step of one head, the other left out."

    def objective(self, learn):
        self.weights = {"ink": 1.0}
        return self.losses(learn)["ink"]


def trained(learner, strategy, epochs=2):
    "Give a learner after a fit that draws the same numbers for every strategy."
    torch.manual_seed(0)
    learn = learner(TARGETS, strategy=strategy)
    learn.dls.train.rng.seed(0)
    torch.manual_seed(1)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-2)
    return learn


def test_the_sum_written_anew_trains_as_the_default_does(learner):
    default, own = trained(learner, None), trained(learner, Told)
    assert isinstance(own.strategy, Told) and own.strategy.weights == default.strategy.weights
    pairs = zip(default.model.state_dict().values(), own.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_is_told_of_every_batch_step_and_epoch_in_order(learner):
    strategy = Told()
    learn = trained(learner, strategy)
    batch = ["predict", "objective", "backward", "before_step", "after_step"]
    assert strategy.events == ["before_fit", *([*batch * len(learn.dls.train), "after_train"] * 2)]


def test_its_objective_is_what_trains(learner):
    learn = trained(learner, OneHead(), epochs=1)
    stepped = {name: ["step" in learn.opt.state[p] for p in head.parameters()] for name, head in learn.heads.items()}
    assert not any(stepped["digit"]) and all(stepped["ink"])
    assert learn.strategy.weights == {"ink": 1.0}


@pytest.mark.parametrize("missing", ["label", "weights", "objective"])
def test_what_a_strategy_has_to_define(missing):
    parts = {name: getattr(Told, name) for name in ("label", "weights", "objective") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Half", (Strategy,), parts)()
