"""What probes of the taps found: a table, a picture, and the tap that each head should read."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["HeadProbes", "Score", "TapReport"]


@dataclass(frozen=True)
class Score:
    "How well probes of a tap, or of two, answer for a head: its metric on folds of the training set left out."

    taps: tuple[str, ...]  # one or two
    folds: tuple[float, ...]  # the metric on each fold

    @property
    def mean(self) -> float:
        "The metric, averaged over the folds."
        return fmean(self.folds)

    @property
    def spread(self) -> float:
        "The deviation over the folds."
        return stdev(self.folds)

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.spread:.2g}"


@dataclass(frozen=True)
class HeadProbes:
    "The scores of every tap for one head."

    name: str  # the head's
    metric: str  # its first metric
    higher_is_better: bool
    scores: Mapping[str, Score]  # tap → score, in the order of the taps
    pair: Score | None  # the best tap with the best of the next three beside it
    default: str  # the tap that it would read without probes

    @property
    def best(self) -> str:
        "The tap with the best score."
        order = sorted(self.scores.values(), key=lambda s: s.mean, reverse=self.higher_is_better)
        return order[0].taps[0]

    @property
    def chosen(self) -> str:
        """The best tap where it is better than the default one by more than one standard error of their difference
        over the folds; else the default one."""
        best, usual = self.scores[self.best], self.scores.get(self.default)
        if usual is None:
            return self.best
        gains = [(b - u) if self.higher_is_better else (u - b) for b, u in zip(best.folds, usual.folds)]
        sure = fmean(gains) > stdev(gains) / len(gains) ** 0.5
        return self.best if sure else self.default

    @property
    def reason(self) -> str:
        "Why that tap, in a line."
        said = f"{self.metric} {self.scores[self.chosen]} by a linear probe"
        if self.default not in self.scores:
            return said
        if self.chosen == self.default:
            more = f"; {self.best!r} gave {self.scores[self.best]}, not surely more"
            return said if self.best == self.default else said + more
        return f"{said}; {self.default!r} gave {self.scores[self.default]}"


@dataclass(frozen=True)
class TapReport:
    "What probes of the taps found. It prints as a table, and as HTML in Jupyter."

    arch: str  # the network's name
    weights: str  # its pretrained weights; '' for random ones
    heads: Mapping[str, HeadProbes]  # by name
    left_out: Mapping[str, str]  # head → why no probe answers for it
    n: int  # items that were looked at
    seconds: float  # processor time in all
    pass_seconds: float  # that of loading the items and of the body among it

    @property
    def taps(self) -> dict[str, str]:
        "The tap that each head should read."
        return {name: head.chosen for name, head in self.heads.items()}

    def __str__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([self._title(), *lines, "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *rows = self._table()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in first)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        title = f"<b>{escape(self._title())}</b>"
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def plot(self) -> Figure:
        "Draw the score of every tap over the depth of the network, a panel for each head."
        fig, axes = plt.subplots(
            1, max(1, len(self.heads)), squeeze=False, figsize=(4 * max(1, len(self.heads)), 3.5), layout="constrained"
        )
        for ax, head in zip(axes.flat, self.heads.values()):
            names, scores = list(head.scores), list(head.scores.values())
            ax.errorbar(range(len(names)), [s.mean for s in scores], [s.spread for s in scores], marker="o", capsize=3)
            at = names.index(head.chosen)
            ax.plot(at, scores[at].mean, "o", markersize=12, fillstyle="none", color="C3", label=f"reads {head.chosen}")
            ax.set_xticks(range(len(names)), names, rotation=90)
            ax.set(title=head.name, ylabel=head.metric)
            ax.legend()
        plt.close(fig)
        return fig

    def _title(self) -> str:
        return f"Linear probes of {self.arch}{f', weights {self.weights}' if self.weights else ', random weights'}"

    def _table(self) -> list[tuple[str, ...]]:
        taps = list(dict.fromkeys(tap for head in self.heads.values() for tap in head.scores))
        first = ("tap", *(f"{head.name} ({head.metric})" for head in self.heads.values()))
        rows = [(tap, *(_cell(head, tap) for head in self.heads.values())) for tap in taps]
        pairs = ("best pair", *(_pair(head) for head in self.heads.values()))
        return [first, *rows, pairs]

    def _notes(self) -> list[str]:
        notes = [f"{name} reads {head.chosen!r}: {head.reason}." for name, head in self.heads.items()]
        notes += [f"{name}: {why}." for name, why in self.left_out.items()]
        cost = f"{self.seconds:.1f} s of processor time, {self.pass_seconds:.1f} s of it the pass"
        return [*notes, f"Mean ± deviation over the folds of {self.n} training items (* best, → chosen). {cost}."]


def _cell(head: HeadProbes, tap: str) -> str:
    if tap not in head.scores:
        return ""
    marks = ("*" if tap == head.best else "") + ("→" if tap == head.chosen else "")
    return f"{head.scores[tap]} {marks}".rstrip()


def _pair(head: HeadProbes) -> str:
    return "" if head.pair is None else f"{' + '.join(head.pair.taps)}: {head.pair}"
