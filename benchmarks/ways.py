"""What other ways to run a learner's network cost or save, against the plain one: `python -m benchmarks.ways`.

A training step of five heads on a batch of 16 in memory, and what its network takes to predict it: as it is, under
`channels_last`, and under `learn.compile()`. Processor time, one thread, in turn in one process; ratios to it."""

import sys
import tempfile
import warnings
from collections.abc import Callable

import torch
from fastai.callback.channelslast import ChannelsLast

from benchmarks.optimizer import learner_step, spread, times_in_turn
from fastai_heads import digits_dls, multihead_learner
from fastai_heads.learner import MultiHeadLearner

ARCHS = (("resnet18", 64), ("efficientnet_b0", 64), ("convnext_tiny", 64))
TARGETS = ("digit", "tags", "ink", "centre", "box")


def make(arch: str, size: int, folder: str, way: str) -> MultiHeadLearner:
    "Make a learner that runs in one of the ways."
    dls = digits_dls(TARGETS, bs=16, size=size, n=64, path=f"{folder}/{size}")
    learn = multihead_learner(dls, arch, pretrained=False, cbs=[ChannelsLast()] if way == "channels_last" else None)
    return learn.compile() if way == "compiled" else learn


def look(learn: MultiHeadLearner, batch: tuple) -> Callable[[], object]:
    "Make a function that predicts a batch, of the layout that the network has."
    image = batch[0].as_subclass(torch.Tensor)
    if any(isinstance(cb, ChannelsLast) for cb in learn.cbs):
        image = image.to(memory_format=torch.channels_last)

    def predict() -> None:
        modes = {m: m.training for m in learn.model.modules()}
        learn.model.eval()
        with torch.no_grad():
            learn.model(image)
        for module, training in modes.items():
            module.training = training

    return predict


def main(ways: tuple[str, ...] = ("channels_last", "compiled"), rounds: int = 7) -> None:
    "Print a row for each arch and way."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for arch, size in ARCHS:
            learners = {way: make(arch, size, folder, way) for way in ("plain", *ways)}
            batch = learners["plain"].dls.one_batch()
            steps = {way: learner_step(learn, batch) for way, learn in learners.items()}
            looks = {way: look(learn, batch) for way, learn in learners.items()}
            for what, parts in (("step", steps), ("evaluation", looks)):
                times = times_in_turn(parts, rounds)
                found = "  ".join(f"{way} {spread(times[way], times['plain'])}" for way in ways)
                print(f"{arch:16} {what:10} {found}", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("channels_last", "compiled"))
