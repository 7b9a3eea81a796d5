"""A picture and a caption: heads that read both against heads that read one: `python -m benchmarks.captions`.

Each picture shows two digits of scikit-learn's `load_digits` side by side, and the caption asks for one of them. Three
heads: `asked`, the digit that is asked for, needs both inputs; `sum`, the digits' sum, needs the picture; `polite`, how
it is asked, needs the caption. Without the caption `asked` can only guess which of the two is meant. The pictures of
the validation set are made of digits that training has not seen. Three seeds."""

import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter
from fastai.text.data import TextBlock
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.torch_core import set_seed
from fastai.vision.data import ImageBlock
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.steps import quiet_fit
from fastai_heads import ClassificationHead, MultiHeadLearner, RegressionHead, TextBody, multihead_learner

SIDE, N, EPOCHS, LR, SEEDS = 32, 1600, 8, 5e-3, (0, 1, 2)
PLEAS = ("which is the {} one", "the digit on the {} please", "tell me the {} digit", "name the one to the {} please")
TEXT = TextBody(AWD_LSTM, config={"emb_sz": 24, "n_hid": 32, "n_layers": 1})
INPUTS = {"both": ("photo", "note"), "picture": ("photo",), "caption": ("note",)}


def write_captions(folder: Path, n: int = N, seed: int = 0) -> pd.DataFrame:
    "Write the pictures, and give their captions and targets. The last fifth is to validate."
    rng, (images, digits) = np.random.default_rng(seed), load_digits(return_X_y=True)
    folder.mkdir(parents=True, exist_ok=True)
    cut, first_valid, rows = len(images) * 4 // 5, n * 4 // 5, []
    for i in range(n):
        valid = i >= first_valid
        pair = rng.integers(cut, len(images), 2) if valid else rng.integers(0, cut, 2)
        pixels = np.concatenate([images[j].reshape(8, 8) * 15 for j in pair], 1).astype(np.uint8)
        Image.fromarray(255 - pixels).resize((2 * SIDE, SIDE)).convert("RGB").save(folder / f"{i}.png")
        place, plea = rng.integers(2), PLEAS[rng.integers(len(PLEAS))]
        asked = digits[pair[place]]
        row = {"photo": f"{i}.png", "note": plea.format(("left", "right")[place]), "asked": str(asked)}
        rows.append({**row, "sum": digits[pair].sum(), "polite": str("please" in plea), "is_valid": valid})
    return pd.DataFrame(rows)


def caption_dls(folder: Path, table: pd.DataFrame, inputs: Sequence[str] = ("photo", "note")) -> DataLoaders:
    "Make loaders of pictures, of captions, or of both."
    known = {
        "photo": (ImageBlock(), ColReader("photo", pref=f"{folder}/")),
        "note": (TextBlock.from_df("note", min_freq=1), ColReader("text")),
    }
    blocks, getters = zip(*(known[name] for name in inputs))
    return DataBlock(
        [*blocks, CategoryBlock, RegressionBlock, CategoryBlock],
        n_inp=len(inputs),
        getters=[*getters, *map(ColReader, ("asked", "sum", "polite"))],
        splitter=ColSplitter("is_valid"),
    ).dataloaders(table, bs=32, num_workers=0)


def train(dls: DataLoaders, inputs: Sequence[str], seed: int) -> MultiHeadLearner:
    "Train the three heads on the features of every input that there is."
    set_seed(seed, reproducible=True)
    archs = {"photo": "resnet10t", "note": TEXT}
    heads = {"asked": ClassificationHead(), "sum": RegressionHead(), "polite": ClassificationHead()}
    arch = archs if len(inputs) == 2 else archs[inputs[0]]
    learn = multihead_learner(dls, arch, heads, pretrained=False)
    quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))
    return learn


def main() -> None:
    "Print what each head reaches with both inputs and with one."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{N} pictures of 2 digits, a fifth held out, resnet10t and an LSTM, {EPOCHS} epochs, seeds {SEEDS}")
    print(f"{'':8} {'asked (accuracy)':>18} {'sum (rmse)':>18} {'polite (accuracy)':>18}")
    with tempfile.TemporaryDirectory() as folder:
        table = write_captions(Path(folder))
        for name, inputs in INPUTS.items():
            dls, found = caption_dls(Path(folder), table, inputs), []
            for seed in SEEDS:
                learn = train(dls, inputs, seed)
                with learn.no_bar():
                    learn.validate()
                by_head = {m.head.name: float(m.value) for m in learn.metrics}
                found.append([by_head[head] for head in ("asked", "sum", "polite")])
            cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in zip(*found, strict=True)]
            print(f"{name:8} " + " ".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
