"""Which tap a head should read: `probe_taps`, and what `tap='auto'` and `from_probe=True` do with it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any

from fastai.data.core import DataLoaders
from fastai.torch_core import no_random
from fasttransform import Transform

from fastai_heads.archs.records import FEATURES, INPUT
from fastai_heads.bodies.contract import Body, BodySpec, Found
from fastai_heads.data.given import check_columns, check_loaders
from fastai_heads.data.inspect import Inspected, inspect_data
from fastai_heads.data.plain import PlainDatasets
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.spec import HeadSpec, is_number
from fastai_heads.learner.arguments import check_settings
from fastai_heads.learner.found import check_options, find_arch
from fastai_heads.learner.specs import rename_targets, resolve_heads, state_targets
from fastai_heads.model import MultiHeadModel
from fastai_heads.modes import evaluate
from fastai_heads.probe.collect import Collected, collect
from fastai_heads.probe.measure import Ridges, probe_head, why_not
from fastai_heads.probe.report import HeadProbes, TapReport
from fastai_heads.probe.start import start_at_probe

__all__ = ["AUTO", "choose_taps", "probe_taps", "start_heads"]

AUTO = "auto"
ITEMS = 1024  # looked at: more say little more of which layer
Specs = Mapping[str, tuple[HeadSpec, Target]]


def probe_taps(
    dls: DataLoaders,  # as for `multihead_learner`, and so are the others
    arch: Any,
    taps: Sequence[str | int] | None = None,  # names or strides to look at; None: all that `cut_points` lists
    heads: Sequence[str] | Mapping[str, HeadSpec | None] | None = None,
    *,
    pretrained: bool = True,
    weights: Enum | str | None = None,
    n_in: int = 3,
    normalize: bool = True,
    body_kwargs: Mapping[str, Any] | None = None,
    n: int = ITEMS,  # training items at most, spread over the set
) -> TapReport:
    """Measure which tap each head should read, by linear probes in closed form, after one pass of the body.

    Only training items are looked at, without augmentation. A probe is a ridge regression on the pooled tap, and
    leave-one-out chooses its strength; of a mask, on the map at some pixels. The metric of a head is measured on five
    folds that the probe has not seen. What it says holds for a frozen body. `dls` and the random state stay as they
    were."""
    check_loaders(dls)
    check_columns(dls)
    check_settings({"pretrained": pretrained, "normalize": normalize, "n_in": n_in, "body_kwargs": body_kwargs})
    if not is_number(n, least=10) or n != int(n):
        raise HeadsError(f"`n` is a whole number of at least 10, found {n!r}.", parameter="n")
    data = inspect_data(dls, state_targets(heads))
    targets = rename_targets(heads, data.targets)
    specs = resolve_heads(heads, targets, data.dls, arch.head if isinstance(arch, BodySpec) else {})
    options = {"pretrained": pretrained, "weights": weights, "n_in": n_in, **check_options(body_kwargs or {})}
    find = partial(find_arch, deepcopy(arch), data.inputs, options)
    return _measure(find, _ready(arch), data, specs, normalize, n, taps)


def choose_taps(
    specs: Specs,  # name → (fitted spec, its target)
    everywhere: bool,  # choose for every pooled head that reads `features`, not only where `tap='auto'`
    arch: Any,  # of `multihead_learner`
    options: Mapping[str, Any],  # of an arch of an image
    data: Inspected,
    normalize: bool,
) -> tuple[Specs, TapReport | None]:  # specs with a tap each; None: there was nothing to choose
    "Let probes choose the tap of the heads that ask for it. Refuses heads that no probe answers for."
    asked = {n: s for n, s in specs.items() if s[0].tap == AUTO}
    for name, (spec, target) in asked.items():
        why = why_not(spec, target) if isinstance(spec, PooledSpec) else f"{spec.label} is none"
        if why:
            raise HeadsError(
                f"`heads[{name!r}]`: `tap='auto'` is for pooled heads, and {why}. Name its tap: "
                "`probe_taps(dls, arch)` shows what each gives.",
                parameter="tap",
                head=name,
            )
    if everywhere:
        asked |= {n: s for n, s in specs.items() if s[0].tap == FEATURES and not why_not(*s)}
    if not asked:
        return specs, None
    if len(data.inputs) > 1 or isinstance(arch, Mapping):
        raise HeadsError(
            "`taps='auto'` chooses among the taps of one body: over several, look at `probe_taps(dls, arch)` and name "
            "the taps that a head is to read, such as `tap=('photo.layer3', 'row.features')`.",
            parameter="taps",
        )
    find = partial(find_arch, deepcopy(arch), data.inputs, options)
    report = _measure(find, _ready(arch), data, asked, normalize, ITEMS, None)
    taps = {name: report.taps.get(name, FEATURES) for name in asked}
    return {n: (replace(s, tap=taps[n]) if n in taps else s, t) for n, (s, t) in specs.items()}, report


def start_heads(
    model: MultiHeadModel,
    specs: Specs,  # name → (fitted spec, its target)
    data: Inspected,
    normalize: bool,
) -> None:
    "Set the weights of the heads with `from_probe=True`: they start where a linear probe of their taps ends."
    body, heads = model
    asked = {n: s for n, s in specs.items() if getattr(s[0], "from_probe", False)}
    for name, (spec, target) in asked.items():
        trunk = any(tap not in body.taps for tap in heads.reads[name])
        why = "it reads a trunk" if trunk else why_not(spec, target)
        if why:
            raise HeadsError(f"`from_probe` of `heads[{name!r}]`: {why}.", parameter="from_probe", head=name)
    if not asked:
        return
    with evaluate(body):
        found = _collect(body, data, asked, normalize, ITEMS)
    for name, (spec, target) in asked.items():
        keys = [(tap, None if body.strides[tap] is None else spec.pool) for tap in heads.reads[name]]
        start_at_probe(heads[name], spec, target, [found.pooled[key] for key in keys], found.labels[target.index])


def _measure(
    find: Callable[[], Found],
    ready: tuple[str, ...],
    data: Inspected,
    specs: Specs,
    normalize: bool,
    n: int,
    taps: Iterable[str | int] | None,
) -> TapReport:
    start = time.process_time()
    left_out = {name: why_not(*pair) for name, pair in specs.items() if why_not(*pair)}
    asked = {name: pair for name, pair in specs.items() if name not in left_out}
    if not asked:
        raise HeadsError(f"`heads`: {'; '.join(f'{k}: {w}' for k, w in left_out.items())}.", parameter="heads")
    with no_random():
        found = find()
        listed = [p.name for p in found.points if p.name not in found.unlisted and _is_probed(p)]
        body = found.build(ready or (listed if taps is None else tuple(taps)))
        body.check_inputs(data.sample.inputs())
        collected = _collect(body, data, asked, normalize, n)
    ridges, heads = Ridges(), {}
    for name, (spec, target) in asked.items():
        probes = probe_head(name, spec, target, FEATURES, collected, ridges)
        if isinstance(probes, HeadProbes):
            heads[name] = probes
        else:
            left_out[name] = probes
    seconds = time.process_time() - start
    return TapReport(body.arch, body.weights, heads, left_out, collected.n, seconds, collected.pass_seconds)


def _collect(body: Body, data: Inspected, specs: Specs, normalize: bool, n: int) -> Collected:
    dl = data.dls.train
    plain = isinstance(dl.dataset, PlainDatasets)  # its images are taken as they are
    transforms: Sequence[Transform] = body.transforms() if normalize and not plain else ()
    pools = [spec.pool for spec, _ in specs.values() if isinstance(spec, PooledSpec)]
    targets = sorted({target.index for _, target in specs.values()})
    masks = sorted({target.index for _, target in specs.values() if target.kind == "mask"})
    if dl.device is not None:
        body.to(dl.device)
    return collect(body, dl, transforms, pools, targets, masks, n)


def _is_probed(point: Any) -> bool:
    "Tell whether a tap is listed: a map or a vector that the body makes."
    return point.name.rpartition(".")[2] != INPUT and not point.sequence


def _ready(arch: Any) -> tuple[str, ...]:
    "List the taps of a body that is cut already; it has no others."
    return arch.taps if isinstance(arch, Body) else ()
