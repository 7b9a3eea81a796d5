"""Groups of heads worked out by hand, and the affinity against a step taken for one head."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.training import affinity
from fastai_heads.training.affinity import group_heads
from fastai_heads.training.conflict_recorder import ConflictRecorder
from fastai_heads.training.step import batch_losses

FOUR = np.array([[9, 3, -1, -2], [1, 9, -1, 0], [-2, -1, 9, 2], [-1, 0, 4, 9.0]])


@pytest.mark.parametrize(
    ("matrix", "at_most", "groups"),
    [
        (FOUR, None, [[0, 1], [2, 3]]),  # 1 + 3 and 4 + 2
        (FOUR, 1, [[0, 1, 2, 3]]),
        (np.array([[1, np.nan], [np.nan, 1]]), None, [[0, 1]]),  # nothing is known: fewer networks
        (np.array([[1, -1], [-1, 1.0]]), None, [[0], [1]]),
    ],
)
def test_groups(matrix, at_most, groups):
    assert group_heads(matrix, at_most) == groups


def test_every_grouping_is_listed_once():
    found = [tuple(sorted(map(tuple, groups))) for groups in affinity._partitions(list(range(5)))]
    assert len(found) == len(set(found)) == 52  # Bell's fifth number


def test_many_heads_are_joined_two_by_two(monkeypatch):
    monkeypatch.setattr(affinity, "EXHAUSTIVE", 2)
    assert group_heads(FOUR) == [[0, 1], [2, 3]]
    assert group_heads(FOUR, 1) == [[0, 1, 2, 3]]


class LastBatch(Callback):
    "Keep the network and the batch of the last step, without dropout."

    run_valid = False

    def before_batch(self):
        self.model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
        self.network, self.batch = copy.deepcopy(self.model), (self.xb, self.yb)


def test_it_is_the_first_order_of_a_step_for_one_head(learner):
    set_seed(0)
    learn, seen = learner(("digit", "ink")), LastBatch()
    with learn.no_bar(), learn.no_logging():
        learn.dls.loaders = [learn.dls.train.new(bs=16, shuffle=False), learn.dls.valid]
        learn.fit(1, 1e-4, cbs=[seen, ConflictRecorder(every=1)])
    rate, (x, y) = 3e-5, seen.batch

    found = learn.conflict._products[-1] / learn.conflict._losses[-1]
    shared = [name for name, _ in seen.network.named_parameters() if name.startswith("0.")]
    start = batch_losses(learn.loss_func, seen.network(*x), y)
    for i in range(2):
        there = []
        for side in (1, -1):  # a step, and one back: what is of the second order cancels
            network = copy.deepcopy(seen.network)
            params = dict(network.named_parameters())
            loss = batch_losses(learn.loss_func, network(*x), y)[i]
            with torch.no_grad():
                for name, grad in zip(shared, torch.autograd.grad(loss, [params[name] for name in shared])):
                    params[name] -= side * rate * grad
                there.append(batch_losses(learn.loss_func, network(*x), y))
        for j in range(2):
            by_hand = ((there[1][j] - there[0][j]) / (2 * rate * start[j])).item()
            assert found[i, j] == pytest.approx(by_hand, rel=5e-2, abs=5e-3)


def test_groups_and_picture(learner):
    learn = learner(("digit", "ink", "box"))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=ConflictRecorder(every=1))
    names = [name for group in learn.conflict.groups() for name in group]
    assert sorted(names) == ["box", "digit", "ink"]
    assert len(learn.conflict.groups(at_most=1)) == 1
    ax = learn.plot_affinity()
    assert sorted(text.get_text() for text in ax.get_xticklabels()) == ["box", "digit", "ink"]
    plt.close("all")
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(HeadsError, match="at_most"):
            learn.conflict.groups(at_most=wrong)


def test_nothing_seen_is_refused(learner):
    with pytest.raises(HeadsError, match="ConflictRecorder"):
        learner(("digit", "ink")).plot_affinity()
