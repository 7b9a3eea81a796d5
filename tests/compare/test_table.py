"""Means, spreads, Δm and costs against figures worked out by hand."""

import math

import pandas as pd
import pytest

from fastai_heads.compare.table import ALL, SINGLE, Measure, delta_m, table_text, tabulate

MEASURES = {"digit": Measure("digit_accuracy", True), "ink": Measure("ink_mae", False)}


@pytest.fixture
def runs():
    row = {"seconds": 2.0, "parameters": 100}
    return pd.DataFrame(
        [
            {"strategy": SINGLE, "head": "digit", "seed": 0, **row, "digit_accuracy": 0.8},
            {"strategy": SINGLE, "head": "ink", "seed": 0, **row, "seconds": 4.0, "ink_mae": 20.0},
            {"strategy": "sum", "head": ALL, "seed": 0, "seconds": 3.0, "parameters": 120}
            | {"digit_accuracy": 0.9, "ink_mae": 10.0},
            {"strategy": SINGLE, "head": "digit", "seed": 1, **row, "seconds": 4.0, "digit_accuracy": 0.6},
            {"strategy": SINGLE, "head": "ink", "seed": 1, **row, "seconds": 2.0, "ink_mae": 30.0},
            {"strategy": "sum", "head": ALL, "seed": 1, "seconds": 6.0, "parameters": 120}
            | {"digit_accuracy": 0.5, "ink_mae": 30.0},
        ]
    )


def test_delta_m_is_above_zero_where_the_head_gained():
    assert delta_m(0.9, 0.8, True) == pytest.approx(12.5) and delta_m(0.9, 0.8, False) == pytest.approx(-12.5)
    assert delta_m(10, 20, False) == 50 and math.isnan(delta_m(1, 0, True))
    assert delta_m(-0.4, -0.5, True) == pytest.approx(20)  # a metric may be negative, such as R²


def test_table_is_what_one_works_out(runs):
    table = tabulate(runs, MEASURES)
    assert list(table.index) == [(s, h) for s in (SINGLE, "sum") for h in ("digit", "ink", ALL)]
    assert table.loc[(SINGLE, "digit"), "mean"] == pytest.approx(0.7)
    assert table.loc[(SINGLE, "digit"), "spread"] == pytest.approx(0.2 / math.sqrt(2))
    assert table.loc[(SINGLE, "digit"), "cost"] == table.loc[(SINGLE, "ink"), "cost"] == 0.5
    assert table.loc[(SINGLE, ALL), "parameters"] == 200
    assert table.loc[("sum", "digit"), "delta_m"] == pytest.approx(0)  # 0.7 for 0.7
    assert table.loc[("sum", "ink"), "delta_m"] == pytest.approx(20)  # 20 for 25, and less is better
    assert table.loc[("sum", ALL), "delta_m"] == pytest.approx(10)
    assert table.loc[("sum", ALL), "cost"] == pytest.approx(4.5 / 6)
    assert table.loc[("sum", ALL), "parameters"] == 120 and table.loc[("sum", "ink"), "runs"] == 2


def test_one_seed_has_no_spread_and_the_text_leaves_gaps_empty(runs):
    table = tabulate(runs[runs["seed"] == 0], MEASURES)
    assert math.isnan(table.loc[("sum", "digit"), "spread"])
    text = table_text(table)
    assert "nan" not in text.lower() and "+50.0 %" in text and "+31.2 %" in text and "0.50" in text
    assert "0.7 ± 0.14" in table_text(tabulate(runs, MEASURES))
