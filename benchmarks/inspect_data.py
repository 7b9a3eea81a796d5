"""What a look at the data costs, against fastai making its loaders: `python -m benchmarks.inspect_data`."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock, PointBlock
from PIL import Image

from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.inspect import inspect_data

ROWS, FILES = 100_000, 16


def labels(folder: Path) -> pd.DataFrame:
    "Rows of five labels over a few pictures."
    for i in range(FILES):
        Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    rows = range(ROWS)
    return pd.DataFrame(
        {
            "image": [f"{i % FILES}.png" for i in rows],
            "kind": [str(i % 7) for i in rows],
            "tags": ["a b"] * ROWS,
            "number": np.arange(ROWS, dtype=float),
            "box": [f"{i % 9} 2 {i % 9 + 20} 40" for i in rows],
            "point": [f"{i % 64} 4" for i in rows],
            "is_valid": [i % 5 == 0 for i in rows],
        }
    )


def seconds(work: Callable[[], object]) -> float:
    "Processor time."
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    "Prints the seconds of both and their ratio."
    with tempfile.TemporaryDirectory() as folder:
        table = labels(Path(folder))
        readers = [ColReader("kind"), ColReader("tags", label_delim=" "), ColReader("number"), ColReader("box")]
        block = DataBlock(
            (ImageBlock, CategoryBlock, MultiCategoryBlock, RegressionBlock, BoxBlock, PointBlock),
            getters=[ColReader("image", pref=Path(folder)), *readers, NumbersReader("point")],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
        )
        made: list = []
        theirs = seconds(lambda: made.append(block.dataloaders(table, bs=64, num_workers=0)))
        ours = seconds(lambda: inspect_data(made[0]))
        print(
            f"{ROWS:,} rows of five targets: inspect_data {ours:.2f} s, dataloaders {theirs:.1f} s: {ours / theirs:.3f}"
        )


if __name__ == "__main__":
    main()
