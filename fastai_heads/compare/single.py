"""Every head alone, and all of them together: the same body, the same budget, several seeds."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from fastai.learner import Learner
from fastai.torch_core import get_model, no_random
from fastprogress.fastprogress import progress_bar

from fastai_heads.compare.fresh import Factory, counts, describe, find_measures, one_cycle, takes, validate
from fastai_heads.compare.runs import Runs
from fastai_heads.compare.table import ALL, SINGLE, Measure, table_text, tabulate
from fastai_heads.compare.verdict import verdict
from fastai_heads.errors import HeadsError
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.bridge import UW, GeometricMean, UPGrad
from fastai_heads.training.strategies.choose import as_strategy
from fastai_heads.training.strategies.disjoint import Disjoint

__all__ = ["compare_to_single"]


def default_strategies() -> dict[str, Any]:  # label → what `strategy=` takes
    "List what is compared where the user names nothing."
    return {
        "sum": None,
        "UW": UW,
        "GeometricMean": GeometricMean,
        "UPGrad over taps": Balance(UPGrad(), over="taps"),
        "Disjoint": Disjoint(),
    }


def compare_to_single(
    learn_factory: Callable[[Any], MultiHeadLearner],  # a strategy, or None → a fresh learner with all heads
    epochs: int,  # of every training
    seeds: int | Sequence[int] = 3,  # how many, or which
    strategies: Mapping[str, Any]
    | Sequence[str]
    | None = None,  # label → what `strategy=` takes, or names; None: five of them, see below
    metrics: Mapping[str, str] | None = None,  # head → the column of the table that judges it; None: its first metric
    fit: Callable[
        [MultiHeadLearner, int], Any
    ] = one_cycle,  # trains a learner for so many epochs: rate, `fine_tune`, …
    folder: str | Path | None = None,  # keeps finished runs, so that the same call goes on after an interrupt
    equal_cost: bool = False,  # a head alone gets its share of the epochs: so many by the number of heads, at least 1
) -> pd.DataFrame:  # by (strategy, head): metric, mean, spread, runs, delta_m, cost, parameters
    """Trains each head alone and all together, by every strategy and from every seed, and prints what came of it.

        def learner(strategy):
            return multihead_learner(dls, resnet18, strategy=strategy, lr=3e-3)

        compare_to_single(learner, epochs=5, seeds=3, folder="compared")

    A head alone is the learner of the factory with the others dropped, so that body, first weights and order of the
    batches are the same for the same seed; trunks that it does not read go, too, the body keeps its depth. Every
    training has the same number of epochs, unless `equal_cost=True`: then K heads alone take as many steps in all as
    the heads together. A step of one head costs somewhat less, and `cost` says what was measured. Strategies are copied
    for each run. By default they are the sum, `UW`, `GeometricMean`, `Balance(UPGrad(), over='taps')`, `Disjoint()`.

    Columns: `mean` and `spread` (standard deviation over the seeds) of the head's metric on the validation set after
    the training; `delta_m`, percent gained over the head alone (Maninis et al. 2019, eq. 4: the sign by what is better
    of the metric; the row `all` of a strategy has the mean over the heads); `cost`, the processor's time (on a GPU the
    clock's) against the sum of the heads alone; `parameters`, those of the network.

    Below the table stands a verdict in words, `table.attrs['verdict']`: which heads gain or lose more than seeds differ
    by. Which head pays for which is told by `ConflictRecorder`: `learn.plot_affinity()`, `learn.conflict.groups()`.

    `runs.csv` in `folder` has a row per run with every metric of every head. A folder of another comparison raises
    `HeadsError`; other seeds and further strategies add to it."""
    strategies = _labelled(default_strategies() if strategies is None else strategies)
    seeds = _check(epochs, seeds, strategies)
    _check_rest(learn_factory, metrics, fit, folder, equal_cost)
    make = Factory(learn_factory)
    sample = make(None, seeds[0])
    measures = find_measures(sample, dict(metrics or {}))
    _check_strategies(strategies, sample)
    alone = max(1, round(epochs / len(measures))) if equal_cost else epochs
    setup = describe(sample, epochs) | ({"epochs alone": alone} if equal_cost else {})
    runs = Runs(folder, setup, {label: _in_words(s) for label, s in strategies.items()})
    plan = [_Run(label, head, seed) for seed in seeds for label, head in _pairs(measures, strategies)]
    todo = [run for run in plan if not runs.has(**run._asdict())]
    bar = progress_bar(todo)
    for run in bar if todo else ():
        bar.comment = f"{run.head if run.strategy == SINGLE else run.strategy}, seed {run.seed}"
        budget = alone if run.strategy == SINGLE else epochs
        runs.add(run._asdict() | _train(make, strategies.get(run.strategy), run, budget, fit or one_cycle))
    frame = runs.frame()
    wanted = frame["seed"].isin(seeds) & frame["strategy"].isin([SINGLE, *strategies])
    table = tabulate(frame[wanted], measures)
    table.attrs["verdict"] = verdict(table, equal_cost)
    print(table_text(table), table.attrs["verdict"], sep="\n")
    return table


class _Run(NamedTuple):
    "One training."

    strategy: str  # its label, or `SINGLE`
    head: str  # the head that is alone, or `ALL`
    seed: int


def _check(epochs: int, seeds: int | Sequence[int], strategies: Mapping[str, Any]) -> list[int]:
    "List the seeds, each once. Refuse what cannot be run."
    if not counts(epochs):
        raise HeadsError(f"`epochs` is a whole number of at least 1, found {epochs!r}.")
    found = list(range(seeds)) if counts(seeds) else list(seeds) if isinstance(seeds, Sequence | range) else []
    if not found or len(set(found)) < len(found) or not all(isinstance(seed, int) for seed in found):
        raise HeadsError(f"`seeds` is how many (at least 1), or which, each once, found {seeds!r}.")
    for label in strategies:
        if not isinstance(label, str) or not label or label == SINGLE:
            raise HeadsError(
                f"`strategies`: a label is a text other than {SINGLE!r} (the heads alone), found {label!r}."
            )
    if not strategies:
        raise HeadsError("`strategies` is empty: name one at least, such as `{'sum': None}`.")
    return found


def _labelled(strategies: Any) -> dict[str, Any]:
    "Bring strategies by label; names of TorchJD's classes are labels of their own."
    if isinstance(strategies, Mapping):
        return dict(strategies)
    names = [strategies] if isinstance(strategies, str) else strategies
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return {name: name for name in names}
    raise HeadsError(
        "`strategies` is a dict of label to what `strategy=` takes, such as `{'sum': None, 'UW': UW}`, or a list of "
        f"names, found {strategies!r}."
    )


def _check_strategies(strategies: Mapping[str, Any], learn: MultiHeadLearner) -> None:
    "Refuse, before any training, a strategy that cannot be used with these heads."
    for label, value in strategies.items():
        try:
            as_strategy(deepcopy(value), len(learn.heads)).check(learn.heads)
        except HeadsError as error:
            raise error.within(f"`strategies[{label!r}]`") from None


def _check_rest(learn_factory: Any, metrics: Any, fit: Any, folder: Any, equal_cost: Any) -> None:
    "Refuse what is no function, no dict and no folder."
    right = "`lambda strategy: multihead_learner(dls, arch, strategy=strategy)`"
    if isinstance(learn_factory, Learner):
        raise HeadsError(f"`learn_factory` makes a learner anew in every call, {right}, found a learner.")
    if not callable(learn_factory) or not takes(learn_factory, 1):
        raise HeadsError(f"`learn_factory` is a function of a strategy, {right}, found {learn_factory!r}.")
    if fit is not None and not (callable(fit) and takes(fit, 2)):
        raise HeadsError(f"`fit` is a function of a learner and a number of epochs, found {fit!r}.")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise HeadsError(f"`metrics` is a dict of head to a column of the table, found {metrics!r}.")
    if not isinstance(equal_cost, bool):
        raise HeadsError(f"`equal_cost` is True or False, found {equal_cost!r}.")
    if folder is not None and not isinstance(folder, str | Path):
        raise HeadsError(f"`folder` is a path, or None to keep nothing, found {folder!r}.")


def _in_words(strategy: Any) -> str:
    "Say what a strategy is, the same in every process."
    return re.sub(r" at 0x[0-9a-f]+", "", strategy.__name__ if isinstance(strategy, type) else repr(strategy))


def _pairs(measures: Mapping[str, Measure], strategies: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [*((SINGLE, head) for head in measures), *((label, ALL) for label in strategies)]


def _train(make: Factory, strategy: Any, run: _Run, epochs: int, fit: Callable) -> dict[str, Any]:
    "Train once, and say what it cost and what came of it."
    learn = make(deepcopy(strategy), run.seed)
    if run.head != ALL:
        _leave_alone(learn, run.head)
    clock = time.process_time if next(learn.model.parameters()).device.type == "cpu" else time.perf_counter
    with no_random(run.seed), learn.no_bar(), learn.no_logging():
        start = clock()
        fit(learn, epochs)
        seconds = clock() - start
        values = validate(learn)
    return {"seconds": seconds, "parameters": sum(p.numel() for p in learn.model.parameters()), **values}


def _leave_alone(learn: MultiHeadLearner, name: str) -> None:
    "Take off every other head, and the trunks that none reads any more."
    for other in list(learn.heads):
        if other != name:
            learn.drop_head(other)
    get_model(learn.model)[1].drop_unread()
