"""Every arch of every zoo, checked: `python -m benchmarks.zoo [pattern] [--jobs 2] [--table docs/archs.md]`.

Resumable: an arch that has a row in the CSV is not run again. A row is written when its arch is done."""

import argparse
import csv
import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import timm
import torch
from torchvision import models
from torchvision.models import list_models

from fastai_heads.archs.checks import CHECKS, Report, check_arch
from fastai_heads.archs.registry import list_archs
from fastai_heads.body import Body

FIELDS = ["arch", "zoo", "family", "mparams", "ok", *CHECKS, "note", "seconds"]


def one(
    name: str,
    checks: tuple[str, ...],
) -> dict[str, object]:  # a row of the CSV
    "The row of one arch; an arch that cannot even be built has the reason in `note`."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        report = check_arch(name, Body, checks)
    except Exception as e:  # one arch must not end the sweep
        report = Report(name, note=f"{type(e).__name__}: {str(e)[:200]}", faults={"build": "raised"})
    row = {"arch": name, "zoo": report.zoo, "family": report.family, "mparams": round(report.params / 1e6, 2)}
    return {**row, "ok": report.ok, **report.faults, "note": report.note, "seconds": round(report.seconds, 1)}


def sweep(
    names: Iterable[str],
    path: Path,  # of the CSV
    jobs: int,  # processes
    checks: tuple[str, ...],
) -> None:
    "Runs what the CSV does not have yet."
    done = {row["arch"] for row in read(path)}
    todo = [n for n in names if n not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as f, ProcessPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(f, FIELDS, restval="", extrasaction="ignore")
        if fresh:
            writer.writeheader()
        for n, future in enumerate(as_completed([pool.submit(one, name, checks) for name in todo]), 1):
            row = future.result()
            writer.writerow(row)
            f.flush()
            print(f"{n}/{len(todo)} {row['arch']} {'ok' if row['ok'] else 'FAULT'} {row['seconds']} s", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    "The rows that there are."
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def table(rows: list[dict[str, str]], names: list[str]) -> str:
    "The rows as a page: counts by family, and all exceptions by name."
    families: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        families[row["zoo"], row["family"]].append(row)
    lines = [
        "# Archs",
        "",
        f"{len(rows)} of {len(names)} archs were run, {sum(r['ok'] == 'True' for r in rows)} without a fault. "
        "Written by `python -m benchmarks.zoo --table docs/archs.md`; what a check is stands in `archs/checks.py`.",
        "",
        "| zoo | family | archs run | without a fault | only shapes |",
        "|---|---|---|---|---|",
    ]
    for (zoo, family), found in sorted(families.items()):
        good = sum(r["ok"] == "True" for r in found)
        small = sum(r["note"].startswith("shapes only") for r in found)
        lines.append(f"| {zoo} | {family} | {len(found)} | {good} | {small} |")
    lines += ["", "## Faults", ""]
    lines += [f"- `{r['arch']}`: {_faults(r)}" for r in rows if r["ok"] != "True"] or ["None."]
    notes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["note"] and row["ok"] == "True":
            notes[row["note"]].append(row["arch"])
    lines += ["", "## Claims that are not made", ""]
    lines += [f"- {why}: {', '.join(f'`{a}`' for a in sorted(archs))}" for why, archs in sorted(notes.items())]
    missing = sorted(set(names) - {r["arch"] for r in rows})
    lines += ["", "## Not run yet", "", f"{len(missing)} archs." if missing else "None."]
    return "\n".join(lines) + "\n"


def _faults(row: dict[str, str]) -> str:
    return "; ".join(f"{c}: {row[c]}" for c in CHECKS if row[c]) or row["note"]


def every_name() -> list[str]:
    "All names, and torchvision's once more where timm has the same."
    own = list_models(module=models)
    return sorted({*list_archs(), *(f"torchvision:{n}" for n in own if timm.is_model(n))})


def main() -> None:
    "The command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--csv", type=Path, default=Path("zoo/archs.csv"))
    parser.add_argument("--table", type=Path, help="write this page from the CSV")
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--no-run", action="store_true", help="only write the page")
    args = parser.parse_args()
    names = every_name()
    if not args.no_run:
        wanted = [n for p in args.patterns for n in fnmatch.filter(names, p)]
        sweep(wanted, args.csv, args.jobs, tuple(args.checks.split(",")))
    if args.table:
        args.table.write_text(table(read(args.csv), names))


if __name__ == "__main__":
    main()
