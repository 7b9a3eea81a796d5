"""The frozen phase on stored taps against fastai's own: `python -m benchmarks.frozen [time accuracy memory]`.

Real ImageNet weights (`fastai_heads.examples`) on JPEG crops of real photographs, four heads.
Times are processor time, in turn, in one process with one thread: each row is a ratio. "fastai's" is `freeze` and `fit`
of the same learner: its batch norms train, so that gradients go back through the whole body. Needs the extra
`examples`."""

import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter, IndexSplitter
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import nn

from benchmarks.steps import quiet_fit
from fastai_heads.examples import ARCH, lite0_kwargs, write_photographs
from fastai_heads.learner import MultiHeadLearner, multihead_learner

TARGETS = {"kind": CategoryBlock, "style": CategoryBlock, "area": RegressionBlock, "large": CategoryBlock}
N, SIDE, BATCH, FROZEN = 256, 128, 32, 8
LR = 2e-3


def write_jpegs(folder: Path, n: int, side: int) -> pd.DataFrame:
    "Write crops as JPEG files, with a fourth target."
    table = write_photographs(folder, n, side)
    for name in table["image"]:
        Image.open(folder / name).save((folder / name).with_suffix(".jpg"), quality=92)
    table["image"] = table["image"].str.replace(".png", ".jpg")
    return table.assign(large=table["area"] > table["area"].median())


def jpeg_dls(folder: Path, table: pd.DataFrame, augment: bool = False) -> DataLoaders:
    "Make loaders over the crops."
    block = DataBlock(
        blocks=(ImageBlock, *TARGETS.values()),
        n_inp=1,
        get_x=ColReader("image", pref=f"{folder}/"),
        get_y=[ColReader(name) for name in TARGETS],
        splitter=ColSplitter("is_valid"),
        batch_tfms=aug_transforms(size=SIDE) if augment else None,
    )
    return block.dataloaders(table, bs=BATCH, num_workers=0, path=folder)


def learner(dls: DataLoaders, seed: int = 0) -> MultiHeadLearner:
    "Make a learner with real weights."
    set_seed(seed)
    return multihead_learner(dls, ARCH, body_kwargs=lite0_kwargs())


def seconds(learn: MultiHeadLearner, fit: Callable[[], None]) -> float:
    "Time a fit."
    start = time.process_time()
    quiet_fit(learn, fit)
    return time.process_time() - start


def print_times() -> None:
    "Print the ratios of epochs, and of `fine_tune` as a whole."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_jpegs(folder, N, SIDE)
        plain, stored = (learner(jpeg_dls(folder, table)) for _ in range(2))
        plain.freeze()
        first = seconds(stored, lambda: stored.fit_heads(1, LR))
        rounds = [
            (seconds(stored, lambda: stored.fit_heads(FROZEN, LR)) / FROZEN, seconds(plain, lambda: plain.fit(1, LR)))
            for _ in range(3)
        ]
        ours, theirs = (sorted(times)[1] for times in zip(*rounds))
        print(f"frozen epoch, {theirs:.1f} s: on stored taps {ours / theirs:.3f}, the first one {first / theirs:.2f}")
        plain, stored = (learner(jpeg_dls(folder, table, augment=True)) for _ in range(2))
        plain.freeze()
        theirs = seconds(plain, lambda: plain.fit(2, LR)) / 2
        ours = seconds(stored, lambda: stored.fit_heads(FROZEN, LR, views=4)) / FROZEN
        print(f"augmented epoch, {theirs:.1f} s: `views=4`, {FROZEN} epochs with the filling {ours / theirs:.2f}")
        plain, stored = (learner(jpeg_dls(folder, table)) for _ in range(2))
        theirs = seconds(plain, lambda: plain.fine_tune(1, freeze_epochs=FROZEN))
        ours = seconds(stored, lambda: stored.fine_tune(1, freeze_epochs=FROZEN, cache=True))
        print(f"`fine_tune(1, freeze_epochs={FROZEN})`, {theirs:.0f} s: with `cache=True` {ours / theirs:.2f}")


def print_accuracy(seeds: Sequence[int] = (0, 1, 2), epochs: int = 4) -> None:
    "Print how well heads do after a frozen phase: fastai's, and that on stored taps."
    print(f"| after {epochs} frozen epochs, seeds {seeds} | kind | style | area, % of the photograph | large |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_jpegs(folder, 640, 64)
        fits = {
            "fastai's": lambda learn: (learn.freeze(), learn.fit_one_cycle(epochs, LR)),
            "stored taps": lambda learn: learn.fit_heads(epochs, LR, pct_start=0.25),
        }
        rows: dict[str, list[list[float]]] = {way: [] for way in fits}
        for seed in seeds:
            for way, fit in fits.items():
                learn = learner(jpeg_dls(folder, table), seed)
                quiet_fit(learn, lambda learn=learn, fit=fit: fit(learn))
                values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
                rows[way].append([values[m] for m in ("kind_accuracy", "style_accuracy", "area_mae", "large_accuracy")])
        for way, found in rows.items():
            print(f"| {way} | " + " | ".join(" ".join(f"{v:.3f}" for v in column) for column in zip(*found)) + " |")


class Wide(nn.Module):
    "A network that is quick, and has a map of 1280 channels."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 1280, 8, 8), nn.ReLU())
        self.fc = nn.Linear(1280, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


def picture(i: int) -> PILImage:
    "Draw a small picture of one colour."
    return PILImage.create(Image.new("RGB", (8, 8), (i % 256, i // 256 % 256, 0)))


def parity(i: int) -> int:
    "Give the label of a picture."
    return i % 2


def peak() -> float:
    "Read the most memory that the process has had, in MiB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_memory(n: int = 100_000) -> None:
    "Print the peak of the memory while taps are stored on disk and trained on, above that before."
    with tempfile.TemporaryDirectory() as folder:
        block = DataBlock([ImageBlock, CategoryBlock], get_x=picture, get_y=parity, splitter=IndexSplitter(range(256)))
        learn = multihead_learner(
            block.dataloaders(list(range(n)), bs=250, num_workers=0, path=folder), Wide(), normalize=False
        )
        quiet_fit(learn, lambda: learn.validate())
        before = peak()
        quiet_fit(learn, lambda: learn.fit_heads(5, LR, cache="disk"))
        size = sum(stored.nbytes for stored in learn.stored_taps.sets.values()) / 2**20
        print(f"{n:,} images, {size:.0f} MiB of pooled taps on disk: peak {peak() - before:.0f} MiB above the start")


def main() -> None:
    "Print what is asked for, or all."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    parts = {"time": print_times, "accuracy": print_accuracy, "memory": print_memory}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
