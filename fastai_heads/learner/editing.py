"""What changes on a learner that is trained already: a head more, statistics of other data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import get_model

from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.defaults import default_head, has_default
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.settings import bind_strategy, check_strategy
from fastai_heads.learner.specs import find_target, fit_spec, in_code
from fastai_heads.learner.trial import Trial, run_trial
from fastai_heads.learner.trial_metrics import check_metrics
from fastai_heads.model import MultiHeadModel
from fastai_heads.modes import same_random
from fastai_heads.names import check_name
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.metrics import HeadMetric, head_metrics
from fastai_heads.trunks import read_by

__all__ = ["add_head", "drop_head", "set_dls"]


@same_random()
def add_head(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the new head, the last in the order
    head: HeadSpec,  # what it is
    target: str | int | None = None,  # what it predicts, by name or index; None: as the spec says, or `name`
) -> BoundHead:
    """Add a head to a trained learner. Body and other heads stay bit for bit, and what was frozen stays frozen. The
    optimizer starts anew. Raises `HeadsError`, and nothing has changed, where the head does not fit."""
    spec, target = _fit_spec(learn, name, head, target)
    network, before = get_model(learn.model), dict(learn.heads)
    added = BoundHead(name, spec, target, network[1])
    check_strategy(learn, learn.strategy, BoundHeads({**before, name: added}))
    _add_module(network, name, spec)
    try:
        trial = _try_heads(learn, (*before.values(), added))
        added.spec = trial.measured({name: (spec, target)})[name][0]
        trial.check([added])
        _set_heads(learn, {**before, name: added})
        learn.metrics = [*learn.metrics, *check_metrics(learn, trial, head_metrics(added, len(before)))]
    except HeadsError:
        network[1].drop(name)
        _set_heads(learn, before)
        raise
    return added


def drop_head(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the head
) -> None:
    "Take a head off a trained learner; body and other heads stay bit for bit."
    dropped = learn.heads[name]
    if len(learn.heads) == 1:
        raise HeadsError(f"`name`: {name!r} is the only head; a learner needs one.")
    heads = {n: h for n, h in learn.heads.items() if h is not dropped}
    check_strategy(learn, learn.strategy, BoundHeads(heads))
    get_model(learn.model)[1].drop(dropped.name)
    _set_heads(learn, heads)
    left = [m for m in learn.metrics if getattr(m, "head", None) is not dropped]
    for metric in left:
        if isinstance(metric, HeadMetric):
            metric.place = learn.heads.names.index(metric.head.name)
    learn.metrics = left


def set_dls(
    learn: Learner,  # a `MultiHeadLearner`
    dls: DataLoaders,  # with the same targets and vocabularies
    statistics: bool = False,  # take the mean and deviation of regression targets anew from its labels
) -> None:
    "Set `learn.dls = dls`, which keeps the statistics of the first data, or with those of the new."
    learn.dls = dls
    if statistics:
        for head in learn.heads.values():
            _restandardize(head, dls)


def _try_heads(learn: Learner, heads: Sequence[BoundHead]) -> Trial:
    "Send a few items through the network and these heads."
    batch = draw_sample(learn.dls, learn.data_targets).batch()
    return run_trial(learn.model, batch, {head.name: (head.spec, head.target) for head in heads})


def _set_heads(learn: Learner, heads: Mapping[str, BoundHead]) -> None:
    learn.heads = learn.loss_func.heads = BoundHeads(heads)
    bind_strategy(learn)


def _fit_spec(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the new head
    spec: HeadSpec,  # as the user wrote it
    target: str | int | None,  # a target's name or index; None: as the spec says, or `name`
) -> tuple[HeadSpec, Target]:  # fitted to its target
    "Fit the spec of a new head to its target, and check it against the heads that there are."
    if isinstance(name, HeadSpec):
        raise HeadsError(f"`name` is a text, and the spec follows: `learn.add_head('name', {in_code(name)})`.")
    check_name(name, "name")
    if name in learn.heads:
        raise HeadsError(
            f"`name`: there is a head {name!r} already; `learn.drop_head({name!r})` takes it off.", head=name
        )
    if not isinstance(spec, HeadSpec):
        made = in_code(spec) if isinstance(spec, type) and issubclass(spec, HeadSpec) else None
        hint = f" Did you mean `learn.add_head({name!r}, {made})`?" if made else ""
        raise HeadsError(f"`head` is a spec such as `ClassificationHead()`, found {spec!r}.{hint}")
    wanted = find_target(name, spec.target if target is None else target, learn.data_targets)
    _check_fits(learn, name, spec, wanted)
    return fit_spec(name, spec, wanted, learn.dls), wanted


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


def _add_module(
    model: MultiHeadModel,
    name: str,  # of the new head
    spec: HeadSpec,  # fitted
) -> None:
    "Build the head's layers on taps that the body or a trunk gives, on the model's device."
    body, heads = model[0], model[1]
    for tap in (tap for tap in spec.reads if tap not in heads.trunk_gives):
        if tap in heads.shapes:
            continue
        for found in body.tap_names([tap]):
            heads.shapes.setdefault(body.tap_also(found), TapShape.of(body.point(found)))
    reads = read_by(spec, body, heads)
    heads.add(name, spec.build(tuple(heads.shapes[tap] for tap in reads)), reads)
    heads.to(next(body.parameters()).device)


def _restandardize(
    head: BoundHead,  # of a learner; only a standardised regression head has statistics
    dls: DataLoaders,  # whose training labels give the new ones
) -> None:
    "Take the mean and deviation of a head's last layer and of its loss anew."
    if not isinstance(head.spec, RegressionHead) or head.spec.standardize is False:
        return
    head.spec = fit_spec(head.name, replace(head.spec, standardize=True), head.target, dls)
    unit = head.module.layers[-1]
    for name, values in zip(("mean", "deviation"), head.spec.standardize):
        getattr(unit, name).copy_(torch.tensor(values))
