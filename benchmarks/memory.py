"""The memory that `get_preds` of a detector holds: `python -m benchmarks.memory`.

It prints the peak of the process over 500 images, and then over 5,000 with the same batches. The difference is what the
other 4,500 images take. Beside it stands the memory that all raw outputs, anchor by anchor, would take."""

import resource
import tempfile
import warnings

import pandas as pd
import torch

from fastai_heads.data.digits import digits_dls
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.learner import multihead_learner

ARCH, SIDE, FEW, MANY = "test_resnet", 64, 500, 5000


def peak() -> float:
    "Read the most memory that the process has had, in MiB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    "Print both peaks."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        dls = digits_dls(("boxes",), bs=50, path=f"{folder}/s", n=100, size=SIDE, digits_per_scene=(1, 5))
        learn = multihead_learner(dls, ARCH, heads={"boxes": DetectionHead(channels=64)}, pretrained=False)
        rows = dls.valid_ds.items
        peaks = []
        for n in (FEW, MANY):
            table = pd.concat([rows] * (n // len(rows)), ignore_index=True)
            with learn.no_bar():
                preds, targs = learn.get_preds(dl=learn.test_dl(table, with_labels=True))
            assert len(preds.boxes) == len(targs.boxes) == n
            peaks.append(peak())
        raw = learn.model.eval()(dls.valid.one_batch()[0])[0]
    held = sum(t.nbytes for t in (preds.boxes, targs.boxes)) / 2**20
    print(f"{ARCH}, {SIDE}×{SIDE}, batches of 50; of each image {preds.boxes.shape[1]} detections")
    print(f"peak: {peaks[0]:.0f} MiB over {FEW} images, {peaks[1] - peaks[0]:.0f} MiB more over {MANY}")
    print(f"held: {held:.1f} MiB of boxes; raw outputs would be {raw[0].nbytes * MANY / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
