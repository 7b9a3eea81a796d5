"""Rows of a table: a learner with heads on a `TabularBody` against fastai's `tabular_learner`.

    python -m benchmarks.tables

Two ratios of processor time, in one process, timed in turn, one thread: a training step of one head, and an epoch of
100,000 rows with three targets against `tabular_learner` with one."""

import argparse
import time
import warnings
from statistics import median, quantiles

import numpy as np
import pandas as pd
import torch
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    ColReader,
    DataBlock,
    IndexSplitter,
    MSELossFlat,
    Normalize,
    RegressionBlock,
    TabularDataLoaders,
    noop,
    set_seed,
    tabular_learner,
)

from fastai_heads import TabularBlock, TabularBody, TabularTargets, multihead_learner

CATS, CONTS, LAYERS = ["a", "b", "c"], [f"u{i}" for i in range(8)], [200, 100]
PROCS = [Categorify, Normalize]


def make_frame(n: int) -> pd.DataFrame:
    "Make rows with three categories, eight numbers, and targets that depend on them."
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {name: rng.integers(0, 12, n).astype(str) for name in CATS} | {u: rng.normal(size=n) for u in CONTS}
    )
    score = frame[CONTS[:3]].sum(axis=1)
    return frame.assign(y=score + rng.normal(size=n), z=frame.u3 - frame.u4, kind=np.where(score > 0, "up", "down"))


def make_one(frame: pd.DataFrame, bs: int):
    "Make fastai's learner of one number."
    dls = _tables(frame, "y", bs)
    set_seed(0)
    return tabular_learner(dls, layers=LAYERS, n_out=1, loss_func=MSELossFlat())


def make_heads(frame: pd.DataFrame, names: list[str], bs: int, block: bool = False):
    "Make a learner with a head for each target, over fastai's loaders of tables or over a `DataBlock`."
    dls = _block(frame, names, bs) if block else _tables(frame, names, bs)
    set_seed(0)
    return multihead_learner(dls, TabularBody(layers=LAYERS))


def _tables(frame: pd.DataFrame, names: str | list[str], bs: int):
    more = {} if isinstance(names, str) else {"y_block": TabularTargets()}
    last = list(range(len(frame) * 9 // 10, len(frame)))
    return TabularDataLoaders.from_df(
        frame, procs=PROCS, cat_names=CATS, cont_names=CONTS, y_names=names, valid_idx=last, bs=bs, **more
    )


def _block(frame: pd.DataFrame, names: list[str], bs: int):
    targets = [CategoryBlock if name == "kind" else RegressionBlock for name in names]
    return DataBlock(
        (TabularBlock(CATS, CONTS, PROCS), *targets), n_inp=1, get_x=noop, get_y=[ColReader(name) for name in names],
        splitter=IndexSplitter(list(range(len(frame) * 9 // 10, len(frame)))),
    ).dataloaders(frame, bs=bs, num_workers=0)  # fmt: skip


def time_epoch(learn) -> float:
    "Time one epoch of training and validation, in seconds of processor time."
    with learn.no_logging(), learn.no_bar():
        start = time.process_time()
        learn.fit(1, 1e-3)
        return time.process_time() - start


def say(what: str, ours: list[float], theirs: list[float]) -> None:
    "Print the median of the rounds' ratios, and their middle half."
    ratios = [a / b for a, b in zip(ours, theirs)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    print(f"{what:60} {median(ratios):.2f} ({low:.2f} to {high:.2f}); {median(ours):.2f} s and {median(theirs):.2f} s")


def compare(what: str, ours, theirs, rounds: int) -> None:
    "Time two learners in turn; the first round, in which things are made, does not count."
    found = [(time_epoch(ours), time_epoch(theirs)) for _ in range(rounds + 1)][1:]
    say(what, *map(list, zip(*found)))


def main() -> None:
    "Print the ratios."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    few, many = make_frame(6_400), make_frame(options.rows)
    compare("100 steps of 64 rows, one head", make_heads(few, ["y"], 64), make_one(few, 64), options.rounds)
    names, one = ["y", "z", "kind"], make_one(many, 1024)
    compare(f"an epoch of {len(many):,} rows, three targets", make_heads(many, names, 1024), one, options.rounds)
    block = make_heads(many, names, 1024, block=True)
    compare("the same from a DataBlock with a TabularBlock", block, one, max(1, options.rounds // 2))


if __name__ == "__main__":
    main()
