"""The long checks of one name: a second size, export, training and more, by the library's own proof."""

from collections.abc import Callable

from benchmarks.sweep.names import family_name, zoo_of
from benchmarks.sweep.training import training_step
from fastai_heads.archs.proof.checks import CHECKS, NOT_RUN, OK, Report, check_arch
from fastai_heads.bodies.image import ImageBody

__all__ = ["LONG", "LONG_FIELDS", "empty_long", "long_row"]

ALL = {**CHECKS, "training": training_step}
LONG = ("build", *ALL)
"Every check by name, in the order in which they run."
LONG_FIELDS = ("arch", "zoo", "family", "mparams", "shrunken", *LONG, "note", "seconds")
Row = dict[str, str]


def empty_long(name: str) -> Row:
    "Make the row of a name that has not run."
    return _as_row(Report(name, zoo_of(name))) | {"build": NOT_RUN}


def long_row(
    name: str,
    tell: Callable[[Row], object] = lambda row: None,  # called after each check
) -> Row:
    "Run the long checks of one name."
    return _as_row(check_arch(name, ImageBody, ALL, tell=lambda report: tell(_as_row(report))))


def _as_row(report: Report) -> Row:
    "Turn a report into a row of the CSV. No cell of a check is empty."
    row = {"arch": report.arch, "zoo": report.zoo, "family": family_name(report.arch)}
    row |= {"mparams": f"{report.params / 1e6:.2f}", "shrunken": report.shrunken, "build": OK}
    cells = {check: report.results.get(check, NOT_RUN) for check in ALL}
    return {**row, **cells, "note": report.note, "seconds": f"{report.seconds:.1f}"}
