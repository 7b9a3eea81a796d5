"""Which archs leave as ONNX: the smallest of every family of both zoos, two heads, checked against torch.

    python -m benchmarks.onnx_archs [seconds]

It goes on where it stopped: `docs/onnx.csv` holds a row for each arch that was tried, `docs/onnx.md` the table."""

import csv
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import fastai.vision.all  # noqa: F401
import torch
from fastai.vision.augment import Resize

from fastai_heads import export_onnx, multihead_learner
from fastai_heads.archs.proof.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.bodies.image import find_image
from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.errors import HeadsError, first_line
from fastai_heads.export.bundle import predictor_of
from fastai_heads.learner import MultiHeadLearner

DOCS = Path(__file__).parents[1] / "docs"
TABLE, PAGE = DOCS / "onnx.csv", DOCS / "onnx.md"
FIELDS = ("arch", "exports", "seconds", "why")


def tried() -> dict[str, dict[str, str]]:
    "Read the rows that are there."
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="") as file:
        return {row["arch"]: row for row in csv.DictReader(file)}


def todo(done: dict[str, dict[str, str]]) -> Iterator[str]:
    "List the archs that were not tried yet."
    every = [*SMALLEST.values(), *(f"torchvision:{name}" for name in SMALLEST_TORCHVISION.values())]
    small = ("test_", "nano", "tiny", "mobile", "_0", "18", "xx")  # first, so that a short run comes far
    yield from sorted((n for n in every if n not in done), key=lambda n: not any(part in n for part in small))


def make_learner(arch: str, folder: Path, table: object) -> MultiHeadLearner:
    "Make a learner at the side that an arch is made for, or at 128, or at the least that its refusal names."
    side = find_image(arch, pretrained=False).build(("input",)).input_size or 128
    while True:
        block = digits_block(folder / "scenes", ("digit", "ink"), item_tfms=Resize(side))
        try:
            return multihead_learner(block.dataloaders(table, bs=4), arch, pretrained=False)
        except HeadsError as error:
            least = re.search(r"smallest side that it takes is (\d+)", str(error))
            if least is None or int(least[1]) == side:
                raise
            side = int(least[1])


def try_arch(arch: str, folder: Path, table: object) -> dict[str, object]:
    "Export one arch, and say how it went."
    start, why = time.time(), ""
    try:
        learn = make_learner(arch, folder, table)
        export_onnx(folder / "m.onnx", predictor_of(learn), overwrite=True)
    except Exception as error:  # what an arch raises is what the table tells
        why = first_line(error)[:300]
    return {"arch": arch, "exports": "no" if why else "yes", "seconds": round(time.time() - start, 1), "why": why}


def write_page(rows: dict[str, dict[str, str]]) -> None:
    "Write the table for readers."
    good = sum(row["exports"] == "yes" for row in rows.values())
    lines = ["# Archs that leave as ONNX", ""]
    lines += [
        "The smallest arch of each family, two heads, written by `export_onnx` and checked against torch on three "
        f"batch sizes. {good} of the {len(rows)} that were tried agree; `python -m benchmarks.onnx_archs` goes on.",
        "",
        "| arch | | why not |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {r['exports']} | {r['why'].replace('|', ' ')} |" for n, r in sorted(rows.items())]
    PAGE.write_text("\n".join([*lines, ""]))


def main(seconds: float = 200) -> None:
    "Try archs until the time is over."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    end, folder = time.time() + seconds, Path(tempfile.mkdtemp())
    table = digit_scenes(folder / "scenes", n=20, size=64).assign(digit=lambda t: t["digit"].astype(str))
    table["digit"] = [str(i % 2) for i in range(len(table))]
    for arch in todo(tried()):
        if time.time() > end:
            break
        row = try_arch(arch, folder, table)
        new = not TABLE.is_file()
        with TABLE.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
        write_page(tried())


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
