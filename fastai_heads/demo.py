"""The main job on real digits: five targets, one body, one learner. It gives a table, figures and pictures."""

import time
from pathlib import Path

import matplotlib.pyplot as plt
from fastai.torch_core import set_seed

from fastai_heads.data.digits import digits_dls
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.view.losses import plot_losses

__all__ = ["demo"]

TARGETS = ("digit", "tags", "ink", "centre", "box")
ARCH, EPOCHS, LR, BATCH = "resnet10t", 8, 5e-3, 32


def demo(
    out: Path,  # folder of the scenes and the pictures
    epochs: int = EPOCHS,  # of training, from scratch
    scenes: int = 2400,  # four fifths of them to train on
    seed: int = 0,  # of the scenes, the weights and the batches
) -> MultiHeadLearner:  # trained
    "Train digit, tags, ink, centre and box together from scratch. Print the results and write the pictures."
    set_seed(seed, reproducible=True)
    dls = digits_dls(TARGETS, bs=BATCH, path=out / "scenes", n=scenes, seed=seed)
    learn = multihead_learner(dls, ARCH, pretrained=False, path=out)
    print(learn.summary(), end="\n\n")
    start = time.perf_counter()
    learn.fit_one_cycle(epochs, LR)
    print(f"\n{epochs} epochs in {time.perf_counter() - start:.0f} s", end="\n\n")
    print(_make_table(learn), end="\n\n")
    for picture in _write_pictures(learn, out):
        print(f"wrote {picture}")
    return learn


def _make_table(learn: MultiHeadLearner) -> str:
    "Write a table of every head's validation loss and metrics after the last epoch."
    last = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    rows = [("head", "loss", "metric", "")]
    for name in learn.heads:
        own = [m.name for m in learn.metrics if m.head.name == name]
        rows += [(name, f"{last[f'valid_{name}_loss']:.4f}", m, f"{last[m]:.4f}") for m in own]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def _write_pictures(learn: MultiHeadLearner, out: Path) -> list[Path]:
    "Write pictures of the predictions on validation images, and of the curves of every head."
    drawn = {"results.png": learn.show_results(max_n=9, shuffle=False), "losses.png": plot_losses(learn.recorder)}
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=110)
        plt.close(figure)
    return [out / name for name in drawn]
