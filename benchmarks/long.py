"""Long and large: `python -m benchmarks.long [fit items interpretation rows heads ranks]`, each under four minutes.

- `fit`: 3,000 steps with every monitor on. What the memory grows by, and what is left afterwards.
- `items`, `interpretation`: 100,000 pictures with five targets. Time and memory of building, of the scan of labels, and
  of `get_preds` and an interpretation of the fifth that is for validation.
- `rows`: the same of 100,000 rows of a table, all of them predicted.
- `heads`: a step of 60 heads on one body against what the marginal cost of a head says.
- `ranks`: two processes over 500 steps, with labels that are missing at random. Their weights are compared every 50."""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import fastai.vision.all  # noqa: F401  gives `Learner` its methods, as users have them
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter
from fastai.torch_core import rank_distrib, set_seed
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from PIL import Image

from benchmarks.steps import learner_steps, quiet_fit, seconds_per_step
from fastai_heads.bodies import TabularBody
from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.digits import digits_dls
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.rows import TabularBlock
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.training import ConflictRecorder, LossWeightScheduler
from fastai_heads.view import HeadsInterpretation

ARCH, SIDE = "test_resnet", 32
STEPS, EPOCHS, WARM = 3000, 30, 600
"Of the long fit; memory counts once it is warm."
FEW, MANY, FILES = 10_000, 100_000, 16
"Items, and pictures that they share."
HEADS = (1, 5, 20, 60)
RANK_STEPS, EACH = 500, 50
FIVE = ("digit", "tags", "ink", "centre", "box")


def resident() -> float:
    "Read the memory that the process has now, in MiB."
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Memory(Callback):
    "Reads the memory every 50 steps, after what is unreachable was collected."

    order = 1001

    def __init__(self):
        self.steps, self.read = [], []

    def after_batch(self) -> None:
        "Read it."
        step = len(self.learn.recorder.losses)
        if self.training and step % EACH == 0:
            gc.collect()
            self.steps.append(step)
            self.read.append(resident())


def count_hooks(learn: MultiHeadLearner) -> int:
    "Count the hooks on its modules."
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in learn.model.modules() for kind in kinds)


def fit(folder: Path) -> None:
    "Fit 3,000 steps with every monitor on."
    dls = digits_dls(FIVE, bs=8, path=folder / "scenes", n=1000, size=SIDE, missing=0.2)
    for dl in dls.loaders:
        dl.do_item = [dl.do_item(i) for i in range(dl.n)].__getitem__  # read once: the steps are what is looked at
    learn = multihead_learner(dls, ARCH, pretrained=False, path=folder)
    before = set(learn.cbs), count_hooks(learn), plt.get_fignums()
    memory, schedule = Memory(), {"digit": lambda pct: 1 - pct / 2}
    cbs = [
        memory,
        ConflictRecorder(every=10),
        LossWeightScheduler(schedule),
        CSVLogger(),
        GradientClip(1.0),
        SaveModelCallback("valid_loss", every_epoch=False),
        EarlyStoppingCallback("digit_accuracy", patience=EPOCHS),
        ReduceLROnPlateau("valid_loss", patience=EPOCHS),
    ]
    start = time.process_time()
    with redirect_stdout(StringIO()):  # trackers tell of better epochs
        quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, 3e-3, cbs=cbs))
    steps, read = np.array(memory.steps), np.array(memory.read)
    warm = steps > WARM
    slope = np.polyfit(steps[warm], read[warm], 1)[0] * 1000
    left = set(learn.cbs) == before[0], count_hooks(learn) - before[1], len(plt.get_fignums()) - len(before[2])
    print(
        f"fit: {steps[-1]} steps in {time.process_time() - start:.0f} s, {len(cbs)} callbacks besides the learner's own"
    )
    print(f"  memory {read[warm][0]:.0f} MiB at step {steps[warm][0]}, {read[-1]:.0f} at the end: ", end="")
    print(f"{slope:.2f} MiB per 1,000 steps")
    print(f"  left afterwards: callbacks as before {left[0]}, {left[1]} hooks, {left[2]} figures")


