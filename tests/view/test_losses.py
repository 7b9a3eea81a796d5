"""`learn.recorder.plot_loss()`: fastai's curve of the total, and every head's."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fastai.learner import Recorder

from fastai_heads.errors import HeadsError
from fastai_heads.view.losses import plot_losses

FIVE = ("digit", "tags", "ink", "centre", "box")


def curves(ax):
    "Label → (steps, values) of the lines in an axes."
    return {line.get_label(): np.asarray(line.get_xydata(), dtype=float) for line in ax.lines}


@pytest.fixture
def five(make_learner):
    learn = make_learner(*FIVE)
    learn.fit(2, 1e-3)
    return learn


@pytest.mark.parametrize("kwargs", [{}, {"skip_start": 0}, {"log": True, "skip_start": 1}, {"with_valid": False}])
def test_the_total_is_fastais_curve(five, kwargs):
    theirs = curves(Recorder.plot_loss(five.recorder, ax=plt.figure().add_subplot(), **kwargs))
    ax = five.recorder.plot_loss(**kwargs)
    ours = curves(ax)
    assert ours.keys() == theirs.keys() == ({"train"} if kwargs.get("with_valid") is False else {"train", "valid"})
    for label in ours:
        np.testing.assert_allclose(ours[label], theirs[label], rtol=1e-6)
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("learning curve", "steps", "loss")
    assert ax.get_xscale() == ("log" if kwargs.get("log") else "linear")


def test_every_head_has_its_own_axes_below(five):
    ax = five.recorder.plot_loss(skip_start=2, show_epochs=True)
    total, *small = ax.figure.axes
    assert total is ax and [a.get_title() for a in small] == list(FIVE)
    names = list(five.recorder.metric_names)[1:]
    for a in small:
        name, found = a.get_title(), curves(a)
        expected = [float(v) for v in five.recorder.losses_by_head[name]][2:]
        np.testing.assert_allclose(found["train"][:, 1], expected)
        at = names.index(f"valid_{name}_loss")
        np.testing.assert_allclose(found["valid"], [(4, five.rows[0][at + 1]), (8, five.rows[1][at + 1])], rtol=1e-6)
        assert len(a.lines) == 4, "train, valid, and two ends of epochs"


def test_heads_are_drawn_onto_a_given_axes(five):
    _, (left, right) = plt.subplots(1, 2)
    assert five.recorder.plot_loss(ax=left) is left
    assert len(left.lines) == 2 + 2 * 5 and not right.lines
    assert {t.get_text() for t in left.get_legend().get_texts()} >= {"train", "valid", "train ink", "valid ink"}
    five.recorder.plot_loss(ax=right, heads=False)
    assert curves(right).keys() == {"train", "valid"}


def test_a_second_plot_does_not_draw_into_the_first(five):
    first, second = five.recorder.plot_loss(), five.recorder.plot_loss()
    assert first.figure is not second.figure
    assert len(plot_losses(five.recorder).axes) == 6


def test_one_head_is_the_total(make_learner):
    learn = make_learner("digit")
    with pytest.raises(HeadsError, match="there has been none"):
        learn.recorder.plot_loss()
    learn.fit(1)
    assert len(learn.recorder.plot_loss().figure.axes) == 1
