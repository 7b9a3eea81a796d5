"""Checks of every arch of every zoo: `python -m benchmarks.zoo [pattern] [--jobs 2] [--table docs/archs.md]`.

The sweep can be resumed: an arch that has a row in the CSV is not run again. A row is written when its arch is done.
Each arch has a process of its own, which ends when its time is over. The checks that it did not reach are 'not run'."""

import argparse
import csv
import fnmatch
import multiprocessing
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, as_completed, wait
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.sweep.names import every_name, family_name, in_turn, zoo_of
from benchmarks.sweep.page import Place, page
from benchmarks.sweep.training import training_step
from fastai_heads.archs.proof.checks import CHECKS, FAULT, NOT_RUN, OK, Report, check_arch
from fastai_heads.bodies.image import ImageBody

ALL = {**CHECKS, "training": training_step}
"Every check by name, in the order in which they run."
FIELDS = ["arch", "zoo", "family", "mparams", "shrunken", "build", *ALL, "note", "seconds"]
STOCK = Path("docs/stock_fastai.csv")
"Results of stock fastai's cut, a row per arch that was tried."
Row = dict[str, str]


def as_row(report: Report) -> Row:
    "Turn a report into a row of the CSV. No cell of a check is empty."
    row = {"arch": report.arch, "zoo": report.zoo, "family": family_name(report.arch)}
    row |= {"mparams": f"{report.params / 1e6:.2f}", "shrunken": report.shrunken}
    cells = {check: report.results.get(check, NOT_RUN) for check in ALL}
    return {**row, "build": OK, **cells, "note": report.note, "seconds": f"{report.seconds:.1f}"}


def one(
    name: str,
    checks: tuple[str, ...],
    pipe: Connection,  # gets the row after each check, as far as it is known
) -> None:
    "Run the checks of one arch in this process."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        report = check_arch(name, ImageBody, {c: ALL[c] for c in checks}, tell=lambda r: pipe.send(as_row(r)))
        pipe.send(as_row(report))
    except Exception as e:  # its kind is recorded
        text = f"{type(e).__name__}: {str(e).strip()[:200]}"
        pipe.send({**as_row(Report(name, zoo_of(name))), "build": f"{FAULT}: {text}"})
    pipe.close()


def watch(
    name: str,
    checks: tuple[str, ...],
    limit: float,  # seconds
) -> Row:
    "Run one arch in a process that ends with its time, and return its row."
    start = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=one, args=(name, checks, there))
    process.start()
    there.close()
    row, why = as_row(Report(name, zoo_of(name))) | {"build": NOT_RUN}, ""
    try:
        while True:
            if not here.poll(max(0.0, limit - (time.monotonic() - start))):
                why = f"{NOT_RUN}: more than {limit:.0f} s"
                process.kill()
                break
            row = here.recv()
    except EOFError:
        process.join()
        why = f"{FAULT}: the process ended with {process.exitcode}" if process.exitcode else ""
    process.join()
    unreached = [c for c in ("build", *checks) if row[c] == NOT_RUN] if why else []
    cells = {c: why if c == unreached[0] else f"{NOT_RUN}: ended before" for c in unreached}
    return {**row, **cells, "seconds": f"{time.monotonic() - start:.1f}"}


def sweep(
    names: Iterable[str],  # in the order of running
    path: Path,  # of the CSV
    jobs: int,  # processes
    checks: tuple[str, ...],
    limit: float,  # seconds for one arch
) -> None:
    "Run the archs that have no row in the CSV yet."
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["benchmarks.sweep.training", "fastai_heads.bodies.image"]
    )
    with path.open("a", newline="") as f, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for n, row in enumerate(_rows(names, pool, jobs, checks, limit), 1):
            writer.writerow(row)
            f.flush()
            wrong = [c for c in ("build", *ALL) if row[c].startswith(FAULT)]
            print(f"{n} {row['arch']} {' '.join(wrong) or OK} {row['seconds']} s", flush=True)


def _rows(names: Iterable[str], pool: Executor, jobs: int, checks: tuple[str, ...], limit: float) -> Iterator[Row]:
    """Give a row as soon as an arch is done. As many archs run at once as there are jobs. The names are taken one by
    one, as the next name may take time to find."""
    under_way: set[Future[Row]] = set()
    for name in names:
        under_way.add(pool.submit(watch, name, checks, limit))
        if len(under_way) == jobs:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    yield from (future.result() for future in as_completed(under_way))


def read(path: Path) -> list[Row]:
    "Read the rows that the CSV has."
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    "Run the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one arch")
    parser.add_argument("--csv", type=Path, default=Path("docs/archs.csv"))
    parser.add_argument("--table", type=Path, help="write this page from the CSV")
    parser.add_argument("--checks", default=",".join(ALL), help="some of them, with commas between")
    parser.add_argument("--no-run", action="store_true", help="only write the page")
    args = parser.parse_args()
    names = every_name()
    if not args.no_run:
        done = {row["arch"] for row in read(args.csv)}
        wanted = dict.fromkeys(n for p in args.patterns for n in fnmatch.filter(names, p) if n not in done)
        sweep(in_turn(wanted), args.csv, args.jobs, tuple(args.checks.split(",")), args.limit)
    if args.table:
        places = {n: Place(zoo_of(n), family_name(n)) for n in names}
        args.table.write_text(page(read(args.csv), read(STOCK), places, ("build", *ALL)))


if __name__ == "__main__":
    main()
