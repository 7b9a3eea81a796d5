"""Every arch of every zoo, checked: `python -m benchmarks.zoo [pattern] [--jobs 2] [--table docs/archs.md]`.

Resumable: an arch that has a row in the CSV is not run again. A row is written when its arch is done; each arch has a
process of its own, which is ended when its time is over, and what it had not reached by then is 'not run'."""

import argparse
import csv
import fnmatch
import multiprocessing
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.sweep.names import every_name, family_name, in_turn, size_of, zoo_of
from benchmarks.sweep.page import Place, page
from benchmarks.sweep.training import training_step
from fastai_heads.archs.checks import CHECKS, FAULT, NOT_RUN, OK, Report, check_arch
from fastai_heads.body import Body

ALL = {**CHECKS, "training": training_step}
"Every check by name, in the order in which they run."
FIELDS = ["arch", "zoo", "family", "mparams", "shrunken", "build", *ALL, "note", "seconds"]
STOCK = Path("docs/stock_fastai.csv")
"What stock fastai's cut did, a row per arch that was tried."
Row = dict[str, str]


def as_row(report: Report) -> Row:
    "A report as a row of the CSV; no cell of a check is empty."
    row = {"arch": report.arch, "zoo": report.zoo, "family": family_name(report.arch)}
    row |= {"mparams": f"{report.params / 1e6:.2f}", "shrunken": report.shrunken}
    cells = {check: report.results.get(check, NOT_RUN) for check in ALL}
    return {**row, "build": OK, **cells, "note": report.note, "seconds": f"{report.seconds:.1f}"}


def one(
    name: str,
    checks: tuple[str, ...],
    pipe: Connection,  # is sent the row as far as it is known, after each check
) -> None:
    "Runs the checks of one arch in this process."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        report = check_arch(name, Body, {c: ALL[c] for c in checks}, tell=lambda r: pipe.send(as_row(r)))
        pipe.send(as_row(report))
    except Exception as e:  # what kind it is, is what is recorded
        text = f"{type(e).__name__}: {str(e).strip()[:200]}"
        pipe.send({**as_row(Report(name, zoo_of(name))), "build": f"{FAULT}: {text}"})
    pipe.close()


def watched(
    name: str,
    checks: tuple[str, ...],
    limit: float,  # seconds
) -> Row:
    "The row of one arch, run in a process that ends with its time."
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
    names: Iterable[str],
    path: Path,  # of the CSV
    jobs: int,  # processes
    checks: tuple[str, ...],
    limit: float,  # seconds for one arch
) -> None:
    "Runs what the CSV does not have yet, the smallest first."
    done = {row["arch"] for row in read(path)}
    todo = sorted((n for n in names if n not in done), key=lambda n: (size_of(n), n))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.sweep.training", "fastai_heads.body"])
    with path.open("a", newline="") as f, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for n, future in enumerate(as_completed([pool.submit(watched, name, checks, limit) for name in todo]), 1):
            row = future.result()
            writer.writerow(row)
            f.flush()
            wrong = [c for c in ("build", *ALL) if row[c].startswith(FAULT)]
            print(f"{n}/{len(todo)} {row['arch']} {' '.join(wrong) or OK} {row['seconds']} s", flush=True)


def read(path: Path) -> list[Row]:
    "The rows that there are."
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    "The command."
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
        for wanted in in_turn(dict.fromkeys(n for p in args.patterns for n in fnmatch.filter(names, p))):
            sweep(wanted, args.csv, args.jobs, tuple(args.checks.split(",")), args.limit)
    if args.table:
        places = {n: Place(zoo_of(n), family_name(n)) for n in names}
        args.table.write_text(page(read(args.csv), read(STOCK), places, ("build", *ALL)))


if __name__ == "__main__":
    main()
