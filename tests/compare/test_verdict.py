"""A comparison in words, from tables worked out by hand."""

import pandas as pd
import pytest

from fastai_heads.compare.table import Measure, tabulate
from fastai_heads.compare.verdict import verdict

MEASURES = {"digit": Measure("digit_accuracy", True), "ink": Measure("ink_mae", False)}


def runs(*rows):
    "Rows of (strategy, head, seed, digit's accuracy, ink's error)."
    columns = ["strategy", "head", "seed", "digit_accuracy", "ink_mae"]
    return pd.DataFrame(rows, columns=columns).assign(seconds=1.0, parameters=10)


NAN = float("nan")
ALONE = [("single", "digit", 0, 0.80, NAN), ("single", "digit", 1, 0.82, NAN)]
ALONE += [("single", "ink", 0, NAN, 10.0), ("single", "ink", 1, NAN, 10.2)]


@pytest.mark.parametrize(
    ("digit", "ink", "said"),
    [
        ((0.90, 0.92), (10.0, 10.3), "Better than alone: digit (+12.3 %). As good as alone"),
        ((0.90, 0.92), (12.0, 12.2), "Worse than alone: ink (-19.8 %)."),
        ((0.81, 0.82), (8.0, 8.2), "Better than alone: ink (+19.8 %)."),
    ],
)
def test_what_is_said(digit, ink, said):
    both = [("sum", "all", seed, d, i) for seed, (d, i) in enumerate(zip(digit, ink))]
    found = verdict(tabulate(runs(*ALONE, *both), MEASURES))
    assert said in found and "Best together: sum" in found and "0.50 of the cost" in found
    assert ("No head is worse" in found) == ("Worse" not in said)


def test_the_best_strategy_is_named():
    both = [("sum", "all", 0, 0.7, 11.0), ("UW", "all", 0, 0.9, 9.0)]
    assert "Best together: UW, Δm +11.0 %" in verdict(tabulate(runs(*ALONE, *both), MEASURES))


def test_one_seed_decides_nothing():
    rows = [("single", "digit", 0, 0.8, NAN), ("single", "ink", 0, NAN, 10.0), ("sum", "all", 0, 0.2, 90.0)]
    found = verdict(tabulate(runs(*rows), MEASURES))
    assert "As good as alone, within the spread of the seeds: digit (-75.0 %), ink (-800.0 %)" in found


def test_the_budget_is_said():
    both = [("sum", "all", 0, 0.8, 10.0)]
    assert verdict(tabulate(runs(*ALONE, *both), MEASURES), equal_cost=True).startswith("The heads alone had 1/2")


def test_no_gain_can_be_told_from_nothing():
    rows = [("single", "digit", 0, 0.0, NAN), ("single", "ink", 0, NAN, 0.0), ("sum", "all", 0, 0.2, 90.0)]
    assert verdict(tabulate(runs(*rows), MEASURES)).startswith("No verdict")
