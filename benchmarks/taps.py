"""Whether `tap='auto'` chooses well: `python -m benchmarks.taps [seconds]`. It goes on where it stopped.

lite0 with ImageNet's weights, frozen, heads on stored taps; scenes of digits at 96 px and crops of photographs at 64
px, 480 to train on. A row of `docs/taps.csv` is a metric of a run. Three ways: fastai's head on `features`, the small
start there, and the small start at the taps that probes chose. What is measured is the validation set, which took no
part in choosing. Needs the extra `examples`."""

import csv
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed

from benchmarks.start import default_heads
from benchmarks.steps import quiet_fit
from fastai_heads import digits_dls, multihead_learner
from fastai_heads.examples import ARCH, lite0_kwargs, photograph_dls
from fastai_heads.learner import MultiHeadLearner

TABLE = Path(__file__).parents[1] / "docs" / "taps.csv"
FIELDS = ("set", "seed", "way", "metric", "value", "tap", "passes")
SEEDS, EPOCHS, LR = range(5), 16, 5e-3
SETS: dict[str, Callable[[Path, int], DataLoaders]] = {
    "scenes": lambda folder, seed: digits_dls(("digit", "tags", "ink"), bs=32, path=folder, n=600, size=96, seed=seed),
    "photographs": lambda folder, seed: photograph_dls(folder, n=640, seed=seed),
}
WAYS = ("fastai's head", "small start", "tap='auto'")


def make(dls: DataLoaders, way: str) -> MultiHeadLearner:
    "Make a learner one of the ways."
    heads = default_heads(dls, 1.0) if way == WAYS[0] else None
    taps = "auto" if way == WAYS[2] else None
    return multihead_learner(dls, ARCH, heads, taps=taps, body_kwargs=lite0_kwargs())


def run(dls: DataLoaders, way: str, seed: int) -> list[dict[str, object]]:
    "Train heads, and give a row for each metric: with the tap, and the probe's cost in passes of the body."
    set_seed(seed, reproducible=True)
    learn = make(dls, way)
    quiet_fit(learn, lambda: learn.fit_heads(EPOCHS, LR, pct_start=0.25))
    with learn.no_bar():
        learn.validate()
    report = learn.tap_report
    passes = round(report.seconds / report.pass_seconds, 2) if report else ""
    rows = []
    for metric in learn.metrics:
        tap = learn.heads[metric.head.name].spec.tap or "features"
        rows.append({"metric": metric.name, "value": round(float(metric.value), 4), "tap": tap, "passes": passes})
    gc.collect()
    return rows


def read() -> pd.DataFrame:
    "Read the rows that are there."
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=list(FIELDS))


def report(frame: pd.DataFrame) -> None:
    "Print mean and deviation over the seeds, and the gain of the third way over the first, seed by seed."
    for (name, metric), those in frame.groupby(["set", "metric"], sort=False):
        cells = []
        for way in WAYS:
            values = those[those["way"] == way].sort_values("seed")["value"]
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
        taps = those[those["way"] == WAYS[2]]["tap"].value_counts()
        chosen = ", ".join(f"`{tap}` {n}" for tap, n in taps.items())
        print(f"| {name} | {metric} | {' | '.join(cells)} | {chosen} |")
    passes = pd.to_numeric(frame["passes"], errors="coerce").dropna()
    print(f"{frame['seed'].nunique()} seeds; a probe costs {passes.min():.2f} to {passes.max():.2f} passes of the body")


def main(seconds: float = 600) -> None:
    "Do the runs that are missing until the time is over, then print the table."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    end = time.time() + seconds
    for seed in SEEDS:
        for name, make_dls in SETS.items():
            done = {tuple(row) for row in read()[["set", "seed", "way"]].itertuples(index=False)}
            missing = [way for way in WAYS if (name, seed, way) not in done]
            if not missing or time.time() > end:
                continue
            with tempfile.TemporaryDirectory() as folder:
                dls = make_dls(Path(folder) / "data", seed)
                for way in missing:
                    rows = run(dls, way, seed)
                    fresh = not TABLE.is_file()
                    with TABLE.open("a", newline="") as file:
                        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                        if fresh:
                            writer.writeheader()
                        writer.writerows({"set": name, "seed": seed, "way": way, **row} for row in rows)
                    print(name, seed, way, {row["metric"]: row["value"] for row in rows}, flush=True)
    report(read())


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
