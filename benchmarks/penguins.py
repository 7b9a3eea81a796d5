"""Penguins: mass, species and sex from one network against a network each, 5-fold: `python -m benchmarks.penguins`.

The raw table of `palmerpenguins` (Horst, Hill and Gorman 2020) has gaps in its numbers and in two of the targets. The
folds are of the individuals' rows, shuffled once. Needs the extra `examples`."""

import statistics
import time
import warnings
from collections.abc import Sequence

import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.tabular.core import Categorify, FillMissing, Normalize
from fastai.torch_core import set_seed
from fastcore.basics import noop
from sklearn.model_selection import KFold

from benchmarks.steps import quiet_fit
from fastai_heads import PartialBlock, TabularBlock, TabularBody, multihead_learner

FOLDS, EPOCHS, LR, BATCH, LAYERS = 5, 25, 1e-2, 32, [64, 32]
CATS = ["studyName", "Island", "Clutch Completion"]
CONTS = ["Culmen Length (mm)", "Culmen Depth (mm)", "Flipper Length (mm)", "Delta 15 N (o/oo)", "Delta 13 C (o/oo)"]
TARGETS = ("mass", "species", "sex")
UNITS = {"mass": "rmse in g", "species": "accuracy", "sex": "accuracy"}


def penguins() -> pd.DataFrame:
    "Read the raw table, with the targets under short names: 344 rows, 2 without a mass and 11 without a sex."
    from palmerpenguins import load_penguins_raw

    table = load_penguins_raw().astype({"Sex": object, "Comments": object})
    species = table["Species"].str.split().str[0]
    return table.assign(mass=table["Body Mass (g)"], species=species, sex=table["Sex"])


def penguin_dls(table: pd.DataFrame, targets: Sequence[str], valid: Sequence[int]) -> DataLoaders:
    "Make loaders of rows, with some of the targets."
    blocks = {"mass": RegressionBlock(), "species": CategoryBlock(), "sex": CategoryBlock()}
    return DataBlock(
        [TabularBlock(CATS, CONTS, [Categorify, FillMissing, Normalize]), *(PartialBlock(blocks[t]) for t in targets)],
        n_inp=1,
        get_x=noop,
        get_y=[ColReader(t) for t in targets],
        splitter=IndexSplitter(list(valid)),
    ).dataloaders(table, bs=BATCH, num_workers=0)


def train(table: pd.DataFrame, targets: Sequence[str], valid: Sequence[int], seed: int) -> dict[str, float]:
    "Train one network for some targets, and measure each on the fold that was left out."
    set_seed(seed, reproducible=True)
    learn = multihead_learner(penguin_dls(table, targets, valid), TabularBody(layers=LAYERS), list(targets))
    quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))
    with learn.no_bar():
        learn.validate()
    return {m.head.name: float(m.value) for m in learn.metrics if m.head.name in targets}


def main() -> None:
    "Print mean and spread over the folds, and the time that one network takes of the time of three."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = penguins()
    together, alone = {name: [] for name in TARGETS}, {name: [] for name in TARGETS}
    seconds = [0.0, 0.0]
    for fold, (_, valid) in enumerate(KFold(FOLDS, shuffle=True, random_state=0).split(table)):
        for which, sets in enumerate([[TARGETS], [(name,) for name in TARGETS]]):
            start = time.process_time()
            for targets in sets:
                for name, value in train(table, targets, valid, fold).items():
                    (alone if which else together)[name].append(value)
            seconds[which] += time.process_time() - start
    print(f"{len(table)} penguins, {FOLDS} folds, {EPOCHS} epochs of batches of {BATCH}, layers {LAYERS}")
    print(f"{'':8} {'':10} {'together':>18} {'alone':>18}")
    for name in TARGETS:
        cells = [f"{statistics.mean(v):.4g} ± {statistics.stdev(v):.2g}" for v in (together[name], alone[name])]
        print(f"{name:8} {UNITS[name]:10} {cells[0]:>18} {cells[1]:>18}")
    print(f"one network takes {seconds[0] / seconds[1]:.2f} of the time of three")


if __name__ == "__main__":
    main()
