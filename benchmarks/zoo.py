"""Checks of every arch of every zoo: `python -m benchmarks.zoo [pattern] [--tier cut] [--table docs/archs.md]`.

There are two tiers. `cut` checks the cut itself, for every name; `long` checks much more, for some. A sweep can be
resumed: an arch that has a row in the tier's CSV is not run again. A row is written when its arch is done. Each arch
has a process of its own, which ends when its time is over. The checks that it did not reach are 'not run'."""

import argparse
import csv
import fnmatch
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.sweep.cut import CUT, CUT_FIELDS, cut_row
from benchmarks.sweep.cut import empty_row as empty_cut
from benchmarks.sweep.kinds import select
from benchmarks.sweep.long import LONG, LONG_FIELDS, empty_long, long_row
from benchmarks.sweep.names import every_name, family_name, in_turn, zoo_of
from benchmarks.sweep.page import Place, page
from fastai_heads.archs.proof.checks import FAULT, NOT_RUN, OK

STOCK = Path("docs/stock_fastai.csv")
"Results of stock fastai's cut, a row per arch that was tried."
Row = dict[str, str]


@dataclass(frozen=True)
class Tier:
    "Checks that run together, and the table of their results."

    csv: Path
    fields: tuple[str, ...]  # of the table
    checks: tuple[str, ...]  # those of them that hold a result, in the order in which they run
    empty: Callable[[str], Row]  # of a name, before it ran
    run: Callable[[str, Callable[[Row], object]], Row]  # a name; its row is told after each check


TIERS = {
    "cut": Tier(Path("docs/archs_cut.csv"), CUT_FIELDS, CUT, empty_cut, cut_row),
    "long": Tier(Path("docs/archs.csv"), LONG_FIELDS, LONG, empty_long, long_row),
}


def one(
    tier: str,
    name: str,
    memory: float,  # GiB that it may use
    pipe: Connection,  # gets the row after each check, as far as it is known
) -> None:
    "Run the checks of one arch in this process."
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    warnings.simplefilter("ignore")
    try:
        pipe.send(TIERS[tier].run(name, pipe.send))
    except Exception as e:  # its kind is recorded
        text = f"{type(e).__name__}: {str(e).strip()[:200]}"
        pipe.send({**TIERS[tier].empty(name), "build": f"{FAULT}: {text}"})
    pipe.close()


def watch(
    tier: str,
    name: str,
    limit: float,  # seconds
    memory: float,  # GiB
) -> Row:
    "Run one arch in a process that ends with its time, and return its row."
    start = time.monotonic()
    here, there = multiprocessing.get_context("forkserver").Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(target=one, args=(tier, name, memory, there))
    process.start()
    there.close()
    row, why = TIERS[tier].empty(name), ""
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
    unreached = [c for c in TIERS[tier].checks if row[c] == NOT_RUN] if why else []
    cells = {c: why if c == unreached[0] else f"{NOT_RUN}: ended before" for c in unreached}
    return {**row, **cells, "seconds": f"{time.monotonic() - start:.1f}"}


def sweep(
    names: Iterable[str],  # in the order of running
    tier: str,
    path: Path,  # of the CSV
    jobs: int,  # processes
    limit: float,  # seconds for one arch
    memory: float,  # GiB for one arch
) -> None:
    "Run the archs that have no row in the CSV yet."
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.zoo"])
    with path.open("a", newline="") as f, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(f, TIERS[tier].fields, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for n, row in enumerate(_rows(names, pool, jobs, tier, limit, memory), 1):
            writer.writerow(row)
            f.flush()
            wrong = [c for c in TIERS[tier].checks if row[c].startswith(FAULT)]
            print(f"{n} {row['arch']} {' '.join(wrong) or OK} {row['seconds']} s", flush=True)


def _rows(names: Iterable[str], pool: Executor, jobs: int, *args: object) -> Iterator[Row]:
    """Give a row as soon as an arch is done. As many archs run at once as there are jobs. The names are taken one by
    one, as the next name may take time to find."""
    under_way: set[Future[Row]] = set()
    for name in names:
        under_way.add(pool.submit(watch, args[0], name, *args[1:]))
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
    parser.add_argument("--tier", choices=TIERS, default="cut")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one arch")
    parser.add_argument("--memory", type=float, default=8, help="GiB for one arch")
    parser.add_argument("--csv", type=Path, help="another table than the tier's own")
    parser.add_argument("--table", type=Path, help="write this page from the tables")
    parser.add_argument("--no-run", action="store_true", help="only write the page")
    args = parser.parse_args()
    names, path = every_name(), args.csv or TIERS[args.tier].csv
    if not args.no_run:
        done = {row["arch"] for row in read(path)}
        chosen = names if args.tier == "cut" else select(read(TIERS["cut"].csv))
        wanted = dict.fromkeys(n for p in args.patterns for n in fnmatch.filter(chosen, p) if n not in done)
        sweep(in_turn(wanted), args.tier, path, args.jobs, args.limit, args.memory)
    if args.table:
        places = {n: Place(zoo_of(n), family_name(n)) for n in names}
        cut, long = TIERS["cut"], TIERS["long"]
        args.table.write_text(page(read(cut.csv), read(long.csv), read(STOCK), places, (cut.checks, long.checks)))


if __name__ == "__main__":
    main()
