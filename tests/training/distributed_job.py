"""What `test_distributed.py` has two processes do, and does in one for comparison: `torchrun … distributed_job.py FOLDER`.

Training is in float64, and its network has neither batch norm nor dropout, so that ranks joined equal one process."""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import fastai.vision.all  # noqa: F401  as users do
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter
from fastai.metrics import F1Score, RocAuc, accuracy
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import get_model, rank_distrib, set_seed
from torch import nn
from torchjd import aggregation, scalarization

from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.errors import HeadsError
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    DetectionHead,
    MultiLabelHead,
    RegressionHead,
    SegmentationHead,
)
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.training.strategies import Balance, Disjoint

N, TRAIN, SIDE, BS = 33, 24, 32, 8  # scenes, those to train on, pixels, items of a batch over all ranks
EPOCHS = 3
WHOLE = ("digit", "tags", "box")  # the targets of the training that is compared

SOME: dict[str, Callable[[], Any]] = {  # strategies, of every kind; what is drawn at random is not in here
    "sum": lambda: None,
    "UW": lambda: scalarization.UW(3),
    "DWA": scalarization.DWA,
    "FAMO": lambda: scalarization.FAMO(3),
    "IMTLL": lambda: scalarization.IMTLL(3),
    "GeometricMean": scalarization.GeometricMean,
    "STCH": lambda: scalarization.STCH(0.5),
    "UPGrad": aggregation.UPGrad,
    "UPGrad over taps": lambda: Balance(aggregation.UPGrad(), over="taps"),
    "MGDA": aggregation.MGDA,
    "MGDA over taps": lambda: Balance(aggregation.MGDA(), over="taps"),
    "AlignedMTL": aggregation.AlignedMTL,
    "CAGrad": lambda: aggregation.CAGrad(c=0.5),
    "CAGrad over taps": lambda: Balance(aggregation.CAGrad(c=0.5), over="taps"),
    "PCGrad": aggregation.PCGrad,
    "PCGrad over taps": lambda: Balance(aggregation.PCGrad(), over="taps"),
    "GradDrop": aggregation.GradDrop,
    "GradDrop over taps": lambda: Balance(aggregation.GradDrop(), over="taps"),
    "Disjoint, Adam": lambda: Disjoint(lrs={"digit": 2.0}),
    "Disjoint, AdamW": lambda: Disjoint(partial(OptimWrapper, opt=torch.optim.AdamW)),
}
RANDOM = ("PCGrad over taps", "GradDrop", "GradDrop over taps")


class Plain(nn.Module):
    "A network without batch norm."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).tanh()).tanh().mean((2, 3)))


def bce(pred: torch.Tensor, targ: torch.Tensor) -> torch.Tensor:
    "fastai's losses make float32 of float64."
    return F.binary_cross_entropy_with_logits(pred, targ.double())


def l1(pred: torch.Tensor, targ: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(pred, targ.reshape(pred.shape).double())


class Doubled(Callback):
    "Images in float64."

    def before_batch(self) -> None:
        self.learn.xb = tuple(x.double() for x in self.xb)


class Steps(Callback):
    "The parameters after every step, and what the strategy weighted the losses with."

    order, run_valid = 90, False

    def before_fit(self) -> None:
        self.params, self.weights = [], []

    def after_batch(self) -> None:
        self.params.append(flat(self.learn.model.parameters()))
        self.weights.append(dict(self.learn.strategy.weights))


class Fails(Callback):
    def after_step(self) -> None:
        raise ArithmeticError("stop")


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """The first batch has no digit on the second of two ranks, the second batch no digit at all and no tags on the first
    rank, the third no label whatever; of the validation set the second rank's first batch has no digit."""
    table = table.copy()
    for column, rows in {"digit": [*range(4, 16), 28, 29, 30, 31], "tags": range(8, 12), "box": [1, 9]}.items():
        table.loc[[*rows, *range(16, 24)], column] = None
    return table


def data(folder: Path, targets: tuple[str, ...], bs: int, missing: bool = True, **kwargs) -> DataLoaders:
    table = digit_scenes(folder / "scenes", n=N, size=SIDE)
    block = digits_block(folder / "scenes", targets, partial=missing)
    block.splitter = IndexSplitter(range(TRAIN, N))
    dls = block.dataloaders(gaps(table) if missing else table, bs=bs, num_workers=0, path=folder, **kwargs)
    return dls


def learner(folder: Path, ranks: int, missing: bool = True, shuffle: bool = False, **kwargs) -> MultiHeadLearner:
    "Three heads on a plain network, in float64."
    set_seed(1)
    dls = data(folder, WHOLE, BS // ranks, missing, shuffle=shuffle)
    plain = {"first_bn": False, "lin_ftrs": [], "ps": 0.0, "pool": "avg"}
    heads = {
        "digit": ClassificationHead(loss=F.cross_entropy, metrics=[accuracy, F1Score(average="macro")], **plain),
        "tags": MultiLabelHead(loss=bce, loss_weight=2.0, **plain),
        "box": BoxHead(loss=l1, **plain),
    }
    learn = multihead_learner(dls, Plain(), heads, cbs=Doubled, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    learn.model.double()
    return learn


def fitted(folder: Path, ranks: int, strategy: Callable[[], Any], cbs=(), **kwargs) -> dict[str, Any]:
    "A fit, step by step."
    learn, steps = learner(folder, ranks, strategy=strategy(), **kwargs), Steps()
    with learn.distrib_ctx():
        learn.fit(EPOCHS, 1e-2, cbs=[steps, *cbs])
    return {
        "params": torch.stack(steps.params),
        "weights": steps.weights,
        "columns": list(learn.recorder.metric_names),
        "table": torch.tensor([[float("nan") if v is None else float(v) for v in row] for row in learn.recorder.values]),
        "losses": torch.stack(learn.recorder.losses),
        "by_head": {name: torch.stack(losses) for name, losses in learn.recorder.losses_by_head.items()},
    }


def strategies(folder: Path, ranks: int) -> dict[str, Any]:
    return {name: fitted(folder, ranks, make, opt_func=SGD if name == "sum" else fastai.optimizer.Adam) for name, make in SOME.items()}


if __name__ == "__main__":
    import time, traceback
    import warnings; warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    import datetime
    for name in SOME:
        t=time.time()
        try: r = fitted(folder, 2, SOME[name], opt_func=SGD if name == "sum" else fastai.optimizer.Adam)
        except Exception as e: print(name, "FAILED", rank_distrib(), repr(e)[:900], flush=True); traceback.print_exc(limit=-8); sys.exit(1)
        torch.save(r, folder / f"{name} {rank_distrib()}.pt")
        if rank_distrib()==0: print(name, time.time()-t)
