"""What an ONNX file costs: four heads by onnxruntime against torch, one image at a time, on one thread.

    python -m benchmarks.onnx

Wall time of one process, in turn; ratios. Goal: at most 0.5. The loss of int8 weights is told, too."""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import fastai.vision.all  # noqa: F401
import numpy as np
import torch

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


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ARCHS)
