"""What changes on a learner that is trained already: a head more, statistics of other data."""

from dataclasses import replace

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head, has_default
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.resolve import find_target, fitted, in_code
from fastai_heads.names import check_name
from fastai_heads.training.bound import BoundHead
from fastai_heads.trunks import read_by

__all__ = ["add_module", "added_spec", "restandardize"]


def added_spec(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the new head
    spec: HeadSpec,  # as the user wrote it
    target: str | int | None,  # a target's name or index; None: as the spec says, or `name`
) -> tuple[HeadSpec, Target]:  # fitted to its target
    "The spec of a new head, checked against the heads that there are."
    if isinstance(name, HeadSpec):
        raise HeadsError(f"`name` is a text, and the spec follows: `learn.add_head('name', {in_code(name)})`.")
    check_name(name, "name")
    if name in learn.heads:
        raise HeadsError(f"`name`: there is a head {name!r} already; `learn.drop_head({name!r})` takes it off.")
    if not isinstance(spec, HeadSpec):
        made = in_code(spec) if isinstance(spec, type) and issubclass(spec, HeadSpec) else None
        hint = f" Did you mean `learn.add_head({name!r}, {made})`?" if made else ""
        raise HeadsError(f"`head` is a spec such as `ClassificationHead()`, found {spec!r}.{hint}")
    wanted = find_target(name, spec.target if target is None else target, learn.data_targets)
    _check_fits(learn, name, spec, wanted)
    return fitted(name, spec, wanted, learn.dls), wanted


def _check_fits(learn: Learner, name: str, spec: HeadSpec, target: Target) -> None:
    "Refuse a head of another kind than its target, and a second one that decodes it: with the call that does."
    misfits = bool(spec.kinds) and target.kind not in spec.kinds
    decider = next((h.name for h in learn.heads.deciding if h.target.name == target.name), None)
    second = decider is not None and not spec.train_only
    if not misfits and not second:
        return
    why = (
        [
            f"{spec.label} needs a target of kind {' or '.join(sorted(spec.kinds))}, and target {target.name!r} is of "
            f"kind {target.kind}"
        ]
        if misfits
        else []
    )
    why += [f"{decider!r} and {name!r} both decode target {target.name!r}, of which one is auxiliary"] if second else []
    right = default_head(target) if misfits and has_default(target) else spec
    fields = {"target": target.name} | ({"train_only": True} if second or spec.train_only else {})
    call = f" Did you mean `learn.add_head({name!r}, {in_code(right, **fields)})`?"
    fits = not misfits or has_default(target)
    raise HeadsError(f"`heads[{name!r}]`: {'; '.join(why)}.{call if fits else ''}")


def add_module(
    model: nn.Sequential,  # (body, heads)
    name: str,  # of the new head
    spec: HeadSpec,  # fitted
) -> None:
    "Builds the head's layers on taps that the body or a trunk gives, on the model's device."
    body, heads = model[0], model[1]
    for tap in (tap for tap in spec.reads if tap not in heads.trunk_gives):
        if tap in heads.shapes:
            continue
        for found in body.tap_names([tap]):
            heads.shapes.setdefault(body.tap_also(found), TapShape.of(body.point(found)))
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
