"""Loss weights by search: many are tried for a short time, the better ones for longer."""

import html
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from fastai.learner import Learner
from fastai.torch_core import no_random
from fastprogress.fastprogress import progress_bar

from fastai_heads.compare.fresh import Factory, counts, describe, find_measures, takes, validate
from fastai_heads.compare.runs import Runs
from fastai_heads.compare.table import Measure, delta_m
from fastai_heads.errors import HeadsError
from fastai_heads.learner.learner import MultiHeadLearner

__all__ = ["TunedWeights", "tune_weights"]

REDUCTION = 3
"Of so many trials one goes on, for so many times the epochs (Li et al. 2018, eta)."


@dataclass(frozen=True)
class TunedWeights:
    "What `tune_weights` found."

    table: pd.DataFrame  # a row a training: epochs, trial, the weights, every judged metric, delta_m; the best first
    weights: dict[str, float]  # head → the best loss weight; those that the learner has, if none was better

    def apply(self, learn: MultiHeadLearner) -> MultiHeadLearner:
        "Set the weights of a learner's heads."
        for name, weight in self.weights.items():
            learn.heads[name].loss_weight = weight
        return learn

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items())
        return f"loss weights: {said}\n{self.table.to_string(index=False, float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        said = ", ".join(f"{html.escape(name)} {weight:.3g}" for name, weight in self.weights.items())
        return f"<p>loss weights: {said}</p>{self.table.to_html(index=False, float_format='{:.4g}'.format)}"


def longest(
    learn: MultiHeadLearner,  # fresh
    epochs: int,  # the budget
) -> None:
    "Train by one cycle; where the body is frozen, the heads on stored taps."
    frozen = getattr(learn.opt, "frozen_idx", 0)
    if frozen and frozen == len(learn.opt.hypers) - 1:
        learn.fit_heads(epochs, learn.lr, pct_start=0.25)
    else:
        learn.fit_one_cycle(epochs)


def tune_weights(
    learn_factory: Callable[[], MultiHeadLearner],  # makes a fresh learner, with the loss weights to begin from
    epochs: int,  # of the longest trainings
    trials: int = 9,  # weights that are tried, those of the factory's learner among them
    reach: float = 10.0,  # a weight is drawn from 1 / reach to reach times the learner's own, even in its logarithm
    metrics: Mapping[str, str] | None = None,  # head → the column that judges it; None: its first metric
    fit: Callable[[MultiHeadLearner, int], Any] = longest,  # trains a learner for so many epochs
    seed: int = 0,  # of the weights that are drawn, and of every training
    folder: str | Path | None = None,  # keeps finished trainings, so that the same call goes on after an interrupt
) -> TunedWeights:
    """Search loss weights at random, by successive halving (Jamieson and Talwalkar 2016): all trials train for a short
    time, the best third of them anew for three times as long, and so on up to `epochs`. A well-tuned sum is what other
    strategies are to be held against (Kurin et al. 2022, Xin et al. 2022).

        found = tune_weights(lambda: multihead_learner(dls, resnet18), epochs=9, folder="tuned")
        found.apply(learn)

    A trial's score is Δm against the learner's own weights after as many epochs: the mean over the heads of the percent
    gained by each head's metric on the validation set (Maninis et al. 2019, eq. 4). What was chosen by the validation
    set looks better on it than it is: measure the end on other data. Where the body is frozen, trials train on
    stored taps, and the body runs once. A folder of another search raises `HeadsError`."""
    _check(learn_factory, epochs, trials, reach, fit, seed, folder)
    make = Factory(lambda _: learn_factory())
    sample = make(None, seed)
    measures = find_measures(sample, dict(metrics or {}))
    own = {head.name: head.loss_weight for head in sample.heads.values()}
    drawn = _draw(own, trials, reach, seed)
    setup = describe(sample, epochs) | {"trials": trials, "reach": reach, "seed": seed}
    runs = Runs(folder, setup, {})
    going, stored = list(range(trials)), None
    for budget in _budgets(epochs, trials):
        todo = [trial for trial in going if not runs.has(epochs=budget, trial=trial)]
        for trial in progress_bar(todo, leave=False) if todo else ():
            learn = make(None, seed)
            learn.stored_taps = stored
            runs.add({"epochs": budget, "trial": trial} | _train(learn, drawn[trial], fit, budget, seed))
            stored = learn.stored_taps
        rows = {int(row["trial"]): row for row in runs.frame().to_dict("records") if row["epochs"] == budget}
        scores = {trial: _score(rows[trial], rows[0], measures) for trial in going}
        best = sorted((t for t in going if t), key=lambda trial: (-scores[trial], trial))
        going = [0, *best[: max(1, math.ceil(len(going) / REDUCTION) - 1)]]  # the learner's own are the measure
    table = _tabulate(runs.frame(), measures, drawn)
    last = table[table["epochs"] == epochs].iloc[0]
    return TunedWeights(table, {name: float(last[f"{name}_weight"]) for name in own})


