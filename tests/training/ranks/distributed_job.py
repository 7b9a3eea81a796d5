"""The job of `test_trainer.py`. Two processes run it, and one to compare: `torchrun … distributed_job.py FOLDER`.

Training is in float64. The network has neither batch norm nor dropout, so that two ranks together equal one process."""

import sys
import warnings
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
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.metrics import F1Score, accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.torch_core import rank_distrib, set_seed
from fastai.vision.data import ImageBlock
from torch import nn
from torchjd import aggregation, scalarization

from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.together import On
from fastai_heads.data.digits import digit_scenes, digits_block
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.rows import Row, TabularBlock
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    DetectionHead,
    MultiLabelHead,
    RegressionHead,
    SegmentationHead,
)
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.model import MultiHeadModel
from fastai_heads.tasks.mean_ap import MeanAP
from fastai_heads.training.conflict_recorder import ConflictRecorder
from fastai_heads.training.ranks import exchange
from fastai_heads.training.strategies import Balance, Disjoint
from fastai_heads.view.interpret import HeadsInterpretation

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
SEVERAL = ("sum", "UPGrad", "UPGrad over taps", "MGDA over taps", "DWA", "Disjoint, Adam")
RANDOM = ("PCGrad over taps", "GradDrop", "GradDrop over taps")


class Plain(nn.Module):
    "A network without batch norm."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).tanh()).tanh().mean((2, 3)))


