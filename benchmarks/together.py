"""One network with class, mask and boxes beside three networks with one head each: `python -m benchmarks.together`.

Steps are timed in turn in one run. Each head's metric stands beside that of its twin, trained alone for as long."""

import gc
import tempfile
import warnings
from collections.abc import Sequence

import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed

from benchmarks.segmentation import foreground_iou
from benchmarks.steps import learner_steps, quiet_fit, seconds_per_step
from fastai_heads.data.digits import digits_dls
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.tasks.mean_ap import MeanAP

ARCH, SIDE, EPOCHS, LR, SEED = "resnet10t", 96, 5, 3e-3, 0
TARGETS = ("count", "mask", "boxes")


def specs() -> dict[str, HeadSpec]:
    "Make a head for each target, all of moderate width."
    return {
        "count_": ClassificationHead(),
        "mask": SegmentationHead(decoder="fpn", metrics=[]),
        "boxes": DetectionHead(kind="fcos", tap=(8, 16), extra_levels=0, channels=64, metrics=[MeanAP(0.5)]),
    }


def learner(dls: DataLoaders) -> MultiHeadLearner:
    "Make one body with the heads for the targets in the data."
    set_seed(SEED, reproducible=True)
    names = [t for t in specs() if t.rstrip("_") in dls.targets]
    return multihead_learner(dls, ARCH, heads={name: specs()[name] for name in names}, pretrained=False)


def scenes(folder: str, targets: Sequence[str], n: int) -> DataLoaders:
    "Make scenes of one to five digits with some of the targets."
    dls = digits_dls(targets, bs=16, path=f"{folder}/{n}", n=n, size=SIDE, digits_per_scene=(1, 5))
    dls.targets = tuple(targets)
    return dls


def measure_heads(learn: MultiHeadLearner) -> dict[str, float]:
    "Measure each head's figure on the validation set."
    with learn.no_bar():
        learn.validate()
    found = {m.head.name: float(m.value) for m in learn.metrics}
    if "mask" in learn.heads:
        found["mask"] = foreground_iou(learn, list(learn.heads).index("mask"))
    return found


def main() -> None:
    "Print times, parameters and figures."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        sets = [TARGETS, *((name,) for name in TARGETS)]
        few = [learner(scenes(folder, targets, 100)) for targets in sets]
        names = ["+".join(targets) for targets in sets]
        times = seconds_per_step({name: learner_steps(learn) for name, learn in zip(names, few)}, rounds=3)
        sizes = {name: sum(p.numel() for p in learn.model.parameters()) for name, learn in zip(names, few)}
        one, three = names[0], names[1:]
        print(f"{ARCH}, {SIDE}×{SIDE}, batches of 16, {EPOCHS} epochs of 640 scenes, seed {SEED}")
        print(f"a step of one network is {times[one] / sum(times[n] for n in three):.2f} of the three steps")
        print(f"parameters: {sizes[one]:,} of {sum(sizes[n] for n in three):,}")
        figures = []
        for targets in sets:
            learn = learner(scenes(folder, targets, 800))
            quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))  # noqa: B023
            figures.append(measure_heads(learn))
            gc.collect()  # learners refer to themselves, and hold their optimizer's state
        what = {"count_": "accuracy", "mask": "foreground IoU", "boxes": "mAP@.5"}
        for alone in figures[1:]:
            ((name, value),) = alone.items()
            print(f"{name:7} {what[name]:15} together {figures[0][name]:.3f}, alone {value:.3f}")


if __name__ == "__main__":
    main()
