"""One head of masks beside fastai's `unet_learner`, same body, data and steps: `python -m benchmarks.segmentation`.

Both train from scratch with three seeds. Whole steps of both learners are timed in turn, in one run."""

import gc
import statistics
import tempfile
import warnings
from collections.abc import Sequence

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import set_seed
from fastai.vision.learner import unet_learner
from torch import Tensor
from torchvision.models import resnet18

from benchmarks.steps import learner_steps, quiet_fit, seconds_per_step
from fastai_heads.data.digits import digits_dls
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.learner import multihead_learner

SIDE, SCENES, SEEDS, EPOCHS, LR = 32, 300, (0, 1, 2), 12, 2e-3
LIMITS = {"dynamic_unet": 1.05, "unet": 1.0}  # most time of a step, in steps of fastai's


def scenes(folder: str, n: int) -> DataLoaders:
    "Make scenes of one digit, and their masks of eleven codes."
    return digits_dls(("mask",), bs=16, path=f"{folder}/{n}", n=n, size=SIDE)


def learner(name: str, dls: DataLoaders, seed: int) -> Learner:
    "Make fastai's learner, or ours with a decoder by name."
    set_seed(seed, reproducible=True)
    if name == "unet_learner":
        return unet_learner(dls, resnet18, pretrained=False, normalize=False)
    head = SegmentationHead(decoder=name, metrics=[])
    return multihead_learner(dls, resnet18, heads={"mask": head}, pretrained=False)


@torch.no_grad()
def foreground_iou(
    learn: Learner,  # fastai's or ours
    place: int = 0,  # index of the mask among the targets and the heads
) -> float:
    "Measure the foreground IoU: of all pixels that either mask counts as ink, the share that both count as ink."
    learn.model.eval()
    both = either = 0
    for x, *targets in learn.dls.valid:
        pred, truth = learn.model(x.as_subclass(Tensor)), targets[place].as_subclass(Tensor) > 0
        found = (pred[place] if isinstance(pred, tuple) else pred).as_subclass(Tensor).argmax(1) > 0
        both += (found & truth).sum().item()
        either += (found | truth).sum().item()
    return both / either


def train_and_measure(name: str, dls: DataLoaders, seed: int) -> float:
    "Fit from scratch, and measure the foreground IoU."
    learn = learner(name, dls, seed)
    quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))
    return foreground_iou(learn)


def step_times(names: Sequence[str], dls: DataLoaders) -> dict[str, float]:
    "Time a step of all learners, in turn."
    return seconds_per_step({name: learner_steps(learner(name, dls, 0)) for name in names})


def main() -> None:
    "Print the foreground IoU over the seeds, and the ratio of the steps."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = ("unet_learner", *LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        times = step_times(names, scenes(folder, 150))
        gc.collect()  # learners refer to themselves, and hold their optimizer's state
        print(f"resnet18, {SIDE}×{SIDE}, batches of 16, {EPOCHS} epochs of {SCENES * 4 // 5} scenes, seeds {SEEDS}")
        print(f"{'':14} {'foreground IoU':24} {'mean':>6} {'step':>6}")
        for name in names:
            found = []
            for seed in SEEDS:
                found.append(train_and_measure(name, scenes(folder, SCENES), seed))
                gc.collect()
            shown = " ".join(f"{v:.3f}" for v in found)
            ratio = times[name] / times["unet_learner"]
            limit = f" (at most {LIMITS[name]:.2f})" if name in LIMITS else ""
            print(f"{name:14} {shown:24} {statistics.mean(found):6.3f} {ratio:6.2f}{limit}", flush=True)


if __name__ == "__main__":
    main()
