"""What predictions cost against `vision_learner`'s on one head: `python -m benchmarks.predictions`.

Process time, in turn in one process, from files; ratios, the middle half of them in brackets. Goals: `predict` of one
image at most 0.7, `get_preds` and `validate` at most 1.0. Then `predict_many` against `predict` of each."""

import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from fastai.vision.learner import vision_learner

from benchmarks.optimizer import spread, times_in_turn
from fastai_heads import digits_dls, multihead_learner


def print_ratio(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    "Print one row."
    times = times_in_turn({"ours": ours, "theirs": theirs}, rounds)
    print(f"{name:24} {spread(times['ours'], times['theirs'])}", flush=True)


def main(arch: str = "resnet18", size: int = 64, n: int = 640) -> None:
    "Print the ratios."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    ours, theirs = (
        make(digits_dls("digit", bs=32, size=size, n=n, path=folder), arch, pretrained=False)
        for make in (multihead_learner, vision_learner)
    )
    rows = ours.dls.valid_ds.items.iloc[:32]
    print(f"{arch}, {size} px, {len(ours.dls.valid_ds)} images")
    with ExitStack() as stack:
        for learn in (ours, theirs):
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        print_ratio("predict", lambda: ours.predict(rows.iloc[0]), lambda: theirs.predict(rows.iloc[0]), 25)
        for name in ("get_preds", "validate"):
            print_ratio(name, getattr(ours, name), getattr(theirs, name), 9)
        each = lambda: [ours.predict(row) for _, row in rows.iterrows()]  # noqa: E731
        print_ratio("predict_many / predict", lambda: ours.predict_many(rows), each, 5)


if __name__ == "__main__":
    main()
