"""The cost of a cut, as ratios that are timed in turn in one run: `python -m benchmarks.cut`."""

import statistics
import time
import warnings
from collections.abc import Callable

import timm
import torch

from fastai_heads.archs.points import arch_points
from fastai_heads.bodies.image import cut_body

ARCHS = ("resnet50", "convnext_base", "vit_base_patch16_224", "swin_base_patch4_window7_224")
REPEATS = 3


def ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repeats: int = REPEATS,
    warm: bool = True,  # run each once before, uncounted
) -> tuple[float, float]:  # the median of the ratios of all turns, the median of their seconds
    "Time two functions in turn. It is processor time, as other processes disturb that less."
    if warm:
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for fn, into in zip((ours, theirs), times):
            start = time.process_time()
            fn()
            into.append(time.process_time() - start)
    return statistics.median(mine / other for mine, other in zip(*times)), statistics.median(times[1])


def build_ratios(name: str) -> tuple[float, float]:  # ratio of the first build in this process, ratio of later builds
    "Time building a body against building the arch. Theirs is built once before, so that its imports do not count."
    timm.create_model(name)
    first = ratio(lambda: cut_body(name, pretrained=False), lambda: timm.create_model(name), 1, warm=False)[0]
    return first, ratio(lambda: cut_body(name, pretrained=False), lambda: timm.create_model(name), 5)[0]


def main() -> None:
    "Print a row per arch."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    firsts, builds, forwards = [], [], []
    cut_body("test_resnet", pretrained=False)  # torch sets up some things once in a process: no cost of an arch
    print(f"{'arch':32} {'first':>7} {'build':>7} {'forward':>8} {'arch_points':>11}")
    for name in ARCHS:
        first, build = build_ratios(name)
        body, net = cut_body(name, pretrained=False).eval(), timm.create_model(name).eval()
        x = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            forward, _ = ratio(lambda: body(x), lambda: net.forward_features(x), 9)  # noqa: B023
        start = time.process_time()
        arch_points(name)
        points = time.process_time() - start
        for value, into in zip((first, build, forward), (firsts, builds, forwards)):
            into.append(value)
        print(f"{name:32} {first:7.2f} {build:7.2f} {forward:8.3f} {points:9.2f} s", flush=True)
    medians = [statistics.median(v) for v in (firsts, builds, forwards)]
    print(f"{'median':32} {medians[0]:7.2f} {medians[1]:7.2f} {medians[2]:8.3f}")


if __name__ == "__main__":
    main()
