"""Trains several heads on digit scenes on as many processes as `torchrun` starts, on GPUs or on CPUs.

    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py --strategy UPGrad

On two nodes, run the same command on each. The name of the first node is the meeting place:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node1:29500 examples/train_distributed.py

`--path` is a folder that all nodes see. Without `torchrun` the script trains in one process."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from fastai.vision.all import SaveModelCallback, set_seed
from torchjd import aggregation, scalarization

from fastai_heads import Balance, Disjoint, digits_dls, multihead_learner

TARGETS = ("digit", "tags", "ink", "centre", "box")


def options() -> Namespace:
    "Read the options of the command line."
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", default="sum", help="sum, disjoint, or a scalarizer or aggregator of TorchJD")
    parser.add_argument("--over", default="body", choices=("body", "taps"), help="what an aggregator balances")
    parser.add_argument("--arch", default="resnet10t", help="a timm name")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--bs", type=int, default=16, help="items of a batch on each process")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--scenes", type=int, default=2400, help="a fifth of them to validate")
    parser.add_argument("--missing", type=float, default=0.0, help="share of the training labels that is taken away")
    parser.add_argument("--path", type=Path, default=Path("digits"), help="folder of the scenes and the weights")
    return parser.parse_args()


def strategy(
    name: str,  # 'sum', 'disjoint', or a class of torchjd.scalarization or torchjd.aggregation
    over: str,  # 'body' or 'taps', for an aggregator
) -> object:  # for `multihead_learner`
    "Make the strategy of a name."
    if name in ("sum", "disjoint"):
        return Disjoint() if name == "disjoint" else None
    if hasattr(aggregation, name):
        return Balance(getattr(aggregation, name), over=over)
    return getattr(scalarization, name)


def main(args: Namespace) -> None:
    "Train, and print the best epoch's losses and metrics."
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    set_seed(0)
    dls = digits_dls(TARGETS, bs=args.bs, n=args.scenes, missing=args.missing, path=args.path / "scenes")
    learn = multihead_learner(
        dls, args.arch, pretrained=False, strategy=strategy(args.strategy, args.over), path=args.path
    )
    with learn.distrib_ctx():
        learn.fit_one_cycle(args.epochs, args.lr, cbs=SaveModelCallback(fname="digits"))
        best = learn.validate()
    if not int(os.environ.get("RANK", 0)):
        print(", ".join(f"{name} {value:.4f}" for name, value in zip(["loss", *_columns(learn)], best)))


def _columns(learn) -> list[str]:
    return [f"{name} loss" for name in learn.heads] + [metric.name for metric in learn.metrics]


if __name__ == "__main__":
    main(options())
