"""The pictures of conflict and weights: what is drawn of 2 and of 8 heads, and what is said where there is nothing."""

import numpy as np
import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.training.conflict_record import ConflictRecord, step_shares
from fastai_heads.training.conflict_recorder import ConflictRecorder
from fastai_heads.view.conflict_charts import draw_conflict, draw_weights


@pytest.fixture
def record():
    "A function: how many heads, and batches → a record."

    def make(n, batches=60):
        made, rng = ConflictRecord([f"head_{i}" for i in range(n)]), np.random.default_rng(0)
        for batch in range(batches):
            rows = rng.normal(size=(n, 30)) * 10.0 ** np.arange(n)[:, None]
            products = rows @ rows.T
            if batch % 7 == 3:
                products[0, :] = products[:, 0] = np.nan
            made.add(10 * batch, products, step_shares(products))
            made.add_weights(10 * batch, {name: 10.0**i for i, name in enumerate(made.heads)})
        return made

    return make


@pytest.mark.parametrize(("n", "pairs"), [(2, 1), (3, 3), (8, 6)])
def test_every_head_and_the_pairs_most_in_conflict_are_named(record, n, pairs):
    seen = record(n)
    fig = draw_conflict(seen)
    fig.canvas.draw()
    matrix, lines, norms, shares = fig.axes[:4]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == list(seen.heads)
    assert len(matrix.texts) == n * (n - 1) and len(lines.get_legend().get_texts()) == pairs
    assert norms.get_yscale() == "log" and shares.get_yscale() == "linear"
    mean = np.nanmean(seen.cosines, 0)
    worst = np.unravel_index(np.argmin(mean + 2 * np.eye(n)), (n, n))
    assert lines.get_legend().get_texts()[0].get_text() == f"head_{min(worst)}, head_{max(worst)}"
    assert matrix.texts[0].get_text() == f"{mean[0, 1]:.2f}"
    assert not [t for t in matrix.get_xticklabels() if t.get_window_extent().y0 < 0]


@pytest.mark.parametrize("n", [2, 8])
def test_weights_far_apart_have_a_logarithmic_axis(record, n):
    ax = draw_weights(record(n))
    assert ax.get_yscale() == ("log" if n == 8 else "linear")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"head_{i}" for i in range(n)]
    assert draw_weights(record(n), ax) is ax


def test_one_batch_is_drawn_as_points(record):
    fig = draw_conflict(record(2, 1))
    assert {line.get_marker() for line in fig.axes[2].lines} == {"o"}


def test_drawn_by_the_learner(make_learner):
    learn = make_learner("digit", "ink")
    with pytest.raises(HeadsError, match=r"`plot_conflict`.*ConflictRecorder"):
        learn.plot_conflict()
    with pytest.raises(HeadsError, match=r"`plot_weights`.*ConflictRecorder"):
        learn.plot_weights()
    learn.fit(1, cbs=ConflictRecorder(every=2))
    assert len(learn.plot_conflict().axes[2].lines) == 4  # of each head what was seen and its mean
    assert [line.get_ydata().tolist() for line in learn.plot_weights().lines] == [[1.0] * 4] * 4


def test_what_cannot_be_drawn_is_said(record):
    with pytest.raises(HeadsError, match="there is only one, 'head_0'"):
        draw_conflict(record(1))
    without = ConflictRecord(("a", "b"))
    without.add_weights(0, {"a": np.nan, "b": np.nan})
    with pytest.raises(HeadsError, match="does not weight"):
        draw_weights(without)
    with pytest.raises(HeadsError, match="saw nothing"):
        draw_conflict(without)
