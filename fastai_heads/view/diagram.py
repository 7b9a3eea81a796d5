"""The network as a diagram: body, taps, trunks, heads, their losses, and the step that follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib.pyplot as plt
from fastai.learner import Learner
from fastai.torch_core import get_model, norm_types
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from torch import Tensor, nn

from fastai_heads.model import Heads, MultiHeadModel
from fastai_heads.modes import evaluate
from fastai_heads.tasks.reduction import loss_name
from fastai_heads.training.bound import BoundHead
from fastai_heads.view.texts import number

__all__ = ["draw_heads", "write_heads"]

_SIZE, _LINE, _PAD = 8.5, 0.17, 0.09  # size of the letters in points; inches of a line, and around a text
_BETWEEN, _BESIDE = 0.16, 0.5  # inches from box to box in a column, and from column to column
_TRAINS, _FROZEN, _PLAIN = "#fde3c8", "#cfe2f3", "#f2f2f2"
_STROKE = {"color": "#666666", "lw": 0.9, "zorder": 0}
_TITLES = ("input", "body", "taps", "trunks", "heads", "losses", "step")


@dataclass
class Box:
    "One box of the diagram. It has a place once `_place` has given it one."

    key: str
    column: float  # a trunk that reads another trunk stands further right
    lines: tuple[str, ...]  # the first is bold; none: a place where a line passes between the boxes of a column
    reads: tuple[str, ...] = ()  # the boxes that it takes from
    color: str = _PLAIN
    dashed: bool = False
    y: float = 0.0  # of its middle, in inches

    @property
    def width(self) -> float:
        "Inches that the longest line needs."
        return max((_inches(text, bold=n == 0) for n, text in enumerate(self.lines)), default=0) + 2 * _PAD

    @property
    def height(self) -> float:
        "Inches of all lines."
        return len(self.lines) * _LINE + 2 * _PAD


def _inches(text: str, bold: bool) -> float:
    return (
        TextPath((0, 0), text or " ", size=_SIZE, prop={"weight": "bold" if bold else "normal"}).get_extents().x1 / 72
    )


def draw_heads(
    learn: Learner,  # a `MultiHeadLearner`
    inputs: Sequence[Tensor] = (),  # of the body, a batch of one; empty: the diagram has no shapes
) -> Figure:
    "Draw the network from left to right. Frozen parts are blue, trained parts orange; auxiliary heads are dashed."
    boxes = _pass_between(_boxes(learn, inputs))
    columns = [[b for b in boxes if b.column == n] for n in sorted({b.column for b in boxes})]
    _place(columns)
    return _draw_boxes(columns)


def write_heads(
    learn: Learner,  # a `MultiHeadLearner`
    inputs: Sequence[Tensor] = (),  # as for `draw_heads`
) -> str:
    "Write the network as a Mermaid flow chart, which GitHub draws in a README. Colours and dashes are the drawing's."
    boxes = _boxes(learn, inputs)
    nodes = {box.key: f"n{n}" for n, box in enumerate(boxes)}
    lines = ["flowchart LR"]
    for box in boxes:
        lines.append(f'    {nodes[box.key]}["{"<br>".join(map(_escape, box.lines))}"]')
        dashes = ",stroke-dasharray:4" if box.dashed else ""
        lines.append(f"    style {nodes[box.key]} fill:{box.color},stroke:#666666,color:#000000{dashes}")
    arrows = [(nodes[key], "-.->" if box.dashed else "-->", nodes[box.key]) for box in boxes for key in box.reads]
    return "\n".join([*lines, *("    " + " ".join(arrow) for arrow in arrows)]) + "\n"


def _escape(text: str) -> str:
    "Write what Mermaid would take for its own marks as its entities."
    return "".join(c if c.isalnum() or c in " .,_-()/→×" else f"#{ord(c)};" for c in text)


def _boxes(learn: Learner, inputs: Sequence[Tensor]) -> list[Box]:
    shapes = _measure_shapes(get_model(learn.model), inputs)
    return [*_body_boxes(learn, shapes), *_head_boxes(learn, shapes)]


def _measure_shapes(model: MultiHeadModel, inputs: Sequence[Tensor]) -> dict[str, str]:
    "Run the model on the inputs, and say the shape of every tap, trunk and prediction in words."
    if not len(inputs):
        return {}
    heads = model.heads
    with evaluate(model):
        taps = model.body(*inputs)
        tensors, preds = heads.run_trunks(taps), heads(taps)
    found = {f"tap {name}": tensor for name, tensor in tensors.items()}
    found |= {f"head {name}": pred for name, pred in zip(heads.names, preds)}
    found |= {f"input {name}": x for name, x in zip(model.body.input_names, inputs)}
    return {key: " × ".join(map(str, t.shape[1:])) or "1" for key, t in found.items() if isinstance(t, Tensor)}


def _body_boxes(learn: Learner, shapes: Mapping[str, str]) -> list[Box]:
    "Make the boxes of the inputs, the bodies, their taps and the trunks."
    body, heads = get_model(learn.model)
    inputs = {f"input {name}": name for name in body.input_names}
    boxes = [Box(key, 0, (name, *([shapes[key]] if key in shapes else []))) for key, name in inputs.items()]
    owner: dict[str, str] = {}
    for part in body.parts():
        (state, color), key = _state(part.body), f"body {part.title}"
        lines = (part.title, part.body.weights or "not pretrained", _params(part.body), state)
        boxes.append(Box(key, 1, lines, tuple(f"input {name}" for name in part.inputs), color))
        owner |= dict.fromkeys(part.taps, key)
    for tap in body.taps:
        shape = shapes.get(f"tap {tap}", f"{body.channels[tap]} channels")
        boxes.append(Box(f"tap {tap}", 2, (tap, shape, body.point(tap).place), (owner[tap],)))
    depth: dict[str, int] = {}
    for name, reads in heads.trunk_reads.items():
        before = _sources(heads, reads)
        depth[name] = 1 + max(depth.get(tap, -1) for tap in before)
        module = heads.trunk(name)
        state, color = _state(module)
        levels = {tap: shapes.get(f"tap {tap}") for tap in heads.trunk_gives[name]}
        sizes = [s if tap == name else f"stride {heads.shapes[tap].stride}: {s}" for tap, s in levels.items() if s]
        said = (f"{name} (trunk)", _params(module), state, *sizes)
        boxes.append(Box(f"tap {name}", 3 + depth[name] / 100, said, tuple(f"tap {t}" for t in before), color))
    return boxes


def _head_boxes(learn: Learner, shapes: Mapping[str, str]) -> list[Box]:
    "Make the boxes of the heads, of their losses, and of the step. Heads stand in the order of the taps they read."
    body, heads = get_model(learn.model)
    taps = [*body.taps, *heads.trunk_reads]
    sources = {name: _sources(heads, reads) for name, reads in heads.reads.items()}
    order = sorted(learn.heads.values(), key=lambda h: min(taps.index(t) for t in sources[h.name]))
    boxes = []
    for head in order:
        boxes.append(_head_box(head, sources[head.name], shapes.get(f"head {head.name}")))
        weight = f"weight {head.loss_weight:g}"
        boxes.append(
            Box(
                f"loss {head.name}",
                5,
                (loss_name(head.loss_func), weight),
                (f"head {head.name}",),
                dashed=boxes[-1].dashed,
            )
        )
    if len(order) > 1:
        step = learn.strategy.label, learn.strategy.opt_label(learn.opt_func)
        boxes.append(Box("step", 6, step, tuple(f"loss {h.name}" for h in order)))
    return boxes


def _pass_between(boxes: list[Box]) -> list[Box]:
    "Lead what skips a column through a place of its own there, so that no line runs behind a box."
    column, passes = {b.key: b.column for b in boxes}, dict[str, Box]()
    for box in boxes:
        reads = []
        for key in box.reads:
            start = key
            for n in sorted({c for c in column.values() if column[start] < c < box.column}):
                place = Box(f"{start} past {n}", n, (), (key,))
                key = passes.setdefault(place.key, place).key
            reads.append(key)
        box.reads = tuple(reads)
    return [*boxes, *passes.values()]


def _sources(heads: Heads, reads: Sequence[str]) -> list[str]:
    "List the taps and trunks that some taps come from, each once. A pyramid has one box for all its levels."
    owner = {tap: trunk for trunk, gives in heads.trunk_gives.items() for tap in gives}
    return list(dict.fromkeys(owner.get(tap, tap) for tap in reads))


def _head_box(head: BoundHead, reads: Sequence[str], shape: str | None) -> Box:
    state, color = _state(head.module)
    aux = head.spec.train_only
    title = f"{head.name} (auxiliary)" if aux else head.name
    kind = head.spec.label + (f" → {shape}" if shape else "")
    target = [f"target {head.target.name}"] if head.target.name != head.name else []
    lines = (title, kind, *target, f"{_params(head.module)}, {state}")
    return Box(f"head {head.name}", 4, lines, tuple(f"tap {t}" for t in reads), color, aux)


def _params(module: nn.Module) -> str:
    n = sum(p.numel() for p in module.parameters())
    if n == 0:
        return "no parameters"
    return f"{number(n / 1e6)} M parameters" if n >= 1e6 else f"{n:,} parameters"


def _state(module: nn.Module) -> tuple[str, str]:
    "Tell whether a module is frozen, in words and as a colour."
    params = list(module.parameters())
    trained = {id(p) for p in params if p.requires_grad}
    if not params:
        return "nothing to train", _PLAIN
    if len(trained) == len(params):
        return "trained", _TRAINS
    if not trained:
        return "frozen", _FROZEN
    norms = {id(p) for m in module.modules() if isinstance(m, norm_types) for p in m.parameters()}
    return ("frozen but for its norms" if trained <= norms else "frozen in part"), _FROZEN


def _place(columns: Sequence[Sequence[Box]]) -> None:
    """Place each column from top to bottom, around the middle of the tallest column. Each box stands as near as
    possible to the boxes that it is connected with."""
    tall = max(range(len(columns)), key=lambda n: sum(b.height + _BETWEEN for b in columns[n]))
    top = 0.0
    for box in columns[tall]:
        box.y, top = top - box.height / 2, top - box.height - _BETWEEN
    placed = {b.key: b for b in columns[tall]}
    for n in [*range(tall + 1, len(columns)), *range(tall - 1, -1, -1)]:
        for box in columns[n]:
            near = [placed[k].y for k in box.reads if k in placed] if n > tall else []
            near = near or [other.y for other in placed.values() if box.key in other.reads]
            box.y = sum(near) / len(near) if near else top / 2
        _spread(columns[n])
        placed |= {b.key: b for b in columns[n]}


def _spread(column: Sequence[Box]) -> None:
    "Move boxes apart where they overlap. The middle of the column stays."
    boxes = sorted(column, key=lambda b: -b.y)
    before = sum(b.y for b in boxes)
    for above, below in pairwise(boxes):
        below.y = min(below.y, above.y - (above.height + below.height) / 2 - _BETWEEN)
    shift = (before - sum(b.y for b in boxes)) / len(boxes)
    for box in boxes:
        box.y += shift


def _draw_boxes(columns: Sequence[Sequence[Box]]) -> Figure:
    "Draw the boxes and arrows in a new figure. Its data coordinates are inches."
    widths = [max(b.width for b in column) for column in columns]
    lefts = [_PAD * 2 + sum(widths[:n]) + n * _BESIDE for n in range(len(columns))]
    high = max(b.y + b.height / 2 for column in columns for b in column) + 2 * _PAD + _LINE
    low = min(b.y - b.height / 2 for column in columns for b in column) - 2 * _PAD
    width = lefts[-1] + widths[-1] + 2 * _PAD
    fig = plt.figure(figsize=(width, high - low))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(low, high))
    ax.set_axis_off()
    ends = {b.key: (left, left + w, b) for column, left, w in zip(columns, lefts, widths) for b in column}
    for column, left, w in zip(columns, lefts, widths):
        title = _TITLES[int(column[0].column)]
        ax.text(left + w / 2, high - _PAD - _LINE / 2, title, ha="center", va="center", color="grey", fontsize=_SIZE)
        for box in column:
            if box.lines:
                _draw_box(ax, box, left, w)
            else:
                ax.plot((left, left + w), (box.y, box.y), **_STROKE)
            for key in box.reads:
                _draw_arrow(ax, ends[key], left, box)
    return fig


def _draw_box(ax: Axes, box: Box, left: float, width: float) -> None:
    style = "round,pad=0,rounding_size=0.06"
    corner = (left, box.y - box.height / 2)
    line = "--" if box.dashed else "-"
    ax.add_patch(FancyBboxPatch(corner, width, box.height, style, facecolor=box.color, edgecolor="#666666", ls=line))
    for n, text in enumerate(box.lines):
        y = box.y + box.height / 2 - _PAD - (n + 0.5) * _LINE
        weight = "bold" if n == 0 else "normal"
        ax.text(left + width / 2, y, text, ha="center", va="center", fontsize=_SIZE, fontweight=weight)


def _draw_arrow(ax: Axes, source: tuple[float, float, Box], left: float, box: Box) -> None:
    "Draw an arrow from the right side of one box to the left side of another; a line to where one passes a column."
    if not box.lines:
        ax.plot((source[1], left), (source[2].y, box.y), **_STROKE)
        return
    style = {"arrowstyle": "-|>", "ls": "--" if box.dashed else "-", "shrinkA": 0, "shrinkB": 0}
    style |= {"color": _STROKE["color"], "lw": _STROKE["lw"]}
    ax.annotate("", xy=(left, box.y), xytext=(source[1], source[2].y), arrowprops=style, zorder=0)