def table(n: int) -> pd.DataFrame:
    "Make rows of five labels over a few pictures."
    rows = np.arange(n)
    return pd.DataFrame(
        {
            "image": [f"{i % FILES}.png" for i in rows],
            "kind": [str(i % 7) for i in rows],
            "tags": np.where(rows % 2, "a b", "a"),
            "number": rows / n,
            "pair": [f"{i % 5} {i % 3}" for i in rows],
            "spot": [f"{i % 9} 2 {i % 9 + 20} 30" for i in rows],
            "is_valid": rows % 5 == 0,
        }
    )


def many_dls(folder: Path, n: int) -> DataLoaders:
    "Make loaders of pictures with five targets."
    for i in range(FILES):
        Image.fromarray(np.full((SIDE, SIDE, 3), i * 15, dtype=np.uint8)).save(folder / f"{i}.png")
    readers = [ColReader("kind"), ColReader("tags", label_delim=" "), ColReader("number")]
    block = DataBlock(
        (ImageBlock, CategoryBlock, MultiCategoryBlock, RegressionBlock, RegressionBlock(n_out=2), BoxBlock),
        getters=[ColReader("image", pref=folder), *readers, NumbersReader("pair"), ColReader("spot")],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    return block.dataloaders(table(n), bs=256, num_workers=0, path=folder)


def measured(what: str, n: int, work: Callable[[], Any]) -> Any:
    "Run it, print its time and what the process has more afterwards, and return what it gave."
    gc.collect()
    before, start = resident(), time.process_time()
    given = work()
    gc.collect()
    print(f"  {what}: {time.process_time() - start:.1f} s, {resident() - before:+.0f} MiB, {n:,} items", flush=True)
    return given


def items(folder: Path) -> None:
    "Build 100,000 pictures with five targets, scan their labels, and predict those for validation."
    print("items: pictures")
    dls = measured("fastai's loaders", MANY, lambda: many_dls(folder, MANY))
    measured("scan of the labels", MANY, lambda: inspect_data(dls))
    learn = measured("learner", MANY, lambda: multihead_learner(dls, ARCH, pretrained=False))
    predict(learn, len(dls.valid_ds))


def predict(learn: MultiHeadLearner, n: int) -> None:
    "Predict the items for validation."
    with learn.no_bar():
        preds, targs = measured("get_preds", n, learn.get_preds)
    held = sum(t.nbytes for part in (preds, targs) for t in part) / 2**20
    print(f"  of get_preds' memory the answers are {held:.0f} MiB")


def interpretation(folder: Path) -> None:
    "Interpret the pictures for validation."
    print("interpretation: pictures")
    interpret(multihead_learner(many_dls(folder, MANY), ARCH, pretrained=False), MANY // 5)


def interpret(learn: MultiHeadLearner, n: int) -> None:
    "Interpret the items for validation."
    with learn.no_bar():
        told = measured("losses of every item", n, lambda: HeadsInterpretation.from_learner(learn))
        measured("answers", n, lambda: told.answers)
        measured("top losses, confusion matrix, report", n, partial(_look, told))


def rows(folder: Path) -> None:
    "Do all of it with the rows of a table, which are predicted 100,000 at a time."
    made = table(2 * MANY).assign(is_valid=np.arange(2 * MANY) >= MANY, half=np.arange(2 * MANY) % 2)
    names = ["kind", "half", "number", "u", "v"]
    made["u"], made["v"] = made["number"] ** 2, made["number"] % 0.1
    block = DataBlock(
        (TabularBlock(["pair"], ["number"]), CategoryBlock, CategoryBlock, *[RegressionBlock] * 3),
        getters=[noop, *map(ColReader, names)],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    print("rows: of a table")
    dls = measured("fastai's loaders", 2 * MANY, lambda: block.dataloaders(made, bs=1024, num_workers=0, path=folder))
    measured("scan of the labels", 2 * MANY, lambda: inspect_data(dls))
    learn = measured("learner", 2 * MANY, lambda: multihead_learner(dls, TabularBody([200, 100])))
    predict(learn, MANY)
    interpret(learn, MANY)


def _look(told: HeadsInterpretation) -> None:
    told.top_losses(9), told.confusion_matrix("kind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn, of a class that is never said
        told.classification_report("kind")


def heads(folder: Path) -> None:
    "Time steps of up to 60 heads on one body."
    pictures = torch.rand(64, SIDE, SIDE, 3).mul(255).byte().numpy()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    steps = {}
    for n in HEADS:
        names = [f"h{i}" for i in range(n)]
        rows = pd.DataFrame({name: np.arange(64) % (i % 5 + 2) for i, name in enumerate(names)})
        rows["image"], rows["is_valid"] = [f"{i}.png" for i in range(64)], np.arange(64) >= 48
        block = DataBlock(
            (ImageBlock, *[CategoryBlock] * n),
            getters=[ColReader("image", pref=folder), *map(ColReader, names)],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
        )
        dls = block.dataloaders(rows, bs=8, num_workers=0, path=folder)
        steps[f"{n}"] = learner_steps(multihead_learner(dls, "resnet18", pretrained=False, metrics=[]))
    times = seconds_per_step(steps, rounds=6)
    one, few, most = (times[str(n)] for n in (HEADS[0], HEADS[1], HEADS[-1]))
    marginal = (few - one) / (HEADS[1] - HEADS[0])
    said = one + (HEADS[-1] - 1) * marginal
    print(
        "heads: resnet18, 32 px, batches of 8; " + ", ".join(f"{n} heads {times[str(n)] * 1e3:.0f} ms" for n in HEADS)
    )
    print(f"  a further head costs {marginal * 1e3:.2f} ms; {HEADS[-1]} heads take {most / said:.2f} of what that says")
    print(f"  and {most / (HEADS[-1] * one):.3f} of {HEADS[-1]} steps of one head")


class Compared(Callback):
    "Compares the parameters of two ranks, bit for bit, every so many steps."

    order, run_valid = 1000, False

    def __init__(self):
        self.equal: list[bool] = []

    def after_batch(self) -> None:
        "Compare them."
        if (self.train_iter) % EACH == 0:
            mine = torch.cat([t.detach().double().reshape(-1) for t in self.learn.model.parameters()])
            every = [torch.empty_like(mine) for _ in range(2)]
            torch.distributed.all_gather(every, mine)
            self.equal.append(torch.equal(*every))


def one_rank(folder: Path) -> None:
    "Train as one of two ranks."
    set_seed(rank_distrib())  # other weights and dropout on every rank, until the learner joins them
    dls = digits_dls(FIVE, bs=4, path=folder / "scenes", n=1000, size=SIDE, missing=0.5)
    learn, compared = multihead_learner(dls, ARCH, pretrained=False), Compared()
    with learn.distrib_ctx():
        quiet_fit(learn, lambda: learn.fit_one_cycle(RANK_STEPS // 100, 3e-3, cbs=compared))
    if rank_distrib() == 0:
        same, steps = sum(compared.equal), len(learn.recorder.losses)
        finite = all(p.isfinite().all() for p in learn.model.parameters())
        print(f"ranks: {steps} steps, half of the labels missing; bit-equal {same} of {len(compared.equal)} times")
        first, last = (float(learn.recorder.losses[i]) for i in (0, -1))
        print(f"  weights finite {finite}, loss {first:.2f} to {last:.2f}")


def ranks(folder: Path) -> None:
    "Start two ranks, and wait for them."
    digits_dls(FIVE, path=folder / "scenes", n=1000, size=SIDE)  # written once
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, "-m", "benchmarks.long", "one_rank", "--folder", str(folder)], check=True)


ALL = {work.__name__: work for work in (fit, items, interpretation, rows, heads, ranks)}


def main() -> None:
    "Run what is asked for, else all."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ALL))
    parser.add_argument("--folder", type=Path, help="of the two ranks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    set_seed(0)
    if args.names == ["one_rank"]:
        one_rank(args.folder)
        return
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            ALL[name](Path(folder))


if __name__ == "__main__":
    main()
