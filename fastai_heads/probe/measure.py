"""Probes of every tap for every head, measured on folds of the training set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastai_heads.data.targets import Target
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.heads.segmentation import SegmentationHead
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.probe.answers import head_answer, linear_targets
from fastai_heads.probe.collect import Collected
from fastai_heads.probe.report import HeadProbes, Score
from fastai_heads.probe.ridge import Ridge
from fastai_heads.training.bound import BoundHead
from fastai_heads.training.metrics import HeadMetric, head_metrics

__all__ = ["Ridges", "column_groups", "probe_head", "why_not"]

FOLDS, LEAST = 5, 10  # least labelled items, of which probes can be told apart
NEXT = 3  # taps after the best one that are tried beside it
_EACH = ("multilabel", "regression")  # a ridge for every column
_KINDS = frozenset({"category", "multilabel", "regression", "point", "box"})


def why_not(
    spec: HeadSpec,  # fitted
    target: Target,
) -> str:  # '' where a probe answers for it
    "Say why no linear probe answers for a head."
    if isinstance(spec, PooledSpec) and target.kind in _KINDS:
        return ""
    if isinstance(spec, SegmentationHead) and target.kind == "mask" and spec.mode == "multiclass":
        return ""
    return f"no linear probe answers for a {spec.label} on a target of kind {target.kind}"


class Ridges:
    "The decompositions there are, by features and rows, so that heads share them."

    def __init__(self):
        self._known: dict[tuple, Ridge] = {}

    def of(
        self,
        key: tuple,  # what the features are
        rows: Tensor,  # (n,) bool, the items to fit on
        blocks: Callable[[], Sequence[Tensor]],  # gives the features, (n, d) each
    ) -> Ridge:
        "Give the decomposition of features on some rows."
        key = (*key, rows.numpy().tobytes())
        if key not in self._known:
            self._known[key] = Ridge([x[rows] for x in blocks()])
        return self._known[key]


def column_groups(
    y: Tensor,  # (n, k) NaN where there is no label
) -> Iterator[tuple[list[int], Tensor]]:  # columns, and (n,) bool the rows that they have
    "Group the columns that have labels in the same rows."
    known = ~y.isnan()
    groups: dict[bytes, list[int]] = {}
    for k in range(y.shape[1]):
        groups.setdefault(known[:, k].numpy().tobytes(), []).append(k)
    for columns in groups.values():
        yield columns, known[:, columns[0]]


@dataclass(frozen=True)
class _Question:
    "One head's targets, and how a probe's answer to them is measured."

    name: str
    spec: HeadSpec
    metric: HeadMetric
    y: Tensor  # (n, k) for the linear layer
    targets: Tensor  # (n, …) for the metric
    folds: Tensor  # (n,)
    each: bool  # a strength for every column
    mask: bool

    def score(self, taps: tuple[str, ...], ridges: Ridges, blocks: Callable[[], Sequence[Tensor]], key: tuple) -> Score:
        "Measure a probe of some taps."
        predicted = torch.full_like(self.y, torch.nan)
        for columns, rows in column_groups(self.y):
            ridge, y = ridges.of(key, rows, blocks), self.y[rows][:, columns]
            strengths = ridge.fit(y, self.each).strengths
            predicted[rows.nonzero(), torch.tensor(columns)] = ridge.leave_out(y, self.folds[rows], strengths)
        answer = head_answer(self.spec, predicted.nan_to_num())
        found = (self._measure(answer[part], self.targets[part]) for part in self._parts())
        return Score(taps, tuple(v for v in found if v is not None))

    def _parts(self) -> Iterator[Tensor]:
        labelled = ~self.y.isnan().all(1)
        for fold in self.folds.unique():
            part = (self.folds == fold) & labelled
            if part.any():
                yield part

    def _measure(self, pred: Tensor, targ: Tensor) -> float | None:
        if self.mask:  # as an image that is one pixel wide
            pred, targ = pred.T[None, ..., None], targ[None, :, None]
        self.metric.reset()
        self.metric.accumulate(SimpleNamespace(pred=(pred,), yb=_At(targ), to_detach=lambda x: x.detach()))
        return None if self.metric.value is None else float(self.metric.value)


class _At(tuple):
    "The one target that there is, at every place."

    def __new__(cls, targ: Tensor):
        return super().__new__(cls, (targ,))

    def __getitem__(self, place: Any) -> Tensor:
        return tuple.__getitem__(self, 0)


def probe_head(
    name: str,  # of the head
    spec: HeadSpec,  # fitted
    target: Target,
    default: str,  # the tap that it would read without probes
    found: Collected,
    ridges: Ridges,
) -> HeadProbes | str:  # or why there is none
    "Measure a probe of every tap for one head, and the best tap together with others."
    mask = isinstance(spec, SegmentationHead)
    labels = found.labels[target.index]
    folds = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    if mask:
        labels, folds = labels.flatten(), folds.repeat_interleave(labels.shape[1])
    y = linear_targets(spec, labels)
    if min(int(rows.sum()) for _, rows in column_groups(y)) < LEAST:
        return f"fewer than {LEAST} of the {found.n} items looked at are labelled"
    question = _Question(name, spec, _metric(name, spec, target), y, labels, folds, target.kind in _EACH, mask)
    features = _features(spec, target, found, mask)
    scores = {tap: question.score((tap,), ridges, lambda x=x: [x], (tap, *kind)) for tap, (kind, x) in features.items()}
    probes = HeadProbes(name, question.metric.called, question.metric.higher_is_better, scores, None, default)
    return replace(probes, pair=_best_pair(probes, question, features, ridges))


def _best_pair(
    probes: HeadProbes, question: _Question, features: Mapping[str, tuple[tuple, Tensor]], ridges: Ridges
) -> Score | None:
    ranked = sorted(probes.scores.values(), key=lambda s: s.mean, reverse=probes.higher_is_better)
    (first,), others = ranked[0].taps, [s.taps[0] for s in ranked[1 : 1 + NEXT]]
    pairs = []
    for other in others:
        both = tuple(tap for tap in features if tap in (first, other))
        blocks = [features[tap][1] for tap in both]
        pairs.append(question.score(both, ridges, lambda b=blocks: b, (both, *features[first][0], *features[other][0])))
    pick = max if probes.higher_is_better else min
    return pick(pairs, key=lambda s: s.mean) if pairs else None


def _features(
    spec: HeadSpec, target: Target, found: Collected, mask: bool
) -> dict[str, tuple[tuple, Tensor]]:  # tap → (what was made of it, (n, d))
    if mask:
        return {t: (("pixels", i), x.flatten(0, 1)) for (t, i), x in found.pixels.items() if i == target.index}
    return {t: ((pool,), x) for (t, pool), x in found.pooled.items() if pool in (spec.pool, None)}


def _metric(name: str, spec: HeadSpec, target: Target) -> HeadMetric:
    "Give the first metric of a head; where it has none, of its kind."
    for like in (spec, replace(spec, metrics=None, train_only=False)):
        found = head_metrics(BoundHead(name, like, target, None), 0)
        if found:
            break
    return found[0]
