"""How small a head's last layer should start, by experiment: `python -m benchmarks.start --minutes 4`.

A call does the runs that are missing until its time is up, keeps each in a file, and prints the table of all that there
are. `--table` prints it alone."""

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed

from benchmarks.steps import quiet_fit
from fastai_heads.data.digits import digits_dls
from fastai_heads.data.inspect import inspect_data
from fastai_heads.examples import ARCH, lite0_kwargs, photograph_dls
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner import MultiHeadLearner, multihead_learner

SCALES = (1.0, 0.2, 0.05, 0.0)
SEEDS = range(5)
EPOCHS = {"scratch": {"short": 5, "long": 20}, "real": {"short": 4, "long": 16}}
RUNS = Path("benchmarks/runs/start.jsonl")


def scratch(folder: Path, seed: int, scale: float) -> MultiHeadLearner:
    "Five heads on digit scenes, resnet10t from scratch."
    dls = digits_dls(("digit", "tags", "ink", "centre", "box"), bs=32, path=folder, n=1000, size=32, seed=seed)
    return multihead_learner(dls, "resnet10t", default_heads(dls, scale), pretrained=False)


def real(folder: Path, seed: int, scale: float) -> MultiHeadLearner:
    "Three heads on crops of photographs, lite0 with ImageNet's weights, frozen."
    dls = photograph_dls(folder, seed=seed)
    return multihead_learner(dls, ARCH, default_heads(dls, scale), body_kwargs=lite0_kwargs())


SETS: dict[str, tuple[Callable[..., MultiHeadLearner], float]] = {"scratch": (scratch, 5e-3), "real": (real, 3e-3)}


def default_heads(dls: DataLoaders, scale: float) -> dict[str, HeadSpec]:
    "Make every target's default head, with a start of its own."
    return {t.name: replace(default_head(t), last_scale=scale) for t in inspect_data(dls).targets}


def run(name: str, budget: str, scale: float, seed: int) -> dict[str, float]:
    "Train once; give every head's metrics on the validation set."
    make, lr = SETS[name]
    set_seed(seed, reproducible=True)
    with tempfile.TemporaryDirectory() as folder:
        learn = make(Path(folder) / "data", seed, scale)
        set_seed(seed, reproducible=True)
        quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS[name][budget], lr))
        with learn.no_bar():
            learn.validate()
        found = {metric.name: float(metric.value) for metric in learn.metrics}
    gc.collect()  # learners refer to themselves, and hold their optimizer's state
    return found


def todo(done: Mapping[tuple, dict]) -> Iterator[tuple]:
    "List what is missing: seed by seed, so that a part of it is a table already."
    for budget in ("short", "long"):
        for seed in SEEDS:
            yield from ((n, budget, s, seed) for n in SETS for s in SCALES if (n, budget, s, seed) not in done)


def read() -> dict[tuple, dict[str, float]]:
    "Read the runs there are: (set, budget, scale, seed) → metrics."
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {tuple(row["key"]): row["found"] for row in map(json.loads, lines)}


def print_table(done: Mapping[tuple, dict[str, float]]) -> None:
    "Print the mean and the deviation over the seeds that every scale has, and how many these are."
    for name in SETS:
        for budget, epochs in EPOCHS[name].items():
            seeds = [s for s in SEEDS if all((name, budget, scale, s) in done for scale in SCALES)]
            if not seeds:
                continue
            figures = {scale: [done[name, budget, scale, s] for s in seeds] for scale in SCALES}
            print(f"\n{name}, {epochs} epochs, {len(seeds)} seeds\n")
            print("| | " + " | ".join(f"× {scale:g}" for scale in SCALES) + " |")
            print("|---" * (len(SCALES) + 1) + "|")
            for metric in figures[1.0][0]:
                columns = [[run[metric] for run in figures[scale]] for scale in SCALES]
                print(f"| {metric} | " + " | ".join(f"{np.mean(c):.3f} ± {np.std(c):.3f}" for c in columns) + " |")


def main() -> None:
    "Do the runs that are missing, as long as there is time, and print the table."
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=4.0, help="no run is begun after this")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done, end = read(), time.monotonic() + 60 * options.minutes
    for key in [] if options.table else todo(done):
        if time.monotonic() > end:
            break
        done[key] = run(*key)
        RUNS.parent.mkdir(parents=True, exist_ok=True)
        with RUNS.open("a") as file:
            file.write(json.dumps({"key": key, "found": done[key]}) + "\n")
    print_table(done)


if __name__ == "__main__":
    main()