def weighted(pred: torch.Tensor, targ: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    "Cross-entropy, a mean over the weights of the labels: ranks have unlike shares of it."
    weight = torch.linspace(1, 3, pred.shape[1], dtype=pred.dtype)
    return F.cross_entropy(pred, targ, weight, reduction=reduction)


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
    "Keeps the parameters after every step, and the strategy's weights of the losses."

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
    """Take labels away. Batch 1 has no digit on the second of two ranks. Batch 2 has no digit at all, and no tags on
    the first rank. Batch 3 has no label at all. In validation, the first batch of the second rank has no digit."""
    table = table.astype(object)
    digits = [*range(4, 16), 28, 29, 30, 31]
    for column, rows in {"digit": digits, "count": digits, "tags": range(8, 12), "box": [1, 9], "mask": [25]}.items():
        if column in table:
            table.loc[[*rows, *range(16, 24)], column] = None
    return table


def data(
    folder: Path,
    targets: tuple[str, ...],
    bs: int,
    missing: bool = True,
    train: int = TRAIN,
    digits_per_scene: int | tuple[int, int] = 1,
    **kwargs: Any,
) -> DataLoaders:
    "Make data: the first scenes to train on, the last to validate."
    path = folder / f"scenes {digits_per_scene}"
    table = digit_scenes(path, n=N, size=SIDE, digits_per_scene=digits_per_scene)
    block = digits_block(path, targets, partial=missing)
    table = (gaps(table) if missing else table).drop(index=range(train, TRAIN)).reset_index(drop=True)
    block.splitter = IndexSplitter(range(train, len(table)))
    return block.dataloaders(table, bs=bs, num_workers=0, path=folder, **kwargs)


def read(dls: DataLoaders, key: str, known: dict = {}) -> DataLoaders:  # noqa: B006  read once for all fits
    "Give the same data, with items that are read from disk only once."
    for place, dl in enumerate(dls.loaders):
        if (key, place) not in known:
            known[key, place] = [dl.do_item(i) for i in range(dl.n)]
        dl.do_item = known[key, place].__getitem__
    return dls


def learner(folder: Path, ranks: int, strategy: Any = None, progress: bool = False, opt_func=Adam, **kwargs):
    "Three heads on a plain network, in float64."
    set_seed(1)
    dls = read(data(folder, WHOLE, BS // ranks, **{"shuffle": False, "drop_last": False, **kwargs}), str(kwargs))
    plain = {"first_bn": False, "lin_ftrs": [], "ps": 0.0, "pool": "avg"}
    heads = {
        "digit": ClassificationHead(loss=weighted, metrics=[accuracy, F1Score(average="macro")], **plain),
        "tags": MultiLabelHead(loss=bce, loss_weight=2.0, **plain),
        "box": BoxHead(loss=l1, **plain),
    }
    learn = multihead_learner(dls, Plain(), heads, cbs=Doubled, strategy=strategy, opt_func=opt_func)
    learn.model.double()
    return learn if progress else quiet(learn)


def fitted(folder: Path, ranks: int, strategy: Callable[[], Any], cbs=(), **kwargs) -> dict[str, Any]:
    "Fit, step by step."
    learn, steps = learner(folder, ranks, strategy=strategy(), **kwargs), Steps()
    with learn.distrib_ctx():
        learn.fit(EPOCHS, 1e-2, cbs=[steps, *cbs])
    return {
        "params": torch.stack(steps.params),
        "weights": steps.weights,
        "conflict": conflict(learn),
        "columns": list(learn.recorder.metric_names),
        "table": torch.stack([numbers(row) for row in learn.recorder.values]),
        "losses": torch.stack(learn.recorder.losses),
        "by_head": {name: torch.stack(losses) for name, losses in learn.recorder.losses_by_head.items()},
    }


class DoubledBoth(Callback):
    "Images and the numbers of rows in float64."

    def before_batch(self) -> None:
        photo, (codes, values) = self.xb
        self.learn.xb = photo.as_subclass(torch.Tensor).double(), Row((codes, values.double()))


def several(folder: Path, ranks: int, strategy: Callable[[], Any]) -> dict[str, Any]:
    """Fit a body for an image beside one for a row. In batch 1 the first of two ranks has no image. In batch 2 no rank
    has any."""
    set_seed(1)
    path = folder / "scenes 1"
    table = digit_scenes(path, n=N, size=SIDE, digits_per_scene=1)
    table["u"] = torch.linspace(-1, 1, N).tolist()
    table = table.astype({"image": object, "digit": object})
    table.loc[[0, 1, 2, 3, *range(8, 16), 25], "image"], table.loc[[5, 17, 26], "u"] = None, None
    table.loc[[4, 5, 6, 7], "digit"] = None
    digits = CategoryBlock(vocab=list(map(str, range(10))))
    block = DataBlock(
        [*map(PartialBlock, (ImageBlock, TabularBlock(cont_names=["u"]), digits)), RegressionBlock],
        n_inp=2,
        getters=[ColReader("image", pref=path), lambda row: row, ColReader("digit"), ColReader("ink")],
        splitter=IndexSplitter(range(TRAIN, N)),
    )
    dls = block.dataloaders(table, bs=BS // ranks, num_workers=0, path=folder, shuffle=False, drop_last=False)
    plain = {"first_bn": False, "lin_ftrs": [], "ps": 0.0, "pool": "avg"}
    heads = {"digit": ClassificationHead(loss=weighted, **plain), "ink": RegressionHead(loss=l1, **plain)}
    archs = {"photo": On("image", Plain()), "row": TabularBody([4], use_bn=False, bn_cont=False)}
    learn, steps = quiet(multihead_learner(dls, archs, heads, cbs=DoubledBoth, strategy=strategy())), Steps()
    learn.model.double()
    with learn.distrib_ctx():
        learn.fit(2, 1e-2, cbs=[steps])
        preds = learn.get_preds()[0]
    return {"params": torch.stack(steps.params), "preds": [p.double() for p in preds]}


def conflict(learn: MultiHeadLearner) -> torch.Tensor:
    "Return the record that a `ConflictRecorder` of the fit has made."
    seen = learn.conflict
    return torch.empty(0) if seen is None else numbers([*seen.cosines.ravel(), *seen.shares.ravel()])


def trained(folder: Path, ranks: int) -> dict[str, Any]:
    "Train every strategy; and train with everything else that stands between a loss and a step."
    found = {name: fitted(folder, ranks, make) for name, make in SOME.items()}
    for name in ("sum", "UPGrad", "UPGrad over taps", "Disjoint, Adam"):
        cbs = [GradientAccumulation(2 * BS // ranks), GradientClip(0.5)]
        found[f"{name}, accumulated and clipped"] = fitted(folder, ranks, SOME[name], cbs)
    for name in ("sum", "UPGrad"):
        found[f"{name}, recorded"] = fitted(folder, ranks, SOME[name], [ConflictRecorder(every=1)])
    found["SGD"] = fitted(folder, ranks, SOME["sum"], opt_func=SGD)
    found["shuffled"] = fitted(folder, ranks, SOME["sum"], missing=False, shuffle=True, train=22)
    found["dropped"] = fitted(folder, ranks, SOME["sum"], missing=False, drop_last=True, train=22)
    return found


def trained_several(folder: Path, ranks: int) -> dict[str, Any]:
    "Train two bodies by some of the strategies."
    return {name: several(folder, ranks, SOME[name]) for name in SEVERAL}


def alike(folder: Path) -> dict[str, torch.Tensor]:
    """Fit in ways whose result need not equal that of one process, or is not in float64. Collect parameters and
    statistics of batch norms."""
    found = {}
    for name, change in {
        "sum": lambda learn: None,
        "UPGrad": lambda learn: setattr(learn, "strategy", aggregation.UPGrad()),
        "FAMO": lambda learn: setattr(learn, "strategy", scalarization.FAMO(2)),
        "frozen": lambda learn: learn.freeze(),
        "bf16": lambda learn: learn.to_bf16(),
        "MixUp": lambda learn: learn.add_cb(MixUp()),
        "stored": lambda learn: None,
    }.items():
        set_seed(2 + rank_distrib())  # other weights, dropout and blends on every rank
        learn = quiet(multihead_learner(data(folder, ("digit", "tags"), 4), "test_resnet", pretrained=False))
        change(learn)
        with learn.distrib_ctx():
            (learn.fit_heads if name == "stored" else learn.fit)(1, 1e-2)
        found[name] = flat([*learn.model.parameters(), *learn.model.buffers()])
    found["taps"] = [tap.values.parent.name for s in learn.stored_taps.sets.values() for tap in s.taps.values()]
    return found


def foretold(folder: Path, ranks: int) -> dict[str, Any]:
    """Collect losses, metrics and predictions of every kind of head on nine items. Some items have no label. No rank
    has all items."""
    set_seed(3)
    specs = {
        "number": ClassificationHead(target="count_"),
        "ink": RegressionHead(standardize=([500.0], [100.0])),
        "mask": SegmentationHead(),
        "boxes": DetectionHead(channels=64, score_thresh=0.0, metrics=[MeanAP(0.05)]),
    }
    dls = data(folder, ("count", "ink", "mask", "boxes"), BS // ranks, digits_per_scene=(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadsWarning)  # `count` is no name for a head
        learn = quiet(multihead_learner(dls, "test_resnet", specs, pretrained=False))
    found: dict[str, Any] = {}
    with learn.distrib_ctx():
        found["validate"] = numbers(learn.validate())
        asked = {"with_input": True, "with_decoded": True, "with_loss": True}
        found["get_preds"] = listed(learn.get_preds(**asked))
        found["shuffled"] = listed(learn.get_preds(dl=dls.valid.new(shuffle=True))[:1])
        found["training"] = listed(learn.get_preds(ds_idx=0)[:1])
        found["one"] = listed(learn.get_preds(dl=learn.test_dl(dls.valid.items[:1]))[:1])
        found["predict"] = listed(learn.predict(dls.valid.items.iloc[0])[2:])
        found["batches"] = listed(learn.get_preds(dl=[dls.valid.one_batch()])[:1])
        found["tta"] = listed(learn.tta(n=1, heads=("number", "ink"))[:1])
        told = HeadsInterpretation.from_learner(learn)
        found["interpretation"] = [*told.head_losses, *told.known]
        saved = folder / f"saved by {ranks} {rank_distrib()}"
        saved.mkdir()
        learn.get_preds(save_preds=saved)
        found["saved"] = sorted(file.name for file in saved.iterdir())
    return found


def spoken(folder: Path) -> dict[str, Any]:
    "Collect what a rank prints and writes. `SaveModelCallback` loads the weights that the first rank has saved."
    learn = learner(folder, 2, progress=True)
    learn.logger, out = print, StringIO()
    cbs = [SaveModelCallback(every_epoch=False, with_opt=True), EarlyStoppingCallback(), CSVLogger()]
    before = type(learn.model), list(learn.dls.loaders)
    with redirect_stdout(out), learn.distrib_ctx():
        learn.fit(2, 1e-2, cbs=cbs)
        params = flat(learn.model.parameters())
        first = learn.validate()
    return {
        "printed": out.getvalue(),
        "written": (folder / "history.csv").read_text(),
        "params": params,
        "table": numbers([v for row in learn.recorder.values for v in row]),
        "validate": numbers(first),
        "as before": before == (type(learn.model), list(learn.dls.loaders)),
    }


def warned(folder: Path) -> dict[str, list[str]]:
    "Collect the monitor's warnings: about a head with labels on one rank only, and about a head whose loss is zero."
    found = {}
    for name in ("all learn", "one does not"):
        learn = learner(folder, 2)
        if name == "one does not":
            learn.heads.box.loss_func = lambda pred, targ: pred.sum() * 0
        with warnings.catch_warnings(record=True) as caught, learn.distrib_ctx():
            warnings.simplefilter("always")
            learn.fit(1, 1e-2)
        found[name] = [str(w.message) for w in caught if issubclass(w.category, HeadsWarning)]
    return found


def refused(folder: Path) -> dict[str, Any]:
    "Collect what is refused, and the state after a fit that fails."
    learn, found = learner(folder, 2), {}
    before, logger = list(learn.dls.loaders), learn.logger
    try:
        with learn.distrib_ctx():
            learn.fit(1, 1e-2, cbs=[Fails()])
    except ArithmeticError as error:
        found["failed"] = str(error)
    found["as before"] = (
        type(learn.model) is MultiHeadModel
        and learn.dls.loaders == before
        and learn.logger is logger
        and learn.ranks == 1
    )
    with learn.distrib_ctx():
        for name, call in {
            "lr_find": learn.lr_find,
            "one image": lambda: narrow(folder).fit(1),
        }.items():
            try:
                call()
            except HeadsError as error:
                found[name] = str(error)
    return found


def narrow(folder: Path) -> MultiHeadLearner:
    "Make a learner whose last batch has one image on each of two ranks."
    return quiet(
        multihead_learner(data(folder, ("digit",), 4, False, 18, drop_last=False), "test_resnet", pretrained=False)
    ).to_distributed()


def alone(folder: Path) -> bool:
    "Train on the first rank alone, after `distrib_ctx`. It waits for nobody."
    if rank_distrib():
        return True
    dls = data(folder, ("digit", "box"), 8, True, 24)
    learn = quiet(multihead_learner(dls, "test_resnet", pretrained=False, strategy=aggregation.UPGrad()))
    learn.fit(1)
    return bool(learn.recorder.losses[-1].isfinite())


def told() -> dict[str, Any]:
    "Exchange tensors of unlike type, size and shape between the ranks."
    from fastai_heads.training.ranks.exchange import gather_tensors

    rank = rank_distrib()
    exchange.train_together(True)
    exchange._BUCKET = 3  # numbers
    mean = [torch.full((3,), rank * 1.0), torch.full((1, 2), rank + 1.0).double(), torch.full((1,), 2.0 + rank)]
    exchange.mean_over_ranks(mean)
    size = rank + 1
    return {
        "mean": mean,
        "sum": int(exchange.sum_over_ranks(torch.tensor(rank))),
        "first": exchange.from_first_rank(torch.tensor([rank, rank + 5])).tolist(),
        "gathered": gather_tensors(torch.tensor([[True, False]] * 2)[:size, :size]),
        "empty": gather_tensors(torch.zeros(rank, 2)),
    }


def quiet(learn: MultiHeadLearner) -> MultiHeadLearner:
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    return learn


def numbers(values) -> torch.Tensor:
    return torch.tensor([float("nan") if v is None else float(v) for v in values], dtype=torch.float64)


def listed(answer) -> list[torch.Tensor]:
    "List the tensors of an answer of `get_preds`."
    parts = [part for part in answer if part is not None]
    tensors = [t for part in parts for t in ([part] if isinstance(part, torch.Tensor) else part)]
    return [t.as_subclass(torch.Tensor).clone() for t in tensors]


def main(folder: Path) -> None:
    "Run all of it, on one rank of two."
    warnings.simplefilter("ignore")
    found = {
        "trained": trained(folder, 2),
        "several": trained_several(folder, 2),
        "alike": alike(folder),
        "foretold": foretold(folder, 2),
        "alone": alone(folder),
        "spoken": spoken(folder),
        "warned": warned(folder),
        "refused": refused(folder),
        "told": told(),
    }
    torch.save(found, folder / f"rank {rank_distrib()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
