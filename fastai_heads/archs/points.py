"""What can be tapped in an arch, and what a cut takes off."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from fastai.vision.learner import create_head
from torch import nn

from fastai_heads.archs.records import FEATURES, INPUT, Measured, Network, Removed, TapPoint
from fastai_heads.archs.source import Request, find_empty, find_network
from fastai_heads.archs.surgery import taken_off

__all__ = ["CutPoints", "Parts", "all_taps", "arch_points", "parts_of", "sort_out"]


def all_taps(network: Network, measured: Measured) -> tuple[TapPoint, ...]:
    "List every tap of an arch from the batch itself to the vector that the classifier reads."
    return (TapPoint(INPUT, "", network.n_in, 1, 0), *measured.taps)


def parts_of(net: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
    "List every module and bare parameter by its path, in the network's order."
    found: dict[str, nn.Module | nn.Parameter] = {}
    for path, module in net.named_modules():
        if path:
            found[path] = module
        for name, p in module.named_parameters(recurse=False):
            found[f"{path}.{name}" if path else name] = p
    return found


@dataclass(frozen=True)
class Parts:
    "What becomes of a network when it is cut."

    removed: tuple[Removed, ...]  # all that is not in the body
    left_out: tuple[Removed, ...]  # of that, what is trained and lies between the last map and the classifier


def sort_out(
    before: dict[str, nn.Module | nn.Parameter],  # of the whole network, from `parts_of`
    net: nn.Module,  # what is left of it
    measured: Measured,
) -> Parts:
    "Tells what was taken off a network, and which of it the pretrained classifier would have read."
    removed = taken_off(before, net)
    kept = {id(o) for o in (*net.modules(), *net.parameters())}
    head = {p: before[p] for p in measured.head_modules if p in before and id(before[p]) not in kept}
    trained = {p: m for p, m in head.items() if not isinstance(m, nn.Module) or _own_parameters(m)}
    order = list(before)
    return Parts(removed, taken_off({p: trained[p] for p in sorted(trained, key=order.index)}, net))


def _own_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


@dataclass(frozen=True)
class CutPoints:
    "The taps of an arch from input to classifier and what a cut takes off; prints as a table."

    arch: str  # name of the arch
    zoo: str  # where it was found
    taps: tuple[TapPoint, ...]  # from the input on
    removed: tuple[Removed, ...]  # taken off by a cut at `end`
    left_out: tuple[Removed, ...]  # of that, what is kept by tapping `pre_logits`
    classifier: tuple[str, ...]  # paths of the pretrained classifier
    end: str = FEATURES  # the tap that the cut spoken of is made at

    def __str__(self) -> str:
        rows = [("tap", "module", "channels", "stride", "params"), *self._rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) for r in rows
        ]
        lines.insert(1, "─" * len(lines[0]))
        return "\n".join([f"{self.arch} ({self.zoo})", *(line.rstrip() for line in lines), "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{c}</th>" for c in ("tap", "module", "channels", "stride", "params"))
        body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in self._rows())
        notes = "".join(f"<p>{escape(n)}</p>" for n in self._notes())
        title = f"<b>{escape(self.arch)}</b> ({escape(self.zoo)})"
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                t.name,
                t.module,
                str(t.channels),
                "" if t.stride is None else str(t.stride),
                "" if t.params is None else f"{t.params:,}",
            )
            for t in self.taps
        ]

    def _notes(self) -> list[str]:
        notes = [f"Cut at `{self.end}`, removed: {_listed(self.removed)}."]
        if self.left_out:
            notes.append(
                f"Of these trained before the classifier: {_listed(self.left_out)}; tap='pre_logits' keeps them."
            )
        if self.classifier:
            notes.append(f"Classifier: {', '.join(self.classifier)}.")
        last = next(t for t in self.taps if t.name == self.end)
        return [*notes, _new_head(last.channels)] if last.stride else notes


def _new_head(channels: int) -> str:
    "Describe what fastai's `create_head` puts on a map."
    with torch.device("meta"):
        one, two = (create_head(channels, n_out) for n_out in (1, 2))
    layers = sum(1 for m in one.modules() if not any(True for _ in m.children()))
    params, more = (sum(p.numel() for p in head.parameters()) for head in (one, two))
    return (
        f"fastai's new head would add: {layers} layers, {params:,} parameters for one output, "
        f"{more - params:,} more for each further one."
    )


def _listed(parts: tuple[Removed, ...]) -> str:
    layers, params = sum(p.layers for p in parts), sum(p.params for p in parts)
    names = ", ".join(f"{p.name} ({p.type})" for p in parts)
    return f"{names or 'nothing'} – {layers} layers, {params:,} parameters"


def arch_points(
    arch: str | Callable[..., nn.Module] | nn.Module,  # name, function or network
    *,
    n_in: int = 3,  # channels of the image
    **arch_kwargs: Any,  # for the arch
) -> CutPoints:
    "Show what can be tapped in an arch and what a cut takes off, without weights and on the meta device where it can."
    network, measured = _on_paper(arch, n_in, arch_kwargs)
    before = parts_of(network.net)
    end = FEATURES if any(t.name == FEATURES for t in measured.taps) else measured.taps[-1].name
    network.cut.prune(network.net, (end,), measured, network.shape)
    parts = sort_out(before, network.net, measured)
    return CutPoints(
        arch=network.name,
        zoo=network.zoo,
        taps=all_taps(network, measured),
        removed=parts.removed,
        left_out=parts.left_out,
        classifier=network.cut.classifier,
        end=end,
    )


def _on_paper(arch: object, n_in: int, kwargs: dict[str, Any]) -> tuple[Network, Measured]:
    "Find the network and measure it, without numbers if it can be built so."
    request = Request(arch, pretrained=False, n_in=n_in, kwargs=kwargs)
    try:
        network = find_empty(request)
        return network, network.cut.measure(network.net, network.shape)
    except (RuntimeError, NotImplementedError, TypeError):
        network = find_network(request)
        return network, network.cut.measure(network.net, network.shape)
