"""The cost of strategies, as ratios that are timed in turn in one run: `python -m benchmarks.strategies`. Some of
them alone: `python -m benchmarks.strategies 2 4 IMTLG AlignedMTL`.

Times are of one training step: forward, backward, optimizer. A strategy that reads K gradients has a step by hand as
its floor: one forward pass, K times `torch.autograd.grad`, and as many optimizer steps as the strategy takes."""

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fastai.optimizer import Adam, OptimWrapper
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchjd.aggregation import IMTLG, MGDA, AlignedMTL, PCGrad, UPGrad
from torchjd.scalarization import DWA, FAMO, IMTLL, UW, GeometricMean

from benchmarks.cut import ratio
from fastai_heads import Balance, ClassificationHead, Disjoint, MultiHeadLearner, digits_dls, multihead_learner

ARCH, SIZE, BATCH, REPEATS = "resnet18", 64, 32, 9
COUNTS = (2, 4, 8)
WD = 0.01
FUSED = partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True))
Step = Callable[[], object]


class Row(NamedTuple):
    "A strategy, and the floor that it is compared with."

    name: str
    strategy: Callable[[], Any]
    floor: str  # 'sum', 'rows' (K gradients, one optimizer step) or 'disjoint' (K gradients, K optimizer steps)
    target: float  # the ratio should stay below this


ROWS = [
    Row("UW", lambda: UW, "sum", 1.10),
    Row("DWA", lambda: DWA, "sum", 1.10),
    Row("GeometricMean", lambda: GeometricMean, "sum", 1.10),
    Row("IMTLL", lambda: IMTLL, "sum", 1.10),
    Row("FAMO", lambda: FAMO, "sum", 1.10),
    Row("UPGrad over taps", lambda: Balance(UPGrad(), over="taps"), "sum", 1.10),
    Row("UPGrad", UPGrad, "rows", 1.10),
    Row("MGDA", MGDA, "rows", 1.10),
    Row("PCGrad", PCGrad, "rows", 1.10),
    Row("IMTLG", IMTLG, "rows", 1.10),
    Row("AlignedMTL", AlignedMTL, "rows", 1.10),
    Row("Disjoint", Disjoint, "disjoint", 1.05),
]


def make_learner(
    dls: Any,  # with the target `digit`
    n: int,  # heads, all of them alike
    strategy: Any = None,
    opt_func: Callable = FUSED,
) -> MultiHeadLearner:
    "Make a learner with many heads on one target. The first head decodes it, and the others are auxiliary."
    heads = {f"head{i}": ClassificationHead(target="digit", train_only=i > 0) for i in range(n)}
    return multihead_learner(
        dls, ARCH, heads, pretrained=False, strategy=strategy, opt_func=opt_func, wd=WD, fused=False
    )


def learner_step(
    learn: MultiHeadLearner,
    batch: tuple[Tensor, ...],  # from the learner's data
) -> Step:
    "Make one training step of a learner, as its `fit` does it, on a given batch."
    learn.remove_cb(learn.progress)
    learn.create_opt()
    learn.opt.set_hypers(lr=learn.lr, wd=WD)
    learn.dl = learn.dls.train
    learn.n_iter = len(learn.dl)
    for event in ("before_fit", "before_epoch", "before_train"):
        learn(event)
    return lambda: learn.one_batch(0, batch)


def sum_by_hand(
    learn: MultiHeadLearner,  # its network is copied
    batch: tuple[Tensor, Tensor],
    opt_func: Callable = FUSED,
) -> Step:
    "Make one step on the plain sum of the losses, as one writes it in PyTorch."
    model, opt = _copy(learn, opt_func)
    x, y = map(_plain, batch)

    def step() -> None:
        sum(F.cross_entropy(pred, y) for pred in model(x)).backward()
        opt.step()
        opt.zero_grad()

    return step


def rows_by_hand(
    learn: MultiHeadLearner,  # its network is copied
    batch: tuple[Tensor, Tensor],
    disjoint: bool,  # take an optimizer step for each gradient; else one in all
) -> Step:
    "Make the floor: one forward pass, a gradient for each loss, all held until the last, and the optimizer."
    model, opt = _copy(learn, FUSED)
    opts = [opt, *(_optimizer(FUSED, model) for _ in range(len(learn.heads) - 1))] if disjoint else [opt]
    params = list(model.parameters())
    x, y = map(_plain, batch)

    def step() -> None:
        losses = [F.cross_entropy(pred, y) for pred in model(x)]
        rows = [
            torch.autograd.grad(loss, params, retain_graph=i < len(losses), allow_unused=True)
            for i, loss in enumerate(losses, 1)
        ]
        for opt, row in zip(opts, rows):
            for param, grad in zip(params, row):
                param.grad = grad
            opt.step()
        opt.zero_grad()

    return step


