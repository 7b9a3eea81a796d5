"""What changes on a learner that is trained already: a head more, statistics of other data."""

from dataclasses import replace

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from fastai_heads.archs.records import Level
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.resolve import check_deciding, find_target, fitted
from fastai_heads.model import read_by
from fastai_heads.names import check_name
from fastai_heads.training.bound import BoundHead

__all__ = ["add_module", "added_spec", "restandardize"]


def added_spec(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the new head
    spec: HeadSpec,  # as the user wrote it
    target: str | int | None,  # a target's name or index; None: as the spec says, or `name`
) -> tuple[HeadSpec, Target]:  # fitted to its target
    "The spec of a new head, checked against the heads that there are."
    check_name(name, "name")
    if name in learn.heads:
        raise HeadsError(f"`name`: there is a head {name!r} already; `learn.drop_head({name!r})` takes it off.")
    if not isinstance(spec, HeadSpec):
        raise HeadsError(f"`head` is a spec such as `ClassificationHead()`, found {spec!r}.")
    wanted = find_target(name, spec.target if target is None else target, learn.data_targets)
    check_deciding({**{n: (h.spec, h.target) for n, h in learn.heads.items()}, name: (spec, wanted)})
    return fitted(name, spec, wanted, learn.dls), wanted


def add_module(
    model: nn.Sequential,  # (body, heads)
    name: str,  # of the new head
    spec: HeadSpec,  # fitted
) -> None:
    "Builds the head's layers on taps that the body or a trunk gives, on the model's device."
    body, heads = model[0], model[1]
    for tap in (tap for tap in spec.reads if tap not in heads.trunk_gives):
        source = body.level_source(tap) if isinstance(tap, Level) else tap
        if source is not None and source not in heads.shapes:
            found = body.tap_also(source)
            heads.shapes.setdefault(found, TapShape(found, body.channels[found], body.strides[found]))
    reads = read_by(spec, body, heads)
    heads.add(name, spec.build(tuple(heads.shapes[tap] for tap in reads)), reads)
    heads.to(next(body.parameters()).device)


def restandardize(
    head: BoundHead,  # of a learner; only a standardised regression head has statistics
    dls: DataLoaders,  # whose training labels give the new ones
) -> None:
    "Mean and deviation of a head's last layer and of its loss, taken anew."
    if not isinstance(head.spec, RegressionHead) or head.spec.standardize is False:
        return
    head.spec = fitted(head.name, replace(head.spec, standardize=True), head.target, dls)
    unit = head.module.layers[-1]
    for name, values in zip(("mean", "deviation"), head.spec.standardize):
        getattr(unit, name).copy_(torch.tensor(values))
    head.loss_func = head.spec.loss_func()
