"""From finished runs to the table: means, spreads, Δm, costs."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

__all__ = ["ALL", "SINGLE", "Measure", "delta_m", "table_text", "tabulate"]

SINGLE = "single"  # the label of the heads alone
ALL = "all"  # the row of all heads of a strategy


class Measure(NamedTuple):
    "What a head is judged by."

    metric: str  # its name in the table of a fit
    higher_is_better: bool


def delta_m(
    together: float,  # the metric of the head trained with others
    single: float,  # of the head trained alone
    higher_is_better: bool,  # which way the metric is better
) -> float:  # percent; above 0 the head gained
    "The gain over the head alone, relative to it. Source: Maninis et al. 2019, eq. 4, for one task."
    if single == 0:
        return float("nan")
    return (1 if higher_is_better else -1) * (together - single) / abs(single) * 100


def tabulate(
    runs: pd.DataFrame,  # a row per run: strategy, head, seed, seconds, parameters, and each head's metric by its name
    measures: Mapping[str, Measure],  # head → what it is judged by
) -> pd.DataFrame:  # by (strategy, head): metric, mean, spread, runs, delta_m, cost, parameters
    """What the heads alone, and every strategy, came to.

    `spread` is the standard deviation over the seeds, `delta_m` percent, `cost` the mean seconds of a training against
    the sum of those of the heads alone, `parameters` a number. The row `all` of a strategy has the mean of its heads'
    `delta_m`, the cost and the parameters; `single`'s are the sums over the heads alone."""
    alone = runs[runs["strategy"] == SINGLE]
    seconds, params = (alone.groupby("head")[column].mean() for column in ("seconds", "parameters"))
    whole = seconds.sum()
    table: dict[tuple[str, str], dict] = {}
    for head, measure in measures.items():
        row = _measured(alone[alone["head"] == head][measure.metric], measure)
        table[SINGLE, head] = row | {"cost": seconds[head] / whole, "parameters": int(params[head])}
    table[SINGLE, ALL] = {"cost": 1.0, "parameters": int(params.sum())}
    for label, those in runs[runs["strategy"] != SINGLE].groupby("strategy", sort=False):
        for head, measure in measures.items():
            row = _measured(those[measure.metric], measure)
            single = table[SINGLE, head]["mean"]
            table[label, head] = row | {"delta_m": delta_m(row["mean"], single, measure.higher_is_better)}
        gains = [table[label, head]["delta_m"] for head in measures]
        cost = {"cost": those["seconds"].mean() / whole, "parameters": int(those["parameters"].iloc[0])}
        table[label, ALL] = {"delta_m": sum(gains) / len(gains)} | cost
    columns = ["metric", "mean", "spread", "runs", "delta_m", "cost", "parameters"]
    frame = pd.DataFrame.from_dict(table, orient="index").reindex(columns=columns)
    frame.index = pd.MultiIndex.from_tuples(table, names=["strategy", "head"])
    return frame.astype({"runs": "Int64", "parameters": "Int64"})


def _measured(values: pd.Series, measure: Measure) -> dict:
    return {"metric": measure.metric, "mean": values.mean(), "spread": values.std(), "runs": int(values.count())}


def table_text(
    table: pd.DataFrame,  # from `tabulate`
) -> str:
    "The table for people; what a row does not have stays empty."
    shown = pd.DataFrame(index=table.index)
    shown["metric"] = table["metric"].fillna("")
    shown["mean ± spread"] = [_spread(m, s) for m, s in zip(table["mean"], table["spread"])]
    shown["Δm"] = [f"{d:+.1f} %" if pd.notna(d) else "" for d in table["delta_m"]]
    shown["cost"] = [f"{c:.2f}" if pd.notna(c) else "" for c in table["cost"]]
    shown["parameters"] = [f"{p:,}" if pd.notna(p) else "" for p in table["parameters"]]
    return shown.to_string()


def _spread(mean: float, spread: float) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.4g}" if pd.isna(spread) else f"{mean:.4g} ± {spread:.2g}"
