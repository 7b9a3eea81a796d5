"""Cosines, norms and shares against figures worked out by hand."""

import numpy as np
import pytest

from fastai_heads.training.conflict_record import ConflictRecord, step_shares

ROWS = np.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0], [-3.0, 0.0, -4.0]])


def test_cosines_and_norms():
    record = ConflictRecord(("a", "b", "c"))
    assert record.cosines.shape == (0, 3, 3) and record.norms.shape == record.shares.shape == (0, 3)
    gaps = ROWS @ ROWS.T
    gaps[1, :] = gaps[:, 1] = np.nan
    for step, products in enumerate((ROWS @ ROWS.T, gaps, np.zeros((3, 3)))):
        record.add(step, products, np.zeros(3))
    assert record.norms[0].tolist() == [5, 2, 5]
    assert np.allclose(record.cosines[0], [[1, 0, -1], [0, 1, 0], [-1, 0, 1]])
    assert np.isnan(record.norms[1]).tolist() == [False, True, False] and record.cosines[1, 0, 2] == -1
    assert np.isnan(record.cosines[2]).all() and record.steps == [0, 1, 2]  # without a gradient there is no angle


def test_shares_are_projections_on_the_step():
    weights = np.array([0.5, 3.0, 0.1])
    step = weights @ ROWS
    by_hand = weights * (ROWS @ step) / (step @ step)
    found = step_shares(ROWS @ ROWS.T, weights)
    assert np.allclose(found, by_hand) and found.sum() == pytest.approx(1) and found[2] < 0
    assert np.allclose(step_shares(ROWS[:2] @ ROWS[:2].T), [25 / 29, 4 / 29])


def test_shares_of_what_is_not_there():
    products = ROWS @ ROWS.T
    products[1, :] = products[:, 1] = np.nan
    assert np.allclose(step_shares(products, np.array([1.0, 7.0, 0.0])), [1, np.nan, 0], equal_nan=True)
    assert np.isnan(step_shares(ROWS @ ROWS.T, np.full(3, np.nan))).all()
    assert np.isnan(step_shares(ROWS @ ROWS.T, np.array([1.0, 0.0, 1.0]))).all()  # the two cancel: there is no step


def test_weights_of_heads_that_were_left_out_are_gaps():
    record = ConflictRecord(("a", "b"))
    record.add_weights(0, {"a": 1.0, "b": 2.0})
    record.add_weights(3, {"b": 0.5})
    assert record.weight_steps == [0, 3]
    assert np.array_equal(record.weights, [[1, 2], [np.nan, 0.5]], equal_nan=True)