def _budgets(epochs: int, trials: int) -> list[int]:
    "List the epochs of each round: the last has all, those before it a third of the next."
    rounds, left = 1, trials
    while left > REDUCTION and epochs // REDUCTION**rounds >= 1:
        left, rounds = math.ceil(left / REDUCTION), rounds + 1
    return [max(1, epochs // REDUCTION**back) for back in reversed(range(rounds))]


def _draw(own: Mapping[str, float], trials: int, reach: float, seed: int) -> list[dict[str, float]]:
    "Draw weights. The first are the learner's own, and all have the same mean: a rate is tuned by the rate."
    rng, drawn = random.Random(seed), [dict(own)]
    for _ in range(trials - 1):
        found = {name: weight * reach ** rng.uniform(-1, 1) for name, weight in own.items()}
        scale = fmean(own.values()) / fmean(found.values())
        drawn.append({name: weight * scale for name, weight in found.items()})
    return drawn


def _train(
    learn: MultiHeadLearner, weights: Mapping[str, float], fit: Callable, epochs: int, seed: int
) -> dict[str, Any]:
    for name, weight in weights.items():
        learn.heads[name].loss_weight = weight
    with no_random(seed), learn.no_bar(), learn.no_logging():
        fit(learn, epochs)
        return validate(learn)


def _score(row: Mapping[str, Any], own: Mapping[str, Any], measures: Mapping[str, Measure]) -> float:
    gains = [delta_m(row[m.metric], own[m.metric], m.higher_is_better) for m in measures.values()]
    gains = [gain for gain in gains if math.isfinite(gain)]  # no gain can be told over a metric of 0
    lost = any(not math.isfinite(row[m.metric]) and math.isfinite(own[m.metric]) for m in measures.values())
    return -math.inf if lost or not gains else fmean(gains)


def _tabulate(frame: pd.DataFrame, measures: Mapping[str, Measure], drawn: list[dict[str, float]]) -> pd.DataFrame:
    rows = []
    for _, those in frame.groupby("epochs"):
        own = those[those["trial"] == 0].iloc[0]
        for _, row in those.iterrows():
            trial = int(row["trial"])
            weights = {f"{name}_weight": weight for name, weight in drawn[trial].items()}
            judged = {m.metric: row[m.metric] for m in measures.values()}
            score = {"delta_m": _score(row, own, measures)}
            rows.append({"epochs": int(row["epochs"]), "trial": trial, **weights, **judged, **score})
    order = {"by": ["epochs", "delta_m", "trial"], "ascending": [False, False, True]}
    return pd.DataFrame(rows).sort_values(**order, ignore_index=True)


def _check(learn_factory: Any, epochs: Any, trials: Any, reach: Any, fit: Any, seed: Any, folder: Any) -> None:
    "Refuse what cannot be run, before anything is."
    right = "`lambda: multihead_learner(dls, arch)`"
    if isinstance(learn_factory, Learner) or not callable(learn_factory) or not takes(learn_factory, 0):
        raise HeadsError(f"`learn_factory` makes a learner anew in every call, {right}, found {learn_factory!r}.")
    if not counts(epochs):
        raise HeadsError(f"`epochs` is a whole number of at least 1, found {epochs!r}.")
    if not counts(trials) or trials < 2:
        raise HeadsError(f"`trials` is a whole number of at least 2, one for the learner's own, found {trials!r}.")
    number = isinstance(reach, int | float) and not isinstance(reach, bool) and math.isfinite(reach)
    if not number or reach <= 1:
        raise HeadsError(f"`reach` is a number above 1, found {reach!r}.")
    if not (callable(fit) and takes(fit, 2)):
        raise HeadsError(f"`fit` is a function of a learner and a number of epochs, found {fit!r}.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise HeadsError(f"`seed` is a whole number, found {seed!r}.")
    if folder is not None and not isinstance(folder, str | Path):
        raise HeadsError(f"`folder` is a path, or None to keep nothing, found {folder!r}.")
