"""`multihead_learner`: from data and an arch to a learner with one head per target."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.contract import Body, BodySpec, Found
from fastai_heads.data.given import check_columns, check_loaders
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner.arguments import check_settings
from fastai_heads.learner.found import check_options, find_arch
from fastai_heads.learner.heads_file import read_heads
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.learner.settings import accept_trial
from fastai_heads.learner.specs import rename_targets, resolve_heads, state_targets
from fastai_heads.learner.taps import AUTO, choose_taps, start_heads
from fastai_heads.learner.trial import run_trial
from fastai_heads.model import build_model
from fastai_heads.modes import same_random
from fastai_heads.names import check_name
from fastai_heads.trunks import Trunk

__all__ = ["check_keywords", "multihead_learner"]

_ELSEWHERE = {
    "loss_func": "every head has its own: `heads={name: ClassificationHead(loss=…)}`",
    "splitter": "the groups are the body's and one for all heads; a head's own rate is `lr_mult=` of its spec",
    "n_out": "it is a head's: `heads={name: ClassificationHead(n_out=…)}`",
    "cut": "name taps instead: `heads={name: ClassificationHead(tap='layer3')}`; `cut_points(arch)` lists them",
    "custom_head": "`heads={name: CustomHead(module)}`",
    **{
        option: f"it is a head's: `heads={{name: ClassificationHead({option}=…)}}`"
        for option in ("lin_ftrs", "ps", "first_bn", "bn_final", "lin_first", "y_range", "init", "pool", "last_scale")
    },
    "concat_pool": "it is a head's: `heads={name: ClassificationHead(pool='avg')}`",
}
"What `vision_learner` takes and a learner with several heads says elsewhere."


@same_random()
def multihead_learner(
    dls: DataLoaders,  # from a DataBlock or an ImageDataLoaders factory, with one target or several
    arch: str
    | Callable[..., nn.Module]
    | nn.Module
    | BodySpec
    | Mapping[str, Any],  # a torchvision or fastai function, a timm name, a network, a body; `TabularBody(…)` of a row,
    # `TextBody(…)` of a text; over several inputs, or several bodies on one, a dict of name to any of these, or `On(…)`
    heads: Sequence[str]
    | Mapping[str, HeadSpec | Mapping[str, Any] | None]
    | str
    | Path
    | None = None,  # names in target order; name → spec, or a dict such as {'kind': 'classification', 'tap': 'layer3'};
    # a TOML or JSON file of such dicts; None: inferred
    *,
    taps: str | None = None,  # 'auto': `probe_taps` chooses for every pooled head that names no tap but `features`
    trunk: Mapping[str, Trunk] | None = None,  # name → layers shared by the heads that tap it by that name
    strategy: Any = None,  # how the losses become one step: None (their sum by `loss_weight`), a scalarizer or an
    # aggregator of torchjd, `Balance(aggregator, over=…)`, or `Disjoint(opt_func=…, lrs={…})`; a class, or its name,
    # is made for as many heads as there are: `UW`, 'UPGrad', `Disjoint`
    pretrained: bool = True,  # with the arch's default weights; the body starts frozen then
    weights: Enum | str | None = None,  # torchvision's weights enum or name, or a timm tag, instead of the default
    n_in: int = 3,  # channels of the image
    normalize: bool = True,  # by the mean and deviation of the weights in use, unless `dls` has a `Normalize`
    body_kwargs: Mapping[str, Any] | None = None,  # for the arch: `img_size`, `drop_path_rate`, …
    fused: bool = True,  # step fastai's `Adam` and `SGD` by torch's fused kernels, where there are such
    metrics: Any = None,  # a metric or a list of them, for every head that can take it and whose spec names none
    **learner_kwargs: Any,  # fastai's `Learner`'s: opt_func, lr, cbs, path, model_dir, wd, wd_bn_bias, train_bn, moms
) -> MultiHeadLearner:
    """Make a learner with one pretrained body and a head per target.

    With `heads=None` every target of `dls` gets the head of its kind. A list renames the targets in order. In a
    dict, `spec.target` says which target a head predicts; by default it is the one that has the head's name. Targets
    that are not named get their default head, and `'age': None` leaves one out. Raises `HeadsError`, before any
    training, for what does not fit. It names the parameter, what was expected and what was found. To find that out,
    a few items go through the whole network, and through every head's loss, decoding and metrics."""
    check_loaders(dls)
    check_columns(dls)
    check_keywords(learner_kwargs)
    settings = {
        "pretrained": pretrained,
        "normalize": normalize,
        "n_in": n_in,
        "body_kwargs": body_kwargs,
        "fused": fused,
    }
    check_settings({**settings, "fused": fused, "metrics": metrics, **learner_kwargs})
    heads = read_heads(heads)
    data = inspect_data(dls, state_targets(heads))
    dls, targets = data.dls, rename_targets(heads, data.targets)
    specs = resolve_heads(heads, targets, dls, arch.head if isinstance(arch, BodySpec) else {})
    trunks = _check_trunks(trunk or {}, specs)
    options = {"pretrained": pretrained, "weights": weights, "n_in": n_in, **check_options(body_kwargs or {})}
    specs, report = choose_taps(specs, _is_auto(taps), arch, options, data, normalize)
    body = _build(find_arch(arch, data.inputs, options), _needed_taps(specs, trunks))
    inputs = data.sample.inputs()
    body.check_inputs(inputs)
    model = build_model(body, {name: spec for name, (spec, _) in specs.items()}, trunks, inputs)
    if normalize:
        data.add_transforms(body.transforms())
    start_heads(model, specs, data, normalize)
    trial = run_trial(model, data.sample.batch(), specs)
    learn = MultiHeadLearner(dls, model, trial.measured(specs), targets, strategy, fused=fused, **learner_kwargs)
    accept_trial(learn, trial, metrics)
    learn.tap_report = report
    if body.weights:
        learn.freeze()
    return learn


