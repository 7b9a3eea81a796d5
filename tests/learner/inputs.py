"""Small data with an image, a row and a text for each item, and quick learners over them."""

from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.text.data import TextBlock
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.torch_core import set_seed
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from PIL import Image
from torch import nn

from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.data.rows import TabularBlock
from fastai_heads.learner import multihead_learner

N, N_VALID, SIDE = 24, 8, 16
INPUTS = ["photo", "kind", "u", "note"]
TEXT = TextBody(AWD_LSTM, config={"emb_sz": 8, "n_hid": 12, "n_layers": 2})
ROW = TabularBody(layers=[6])


class Pixels(nn.Module):
    "A network of two layers, with a map and a stride."

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


def archs(**others):
    return {"photo": Pixels(), "row": ROW, "note": TEXT, **others}


def write_photos(path: Path) -> None:
    "Write a photograph of noise for every item."
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(path / f"{i}.png")


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "home"]
    return pd.DataFrame(
        {
            "photo": [f"{i}.png" for i in range(N)], "other": [f"{(i * 7) % N}.png" for i in range(N)],
            "kind": rng.choice(list("xyz"), N), "u": rng.normal(size=N),
            "note": [" ".join(rng.choice(words, rng.integers(1, 14))) for _ in range(N)],
            "mood": ["p", "q"] * (N // 2), "n": rng.normal(size=N),
        }
    )  # fmt: skip


def loaders(folder, inputs=("photo", "row", "note"), table=None, wrap=noop):
    "Loaders over some inputs, in the order given, with the targets `mood` and `n`."
    known = {
        "photo": (lambda: wrap(ImageBlock()), lambda: ColReader("photo", pref=folder)),
        "other": (lambda: wrap(ImageBlock()), lambda: ColReader("other", pref=folder)),
        "row": (lambda: wrap(TabularBlock(["kind"], ["u"])), lambda: noop),
        "note": (lambda: wrap(TextBlock.from_df("note", min_freq=1)), lambda: ColReader("text")),
        "number": (lambda: wrap(TabularBlock(cont_names=["u"])), lambda: noop),
    }
    block = DataBlock(
        [*(known[name][0]() for name in inputs), CategoryBlock, RegressionBlock], n_inp=len(inputs),
        getters=[*(known[name][1]() for name in inputs), ColReader("mood"), ColReader("n")],
        splitter=IndexSplitter(list(range(N_VALID))),
    )  # fmt: skip
    return block.dataloaders(frame() if table is None else table, bs=4, num_workers=0)


def make_learner(dls, arch, *args, epochs=0, **kwargs):
    set_seed(0)
    learn = multihead_learner(dls, arch, *args, **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    if epochs:
        with learn.no_logging():
            learn.fit(epochs, 1e-2)
    return learn


def gappy() -> pd.DataFrame:
    table = frame()
    table.loc[[1, 9], "note"], table.loc[[2, 10], "photo"] = None, None
    table.loc[[3, 11], ["kind", "u"]] = None
    return table