def _copy(learn: MultiHeadLearner, opt_func: Callable) -> tuple[nn.Module, Any]:
    model = copy.deepcopy(learn.model).train()
    return model, _optimizer(opt_func, model)


def _optimizer(opt_func: Callable, model: nn.Module) -> Any:
    "Make torch's own optimizer where it is wrapped, else the one object that fastai's learner makes."
    if opt_func is FUSED:
        return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=WD, fused=True)
    return opt_func(list(model.parameters()), lr=1e-3, wd=WD)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor)


def peak(
    step: Step,  # run once before
) -> float:  # MiB above the memory in use when the step starts
    "Measure the most memory that a step holds."
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step()
        profiled.export_chrome_trace(str(trace))
        events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    start = events[0]["Total Allocated"] - events[0]["Bytes"]
    return (max(e["Total Allocated"] for e in events) - start) / 2**20


def print_plain(dls: Any, batch: tuple[Tensor, ...], n: int) -> None:
    "Print a learner's step against the loop by hand, with torch's fused AdamW and with fastai's Adam."
    for name, opt_func in (("AdamW(fused)", FUSED), ("fastai's Adam", Adam)):
        learn = make_learner(dls, n, opt_func=opt_func)
        theirs = sum_by_hand(learn, batch, opt_func)
        _print(n, f"sum, {name}", "by hand", *ratio(learner_step(learn, batch), theirs, REPEATS), 1.05)


def print_row(row: Row, dls: Any, batch: tuple[Tensor, ...], n: int, unit: float) -> None:
    "Print a strategy's step against its floor, and against the plain sum."
    learn = make_learner(dls, n, row.strategy())
    if row.floor == "sum":
        floor = learner_step(make_learner(dls, n), batch)
    else:
        floor = rows_by_hand(learn, batch, row.floor == "disjoint")
    found, seconds = ratio(learner_step(learn, batch), floor, REPEATS)
    _print(n, row.name, row.floor, found, seconds, row.target, found * seconds / unit)


def _print(n: int, name: str, against: str, found: float, seconds: float, target: float, of_sum: float = 1.0) -> None:
    verdict = "" if found <= target else "  above"
    print(f"{n:2} {name:20} {against:9} {found:6.3f}  ≤ {target:.2f}{verdict:8} {of_sum:6.2f} × sum", flush=True)


def print_memory(dls: Any, batch: tuple[Tensor, ...], n: int) -> None:
    "Print the peaks of a step against the floor: K gradients by hand, held until the last. The unit is one gradient."
    learn = make_learner(dls, n)
    gradient = sum(p.numel() * p.element_size() for p in learn.model.parameters()) / 2**20
    floor = rows_by_hand(learn, batch, False)
    floor()
    least = peak(floor)
    print(f"{n:2} memory: {n} gradients by hand {least:.0f} MiB, one gradient {gradient:.0f} MiB")
    for name, strategy in (("sum", None), ("UPGrad", UPGrad()), ("MGDA", MGDA()), ("Disjoint", Disjoint())):
        step = learner_step(make_learner(dls, n, strategy), batch)
        step(), step()
        found = peak(step)
        more = f"{(found - least) / gradient:+.2f} gradients" if strategy else ""
        print(f"{n:2} {name:20} {found:5.0f} MiB {more}", flush=True)


def main(
    counts: tuple[int, ...] = COUNTS,  # of heads
    names: tuple[str, ...] = (),  # of rows; none: all, and memory
) -> None:
    "Print a row per strategy and number of heads."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        dls = digits_dls("digit", bs=BATCH, size=SIZE, n=5 * BATCH, path=Path(folder, "scenes"))
        batch = dls.one_batch()
        for n in counts:
            if not names:
                print_plain(dls, batch, n)
            learn = make_learner(dls, n)
            floor, unit = ratio(rows_by_hand(learn, batch, False), sum_by_hand(learn, batch), REPEATS)
            print(f"{n:2} floor: {floor:.2f} × sum by hand (0.35 + 0.65 K = {0.35 + 0.65 * n:.2f} without optimizer)")
            for row in ROWS:
                if not names or row.name in names:
                    print_row(row, dls, batch, n, unit)
            if not names:
                print_memory(dls, batch, n)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(tuple(int(a) for a in given if a.isdigit()) or COUNTS, tuple(a for a in given if not a.isdigit()))
