"""A picture and a caption: heads that read both against heads that read one: `python -m benchmarks.captions`.

Each picture shows a digit of scikit-learn's `load_digits` under heavy noise. Its caption says whether it is small or
large, odd or even. Three heads: `digit` reads both inputs, and each says a part of it; `ink`, how dark the digit is,
reads the picture; `polite`, how the caption is worded, reads the caption. Pictures of the validation set are of
digits that training has not seen. Three seeds."""

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

SIDE, N, EPOCHS, LR, SEEDS, NOISE = 32, 1200, 8, 1e-2, (0, 1, 2), 110
# all as long: loaders of texts sort by length, and a batch of one wording alone would tell batch norm nothing
WORDS = ("please a {} {} one", "it is {} {} one", "read {} {} digit please", "a {} {} digit here")
TEXT = TextBody(AWD_LSTM, config={"emb_sz": 24, "n_hid": 32, "n_layers": 1}, drop_mult=0.2)
INPUTS = {"both": ("photo", "note"), "picture": ("photo",), "caption": ("note",)}


def write_captions(folder: Path, n: int = N, seed: int = 0) -> pd.DataFrame:
    "Write the pictures, and give their captions and targets. The last fifth is to validate."
    rng, (images, digits) = np.random.default_rng(seed), load_digits(return_X_y=True)
    folder.mkdir(parents=True, exist_ok=True)
    cut, rows = len(images) * 4 // 5, []
    for i in range(n):
        valid = i >= n * 4 // 5
        j = rng.integers(cut, len(images)) if valid else rng.integers(0, cut)
        pixels = np.array(Image.fromarray(images[j].reshape(8, 8) * 16).resize((SIDE, SIDE)), dtype=float)
        noisy = 255 - np.clip(pixels + rng.normal(0, NOISE, pixels.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).convert("RGB").save(folder / f"{i}.png")
        words, digit = WORDS[rng.integers(len(WORDS))], int(digits[j])
        note = words.format("small" if digit < 5 else "large", "odd" if digit % 2 else "even")
        row = {"photo": f"{i}.png", "note": note, "digit": str(digit), "ink": pixels.mean(), "is_valid": valid}
        rows.append({**row, "polite": str("please" in note)})
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
        getters=[*getters, *map(ColReader, ("digit", "ink", "polite"))],
        splitter=ColSplitter("is_valid"),
    ).dataloaders(table, bs=32, num_workers=0)


def train(dls: DataLoaders, inputs: Sequence[str], seed: int) -> MultiHeadLearner:
    "Train the three heads, each on what it needs of the inputs that there are."
    set_seed(seed, reproducible=True)
    archs = {"photo": "test_resnet", "note": TEXT}
    both = len(inputs) == 2
    heads = {
        "digit": ClassificationHead(),
        "ink": RegressionHead(tap="photo.features" if both else "features"),
        "polite": ClassificationHead(tap="note.features" if both else "features"),
    }
    learn = multihead_learner(dls, archs if both else archs[inputs[0]], heads, pretrained=False)
    quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))
    return learn


def main() -> None:
    "Print what each head reaches with both inputs and with one."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{N} noisy digits, a fifth held out, test_resnet and an LSTM from scratch, {EPOCHS} epochs, seeds {SEEDS}")
    print(f"{'':8} {'digit (accuracy)':>18} {'ink (mae)':>18} {'polite (accuracy)':>18}")
    with tempfile.TemporaryDirectory() as folder:
        table = write_captions(Path(folder))
        for name, inputs in INPUTS.items():
            dls, found = caption_dls(Path(folder), table, inputs), []
            for seed in SEEDS:
                learn = train(dls, inputs, seed)
                with learn.no_bar():
                    learn.validate()
                by_head = {m.head.name: float(m.value) for m in learn.metrics}
                found.append([by_head[head] for head in ("digit", "ink", "polite")])
            cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in zip(*found, strict=True)]
            print(f"{name:8} " + " ".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
