"""What an ONNX file costs: four heads by onnxruntime against torch, one image at a time, on one thread.

    python -m benchmarks.onnx

Processor time of one process, in turn; ratios. Goal: at most 0.5. What int8 weights lose is told, too: the difference
of the outputs, and of two networks that are trained the errors on the validation set."""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import fastai.vision.all  # noqa: F401
import numpy as np
import pandas as pd
import torch
from fastai.torch_core import set_seed

from fastai_heads import Predictor, digits_dls, export_onnx, multihead_learner
from fastai_heads.export.bundle import predictor_of

TARGETS = ("digit", "tags", "ink", "box")
ARCHS = ("resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0")


def ratio(ours: Predictor, theirs: Predictor, arrays: dict[str, np.ndarray], rounds: int = 60) -> float:
    "Compare two networks in turn on the same arrays: medians."
    times: tuple[list[float], list[float]] = [], []
    for i in range(rounds + 5):
        for predictor, spent in zip((ours, theirs), times):
            start = time.process_time()
            predictor.network.run(arrays, predictor.heads)
            if i >= 5:
                spent.append(time.process_time() - start)
    return float(np.median(times[0]) / np.median(times[1]))


def errors(predictor: Predictor, frame: pd.DataFrame, folder: Path) -> dict[str, float]:
    "Measure the errors on labelled pictures: the share of wrong digits and of wrong tags, the mean error of the ink."
    answers = predictor([folder / image for image in frame.image])
    wrong = [a.digit.label != str(digit) for a, digit in zip(answers, frame.digit)]
    tags = [len(set(a.tags.labels) ^ set(t.split())) / len(a.tags.probabilities) for a, t in zip(answers, frame.tags)]
    return {
        "digit": np.mean(wrong),
        "tags": np.mean(tags),
        "ink": np.mean(np.abs([a.ink for a in answers] - frame.ink)),
    }


def lose(arch: str, folder: Path, size: int, **body_kwargs: int) -> None:
    "Train a network for a minute, and print its errors as it is and in 8 bits."
    set_seed(0)
    dls = digits_dls(TARGETS, bs=32, path=folder / "trained", n=1000, size=size)
    learn = multihead_learner(dls, arch, pretrained=False, body_kwargs=body_kwargs)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(4, 5e-3 if not body_kwargs else 1e-3)
    files = [export_onnx(folder / f"{arch}_{int8}_trained.onnx", learn, int8=int8) for int8 in (False, True)]
    rows = [errors(Predictor.from_onnx(file, threads=1), dls.valid_ds.items, folder / "trained") for file in files]
    told = {head: [float(f"{row[head]:.4g}") for row in rows] for head in rows[0]}
    print(json.dumps({"arch": arch, "errors as it is, in int8": told}), flush=True)


def main(archs: tuple[str, ...] = ARCHS, size: int = 64) -> None:
    "Print a row for each arch."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    dls = digits_dls(TARGETS, bs=32, path=folder / "scenes", n=60, size=size)
    for arch in archs:
        predictor = predictor_of(multihead_learner(dls, arch, pretrained=False))
        files = {int8: export_onnx(folder / f"{arch}{int8}.onnx", predictor, int8=int8) for int8 in (False, True)}
        image = {"image": np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)}
        found = {int8: ratio(Predictor.from_onnx(file, threads=1), predictor, image) for int8, file in files.items()}
        off = Predictor.from_onnx(files[True]).manifest["int8_difference"]
        sizes = [round(file.stat().st_size / 1e6, 1) for file in files.values()]
        row = {"arch": arch, "onnx/torch": round(found[False], 3), "int8/torch": round(found[True], 3)}
        print(json.dumps(row | {"int8 off by": float(f"{off:.2g}"), "MB, MB int8": sizes}), flush=True)
    lose("resnet10t", folder, size)
    lose("vit_tiny_patch16_224", folder, size, img_size=size)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ARCHS)
