"""What a cut costs, as ratios timed in turn in one run: `python -m benchmarks.cut`."""

import statistics
import time
import warnings
from collections.abc import Callable

import timm
import torch

from fastai_heads.body import cut_body, cut_points

ARCHS = ("resnet50", "convnext_base", "vit_base_patch16_224", "swin_base_patch4_window7_224")
REPEATS = 3


def ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repeats: int = REPEATS,
) -> tuple[float, float]:  # the ratio of medians, seconds of theirs
    "Processor time of both in turn, which other processes disturb less, after one run of each that is not counted."
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for fn, into in zip((ours, theirs), times):
            start = time.process_time()
            fn()
            into.append(time.process_time() - start)
    mine, other = (statistics.median(t) for t in times)
    return mine / other, other


def main() -> None:
    "Prints a row per arch."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    builds, forwards = [], []
    print(f"{'arch':32} {'build':>7} {'forward':>8} {'cut_points':>11}")
    for name in ARCHS:
        build, _ = ratio(lambda: cut_body(name, pretrained=False), lambda: timm.create_model(name))  # noqa: B023
        body, net = cut_body(name, pretrained=False).eval(), timm.create_model(name).eval()
        x = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            forward, _ = ratio(lambda: body(x), lambda: net.forward_features(x), 9)  # noqa: B023
        start = time.process_time()
        cut_points(name)
        points = time.process_time() - start
        builds.append(build)
        forwards.append(forward)
        print(f"{name:32} {build:7.2f} {forward:8.3f} {points:9.2f} s", flush=True)
    print(f"{'median':32} {statistics.median(builds):7.2f} {statistics.median(forwards):8.3f}")


if __name__ == "__main__":
    main()
