"""A comparison in words: what is gained and lost, and whether that is more than seeds differ by."""

import pandas as pd

from fastai_heads.compare.table import ALL, SINGLE

__all__ = ["verdict"]


def verdict(
    table: pd.DataFrame,  # from `tabulate`
    equal_cost: bool = False,  # the heads alone had a share of the epochs each
) -> str:
    """Say of the strategy with the best Δm which heads gain and lose over themselves alone. A difference counts where
    it is larger than its spread, the root of the sum of both variances over the seeds; with one seed nothing counts."""
    labels = [label for label in dict.fromkeys(table.index.get_level_values(0)) if label != SINGLE]
    gains = table.loc[[(label, ALL) for label in labels], "delta_m"]
    if gains.isna().all():
        return "No verdict: a head alone has a metric of 0, or none."
    best = labels[int(gains.to_numpy().argmax())] if gains.notna().all() else gains.idxmax()[0]
    sides: dict[str, list[str]] = {"gain": [], "lose": [], "stay": []}
    for head in table.loc[best].index.drop(ALL):
        sides[_side(table.loc[(best, head)], table.loc[(SINGLE, head)])].append(
            f"{head} ({table.loc[(best, head), 'delta_m']:+.1f} %)"
        )
    cost, heads = table.loc[(best, ALL), "cost"], len(table.loc[best]) - 1
    budget = f"The heads alone had 1/{heads} of the epochs each. " if equal_cost else ""
    parts = [
        f"{budget}Best together: {best}, Δm {gains[best, ALL]:+.1f} %, at {cost:.2f} of the cost of all alone.",
        f"Better than alone: {', '.join(sides['gain'])}." if sides["gain"] else "",
        f"As good as alone, within the spread of the seeds: {', '.join(sides['stay'])}." if sides["stay"] else "",
        f"Worse than alone: {', '.join(sides['lose'])}." if sides["lose"] else "No head is worse than alone.",
    ]
    return " ".join(part for part in parts if part)


def _side(together: pd.Series, alone: pd.Series) -> str:
    spread = (together["spread"] ** 2 + alone["spread"] ** 2) ** 0.5
    if pd.isna(spread) or abs(together["mean"] - alone["mean"]) <= spread:
        return "stay"
    return "gain" if together["delta_m"] > 0 else "lose"
