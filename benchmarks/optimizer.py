"""What fused steps save, as ratios timed in turn in one run: `python -m benchmarks.optimizer`.

First the optimizer's step alone, torch's fused kernels against fastai's own; then a whole step of a learner with one
head, on a batch that is there already, against `vision_learner`'s on the same arch; then one of five heads against
those of five `vision_learner`s."""

import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import timm
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.vision.learner import vision_learner
from torch import nn

from fastai_heads.data.digits import digits_dls
from fastai_heads.learner import multihead_learner
from fastai_heads.training.fused_optimizer import fuse

ARCHS = ("resnet18", "resnet50", "convnext_tiny", "efficientnet_b0")
ROWS = (("resnet18", 64, 0.90), ("resnet50", 96, 0.93), ("convnext_tiny", 96, 0.93))
"Arch, side of the images, and the ratio that a learner's step is to stay below."
FIVE = ("digit", "tags", "ink", "centre", "box")
BATCH, ROUNDS = 32, 9


def times_in_turn(
    steps: Mapping[str, Callable[[], object]],  # the first is ours, the last is theirs
    rounds: int = ROUNDS,
) -> dict[str, list[float]]:  # name → processor seconds of each round
    "Time each step in each round, the first round uncounted. What else the machine does disturbs them alike."
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name] += [time.process_time() - start] if i else []
    return times


def spread(ours: Sequence[float], theirs: Sequence[float]) -> str:
    "Return the median of the rounds' ratios, and the middle half of them."
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def optimizer_step(
    model: nn.Module,  # it is copied
    opt_func: Callable,
) -> Callable[[], None]:
    "Make a step on gradients that stay as they are."
    params = list(copy.deepcopy(model).parameters())
    for param in params:
        param.grad = torch.randn_like(param) / 100
    return opt_func([params], lr=1e-4).step


def learner_step(
    learn: Learner,  # fastai's or ours
    batch: tuple,  # from its data
) -> Callable[[], None]:
    "Make one training step, as its `fit` does it."
    learn.remove_cb(learn.progress)
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-4, wd=0.01)
    learn.dl = learn.dls.train
    learn.n_iter, learn.epoch, learn.n_epoch = len(learn.dl), 0, 1
    for event in ("before_fit", "before_epoch", "before_train"):
        learn(event)
    return lambda: learn.one_batch(0, batch)


def learner_steps(arch: str, dls: Callable[[], DataLoaders]) -> dict[str, Callable[[], None]]:
    "Ours with fused steps, ours with fastai's, and `vision_learner`'s, all with their defaults and trained whole."
    options = {"pretrained": False}
    learners = {
        "fused": multihead_learner(dls(), arch, **options),
        "fastai's own": multihead_learner(dls(), arch, fused=False, **options),
        "vision_learner": vision_learner(dls(), arch, **options),
    }
    return {name: learner_step(learn, learn.dls.one_batch()) for name, learn in learners.items()}


def print_optimizers() -> None:
    "Prints a row per arch: milliseconds, and the ratio."
    print(f"{'optimizer':16} {'fused, ms':>10} {'fastai, ms':>11}  ratio (middle half)")
    for arch in ARCHS:
        model = timm.create_model(arch)
        times = times_in_turn({name: optimizer_step(model, f) for name, f in (("ours", fuse(Adam)), ("theirs", Adam))})
        ours, theirs = (1e3 * statistics.median(found) for found in times.values())
        print(f"{arch:16} {ours:10.1f} {theirs:11.1f}  {spread(times['ours'], times['theirs'])}", flush=True)


def print_learners() -> None:
    "Prints a row per arch: ratios to `vision_learner`'s step."
    print(f"{'learner':16} {'vision, ms':>10}  fused             fastai's own      goal")
    with tempfile.TemporaryDirectory() as folder:
        for arch, side, goal in ROWS:

            def data(side: int = side) -> DataLoaders:
                return digits_dls("digit", bs=BATCH, size=side, n=4 * BATCH, path=f"{folder}/{side}")

            times = times_in_turn(learner_steps(arch, data))
            theirs = times["vision_learner"]
            found = "  ".join(spread(times[name], theirs) for name in ("fused", "fastai's own"))
            print(f"{arch:16} {1e3 * statistics.median(theirs):10.1f}  {found}  ≤ {goal:.2f}", flush=True)


def print_five(arch: str = "resnet18", side: int = 64, rounds: int = 5) -> None:
    "Prints the ratio of a step of five heads to the steps of five `vision_learner`s, each with one target."
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"bs": BATCH, "size": side, "n": 4 * BATCH, "path": f"{folder}/{side}"}
        five, one = digits_dls(FIVE, **sizes), digits_dls("digit", **sizes)
        ours = learner_step(multihead_learner(five, arch, pretrained=False), five.one_batch())
        single = learner_step(vision_learner(one, arch, pretrained=False), one.one_batch())
        times = times_in_turn({"ours": ours, "theirs": lambda: [single() for _ in FIVE]}, rounds)
        print(f"five heads against five learners, {arch}: {spread(times['ours'], times['theirs'])}  ≤ 0.25", flush=True)


def main() -> None:
    "Prints all tables."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print_optimizers()
    print_learners()
    print_five()


if __name__ == "__main__":
    main()
