"""Which archs the long checks run on: one of every class and set of layer kinds, and more at random."""

import random
from collections.abc import Callable, Iterable, Mapping

from torch import nn

__all__ = ["kinds", "select"]

DRAWN = 150
"Names at random, besides one of each kind."


def kinds(
    net: nn.Module,  # as its zoo builds it
) -> str:
    "Say of which class a network is, and which norms, activations and pools it has, and what reads the image."
    modules = list(net.modules())
    parts = [
        type(net).__name__,
        _names(modules, lambda m: "Norm" in type(m).__name__),
        _names(modules, lambda m: ".activation" in type(m).__module__),
        _names(modules, lambda m: "Pool" in type(m).__name__),
        _stem(modules),
    ]
    return "; ".join(parts)


def _names(modules: Iterable[nn.Module], wanted: Callable[[nn.Module], bool]) -> str:
    return " ".join(sorted({type(m).__name__ for m in modules if wanted(m)})) or "-"


def _stem(modules: Iterable[nn.Module]) -> str:
    first = next((m for m in modules if isinstance(m, nn.Conv2d | nn.Linear)), None)
    shape = f" {first.kernel_size[0]}/{first.stride[0]}" if isinstance(first, nn.Conv2d) else ""
    return f"{type(first).__name__}{shape}"


def select(
    rows: Iterable[Mapping[str, str]],  # of the table of cuts
    drawn: int = DRAWN,  # further names, at random, the same each time
) -> list[str]:
    "Choose the smallest arch of each zoo and kind, and more at random."
    smallest: dict[tuple[str, str], str] = {}
    names = []
    for row in sorted(rows, key=lambda r: (float(r["mparams"] or 0), r["arch"])):
        smallest.setdefault((row["zoo"], row["kinds"]), row["arch"])
        names.append(row["arch"])
    rest = sorted(set(names) - set(smallest.values()))
    return sorted({*smallest.values(), *random.Random(0).sample(rest, min(drawn, len(rest)))})
