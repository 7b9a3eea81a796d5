"""Masks with and without refined boundaries: `python -m benchmarks.refine [scenes] [horses]`.

Scenes of digits train from scratch, with a decoder at stride 4 and one at the image's own stride. The second set is of
photographs, into which a piece of another is laid with the outline of scikit-image's horse, turned and scaled; its body
has real ImageNet weights. Three seeds each, the metrics are those of the validation set, steps are timed in turn. Needs
the extra `examples`."""

import gc
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter
from fastai.torch_core import set_seed
from fastai.vision.data import ImageBlock, MaskBlock
from PIL import Image

from benchmarks.steps import learner_steps, quiet_fit, seconds_per_step
from fastai_heads.data.digits import digits_dls
from fastai_heads.examples import ARCH, lite0_kwargs, open_photographs
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.tasks.mask_metrics import BoundaryF1, MaskIoU

SIDE, EPOCHS, SEEDS = 96, 6, (0, 1, 2)
REFINEMENTS, DECODERS = (False, True, "points"), ("fpn", "unet")


def scenes(folder: Path, n: int) -> DataLoaders:
    "Make scenes of one to five digits with their masks."
    return digits_dls(("mask",), bs=16, path=folder / str(n), n=n, size=SIDE, digits_per_scene=(1, 5))


def horses(folder: Path, n: int) -> DataLoaders:
    "Make photographs with a piece of another in the outline of a horse, and its mask."
    from skimage import data

    rng, folder = np.random.default_rng(0), folder / f"horses {n}"
    folder.mkdir(parents=True, exist_ok=True)
    outline = Image.fromarray((~data.horse() * 255).astype(np.uint8))
    photos, rows = list(open_photographs().values()), []
    for i in range(n):
        one, other = (photos[j] for j in rng.choice(len(photos), 2, replace=False))
        width = int(rng.uniform(0.5, 0.9) * SIDE)
        horse = outline.rotate(rng.uniform(-40, 40), expand=True).resize((width, width), Image.Resampling.BOX)
        mask = Image.new("L", (SIDE, SIDE), 0)
        mask.paste(horse, tuple(int(v) for v in rng.integers(0, SIDE - width + 1, 2)))
        mask = mask.point(lambda v: 255 * (v > 127))
        image = _crop(one, rng)
        image.paste(_crop(other, rng), mask=mask)
        image.save(folder / f"{i}.png")
        mask.point(lambda v: v // 255).save(folder / f"mask_{i}.png")
        rows.append({"image": f"{i}.png", "mask": f"mask_{i}.png", "is_valid": i % 5 == 4})
    block = DataBlock(
        blocks=(ImageBlock, MaskBlock(["photograph", "horse"])),
        get_x=ColReader("image", pref=f"{folder}/"),
        get_y=ColReader("mask", pref=f"{folder}/"),
        splitter=ColSplitter("is_valid"),
    )
    return block.dataloaders(pd.DataFrame(rows), bs=16, num_workers=0)


def _crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Cut a square out of a photograph, of 40 to 90 % of its shorter side."
    size = int(rng.uniform(0.4, 0.9) * min(photo.size))
    x, y = rng.integers(0, photo.width - size + 1), rng.integers(0, photo.height - size + 1)
    return photo.crop((x, y, x + size, y + size)).resize((SIDE, SIDE), Image.Resampling.BOX)


def learner(dls: DataLoaders, seed: int, decoder: str, refine: bool | str, **body: Any) -> MultiHeadLearner:
    "Make a learner with one head of masks."
    set_seed(seed, reproducible=True)
    head = SegmentationHead(decoder=decoder, refine=refine, metrics=[MaskIoU(), BoundaryF1()])
    return multihead_learner(dls, heads={"mask": head}, **body)


def compare(name: str, make: Callable[[Path, int], DataLoaders], n: int, lr: float, **body: Any) -> None:
    "Train with every decoder and refinement, and print means and spread over the seeds."
    print(f"{name}: {n} images of {SIDE} px, a fifth held out, {EPOCHS} epochs, {body['arch']}, seeds {SEEDS}")
    print(f"{'decoder':8} {'refine':7} {'IoU':>14} {'boundary F1':>14} {'step':>6}")
    with tempfile.TemporaryDirectory() as folder:
        dls, few = make(Path(folder), n), make(Path(folder), 60)
        for decoder in DECODERS:
            few_learners = {str(r): learner_steps(learner(few, 0, decoder, r, **body)) for r in REFINEMENTS}
            steps = seconds_per_step(few_learners, rounds=2)
            for refine in REFINEMENTS:
                found = []
                for seed in SEEDS:
                    learn = learner(dls, seed, decoder, refine, **body)
                    quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, lr))  # noqa: B023
                    with learn.no_bar():
                        found.append(list(learn.validate())[-2:])
                    gc.collect()  # learners refer to themselves
                cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in zip(*found, strict=True)]
                print(
                    f"{decoder:8} {refine!s:7} {cells[0]:>14} {cells[1]:>14} {steps[str(refine)] / steps['False']:6.2f}"
                )
                sys.stdout.flush()


def main() -> None:
    "Compare on the sets that are named, or on both."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sets = sys.argv[1:] or ["scenes", "horses"]
    if "scenes" in sets:
        compare("scenes", scenes, 240, 3e-3, arch="resnet10t", pretrained=False)
    if "horses" in sets:
        compare("horses", horses, 240, 2e-3, arch=ARCH, body_kwargs=lite0_kwargs())


if __name__ == "__main__":
    main()
