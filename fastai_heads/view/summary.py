"""A summary of a learner's network in words: the layers removed, the layers kept, the layers that each head adds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import Tensor, nn

from fastai_heads.archs.records import Removed
from fastai_heads.bodies.contract import Body
from fastai_heads.heads.levels import LevelFrom, PyramidLevel
from fastai_heads.model import Heads
from fastai_heads.tasks.reduction import loss_name
from fastai_heads.training.bound import BoundHead

__all__ = ["Summary", "summarize"]

_NO_LAYER = (nn.Identity, nn.Sequential, nn.ModuleDict, nn.ModuleList)
_COLUMNS = ("head", "target", "tap", "layers", "output", "params", "trainable", "loss", "weight")


@dataclass(frozen=True)
class Summary:
    "A network in words. It prints as text, and as HTML in Jupyter."

    first: tuple[str, ...]  # the layers removed, kept and added
    rows: tuple[tuple[str, ...], ...]  # one per trunk and head
    last: tuple[str, ...]  # parameters, optimizer, loss function, callbacks

    def __str__(self) -> str:
        table = [_COLUMNS, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*self.first, "", *lines, "", *self.last])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{c}</th>" for c in _COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in self.rows)
        first, last = ("<br>".join(map(escape, lines)) for lines in (self.first, self.last))
        return f"<p>{first}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{last}</p>"


def summarize(
    learn: Learner,  # a `MultiHeadLearner`
    preds: Sequence[Tensor] | None = None,  # the model's answer to a sample, one per head; None: no shapes are shown
) -> Summary:
    """Describe a network: first how many layers were removed and added, then a row per trunk and head, then the
    settings of the training."""
    body, heads = get_model(learn.model)
    shapes = dict(zip(heads.names, preds)) if preds is not None else {}
    rows = [_trunk_row(heads, name) for name in heads.trunk_reads]
    rows += [_head_row(head, heads.reads[name], shapes.get(name)) for name, head in learn.heads.items()]
    report = getattr(learn, "tap_report", None)
    chosen = () if report is None else (f"Chosen:  {n} reads {h.chosen!r}: {h.reason}" for n, h in report.heads.items())
    return Summary((*_first(body, heads), *chosen), tuple(rows), tuple(_last(learn)))


def _first(body: Body, heads: Heads) -> Iterable[str]:
    weights = f", weights {body.weights}" if body.weights else ", not pretrained"
    yield f"{body.arch} ({body.zoo}{weights}) with {_some(len(heads), 'head')}"
    yield from (f"Body:    {line}" for line in body.describe())
    yield f"Removed: {_list_parts(body.removed)}"
    taps = ", ".join(f"{t} ({_place(body, t)})" for t in body.taps)
    yield f"Kept:    {_size(body)} in the body, tapped at {taps}"
    trunks = f" and {_some(len(heads.trunk_reads), 'trunk')}" if heads.trunk_reads else ""
    yield f"Added:   {_size(nn.ModuleList([heads.trunks, heads.heads]))} in {_some(len(heads), 'head')}{trunks}"
    levels = [heads.trunk(name) for name in heads.trunk_reads if isinstance(heads.trunk(name), LevelFrom)]
    if levels:
        kinds = "a simple feature pyramid" if isinstance(levels[0], PyramidLevel) else "resized"
        made = ", ".join(f"stride {level.stride} of {level.stride_in}" for level in levels)
        yield f"Levels:  {made} ({kinds}: {body.arch} has no such map), each made once for the heads that read it"
    if body.left_out:
        yield f"Trained before the classifier and left out: {_list_parts(body.left_out)}; `tap='pre_logits'` keeps them"


def _some(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _place(body: Body, tap: str) -> str:
    point = body.point(tap)
    return f"{point.channels} channels" + (f", {point.place}" if point.stride is None else f" at {point.place}")


def _list_parts(parts: Sequence[Removed]) -> str:
    if not parts:
        return "nothing"
    layers, params = sum(p.layers for p in parts), sum(p.params for p in parts)
    names = ", ".join(f"{p.name} ({p.type})" for p in parts[:4]) + (f" and {len(parts) - 4} more" if parts[4:] else "")
    return f"{_some(layers, 'layer')} with {params:,} parameters: {names}"


def _size(module: nn.Module) -> str:
    return f"{_some(_layers(module), 'layer')} with {_params(module):,} parameters"


def _layers(module: nn.Module) -> int:
    "Count the modules that do something themselves. A container, empty or not, does not count, nor does an identity."
    return sum(1 for m in module.modules() if not any(True for _ in m.children()) and not isinstance(m, _NO_LAYER))


def _params(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _trunk_row(heads: Heads, name: str) -> tuple[str, ...]:
    module = heads.trunk(name)
    return (f"{name} (trunk)", "", ", ".join(heads.trunk_reads[name]), *_counts(module, ""), "", "")


def _counts(module: nn.Module, output: str) -> tuple[str, ...]:
    every, trained = _params(module), _params(module, trainable=True)
    return str(_layers(module)), output, f"{every:,}", "yes" if trained == every else f"{trained:,}"


def _head_row(head: BoundHead, reads: tuple[str, ...], pred: Tensor | None) -> tuple[str, ...]:
    name = f"{head.name} (auxiliary)" if head.spec.train_only else head.name
    output = "" if pred is None else " × ".join(("bs", *map(str, pred.shape[1:])))
    counts = _counts(head.module, output)
    return (name, head.target.name, ", ".join(reads), *counts, loss_name(head.loss_func), f"{head.loss_weight:g}")


def _last(learn: Learner) -> Iterable[str]:
    every, trained = _params(learn.model), _params(learn.model, trainable=True)
    yield f"Parameters: {every:,}, of them trainable {trained:,}"
    if learn.opt is not None:
        frozen, groups = learn.opt.frozen_idx, len(learn.opt.param_lists)
        yield f"Groups: {groups} (the heads are the last), " + (f"frozen up to #{frozen}" if frozen else "none frozen")
    yield f"Strategy: {learn.strategy.label}"
    yield f"Optimizer: {learn.strategy.opt_label(learn.opt_func)}"
    yield f"Loss: {learn.loss_func}"
    yield "Callbacks: " + ", ".join(type(cb).__name__ for cb in learn.cbs.sorted("order"))