def _is_auto(taps: object) -> bool:
    "Tell whether probes choose the taps. Refuses anything else that is no tap's place here."
    if taps not in (None, AUTO):
        raise HeadsError(
            f"`taps` is None or 'auto', found {taps!r}: name a head's tap in its spec, "
            "`heads={name: ClassificationHead(tap=…)}`.",
            parameter="taps",
        )
    return taps == AUTO


def check_keywords(
    kwargs: Mapping[str, Any],  # of `multihead_learner`, that it does not name itself
) -> None:
    "Refuse what fastai's `Learner` does not take, and name the place of what is said elsewhere."
    known = [p for p in signature(Learner).parameters if p not in ("dls", "model")]
    for name in kwargs:
        if name in _ELSEWHERE:
            raise HeadsError(f"`{name}` is not a parameter of `multihead_learner`: {_ELSEWHERE[name]}.")
        if name not in known:
            options = [p for p in (*signature(multihead_learner).parameters, *known) if p != "learner_kwargs"]
            raise HeadsError(f"`{name}` is not a parameter of `multihead_learner`.{did_you_mean(name, options)}")


def _check_trunks(trunks: Mapping[str, Trunk], specs: Mapping[str, tuple[HeadSpec, Target]]) -> dict[str, Trunk]:
    "Refuse what is no trunk, and a trunk that nothing reads."
    if not isinstance(trunks, Mapping):
        raise HeadsError(f"`trunk` is a dict of name to `Trunk(module, tap=…)`, found {type(trunks).__name__}.")
    for name, trunk in trunks.items():
        check_name(name, "trunk")
        if not isinstance(trunk, Trunk):
            raise HeadsError(f"`trunk[{name!r}]` is a `Trunk(module, tap=…)`, found {type(trunk).__name__}.")
    read = [*(tap for spec, _ in specs.values() for tap in spec.reads), *(t for k in trunks.values() for t in k.reads)]
    for name in trunks:
        if name not in {_trunk_of(tap, trunks) for tap in read}:
            raise HeadsError(f"`trunk[{name!r}]` is read by no head: pass `tap={name!r}` to the heads that share it.")
    return dict(trunks)


def _trunk_of(tap: str | int | Level, trunks: Mapping[str, Trunk]) -> str | None:
    "Find the trunk that a tap is, or is a level of."
    names = (tap, tap.rpartition(".")[0]) if isinstance(tap, str) else ()
    return next((name for name in names if name in trunks), None)


def _needed_taps(
    specs: Mapping[str, tuple[HeadSpec, Target]], trunks: Mapping[str, Trunk]
) -> dict[str | int | Level, str]:  # tap → who reads it, for messages
    readers = {f"`heads[{name!r}]`": spec.reads for name, (spec, _) in specs.items()}
    readers |= {f"`trunk[{name!r}]`": trunk.reads for name, trunk in trunks.items()}
    return {tap: who for who, taps in reversed(readers.items()) for tap in taps if _trunk_of(tap, trunks) is None}


def _build(found: Found, taps: Mapping[str | int | Level, str]) -> Body:
    "Build the body, with every tap that is read. An error about a tap says who reads it."
    try:
        return found.build(tuple(taps))
    except HeadsError as error:
        if error.tap not in taps:
            raise
        raise error.within(taps[error.tap]) from None
