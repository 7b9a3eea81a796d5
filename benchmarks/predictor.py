"""What a predictor costs: one image against `learn.predict`, many images against the bare network with its decoding.

    python -m benchmarks.predictor

Process time, in turn in one process; ratios. Goals: one image at most 0.4; 1,000 images at bs 32 at most 1.02."""

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import fastai.vision.all  # noqa: F401
import numpy as np
import torch

from fastai_heads import digits_dls, multihead_learner
from fastai_heads.export.answers import decode
from fastai_heads.export.bundle import predictor_of
from fastai_heads.head_tuple import HeadTuple

TARGETS = ("digit", "tags", "ink", "box")


def spent(function: Callable[[], object]) -> float:
    "Measure process time."
    start = time.process_time()
    function()
    return time.process_time() - start


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    "Compare two in turn: the median of ours by the median of theirs."
    ours(), theirs()
    pairs = [(spent(ours), spent(theirs)) for _ in range(rounds)]
    return float(np.median([a for a, _ in pairs]) / np.median([b for _, b in pairs]))


def main(arch: str = "resnet18", n: int = 1000, size: int = 64) -> None:
    "Print the ratios."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    dls = digits_dls(TARGETS, bs=32, path=folder / "scenes", n=200, size=size)
    learn = multihead_learner(dls, arch, pretrained=False)
    predictor = predictor_of(learn)
    paths = sorted((folder / "scenes" / "images").iterdir())
    row = dls.valid_ds.items.iloc[0]

    def learned() -> None:
        with learn.no_bar(), learn.no_logging():
            learn.predict(row)

    print(f"{arch}, {len(TARGETS)} heads, {size} px")
    print(f"one image, predictor / learn.predict: {ratio(lambda: predictor(paths[0]), learned, 15):.3f}")
    arrays, network = {"image": predictor.read(paths[0]).parts[0][None]}, predictor.network
    alone = ratio(lambda: network.run(arrays, predictor.heads), learned, 15)
    print(f"of which the network with its heads takes {alone:.3f}")
    items = [predictor.read(paths[i % len(paths)]) for i in range(n)]
    batches = [np.stack([item.parts[0] for item in items[i : i + 32]]) for i in range(0, n, 32)]
    graph = predictor.network.graph(predictor.heads)

    def bare() -> None:
        "Run the network on stacked images, and decode what it says."
        for k, array in enumerate(batches):
            with torch.inference_mode():
                found = {name: value.numpy() for name, value in graph(torch.from_numpy(array)).items()}
            for i in range(len(array)):
                view = items[k * 32 + i].view
                HeadTuple((decode(predictor._heads[h], found[h][i], view) for h in found), found)

    def served() -> None:
        for i in range(0, n, 32):
            predictor.answer(items[i : i + 32], predictor.heads)

    print(f"{n} images that are read, predictor / bare network and decoding: {ratio(served, bare, 5):.3f}")
    one = lambda: predictor([paths[i % len(paths)] for i in range(n)])  # noqa: E731
    print(f"{n} files, opening them too, against the same: {ratio(one, bare, 3):.3f}")


if __name__ == "__main__":
    main()
