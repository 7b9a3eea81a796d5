"""The rows of the sweep as a page: what has run, by family and by check, and what it found."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fastai_heads.archs.checks import FAULT, OK

__all__ = ["page"]

Row = Mapping[str, str]


def page(
    rows: Sequence[Row],  # of the CSV
    zoos: Mapping[str, str],  # zoo by name, of all that there is to run
    checks: Sequence[str],  # names of the CSV's cells that are results
) -> str:  # Markdown
    "Counts by zoo, by check and by family; faults, claims that are not made, and what has not run, by name."
    known = [r for r in rows if r["arch"] in zoos]
    faulty = [r for r in known if _faults(r, checks)]
    whole = sum(all(r[c] == OK for c in checks) for r in known)
    return "\n".join(
        [
            "# Archs",
            "",
            f"**{len(known)} of the {len(zoos)} names have run**; {len(zoos) - len(known)} have not. Of those that "
            f"have, {whole} passed every check, {len(faulty)} have a fault, and for {len(known) - whole - len(faulty)} "
            "some check was not run, for a reason that stands in its cell.",
            "",
            "Written by `python -m benchmarks.zoo --no-run --table docs/archs.md` from [archs.csv](archs.csv), a row "
            "per arch with the result of each check: `ok`, `fault: …`, `not run` or `not run: why`. What the checks "
            "are is told in `fastai_heads/archs/checks.py` and `benchmarks/sweep/training.py`. `make zoo` runs the "
            "rest.",
            "",
            *_by_zoo(known, zoos, checks),
            *_by_check(known, checks),
            *_by_family(known, checks),
            *_by_name("Faults", ((_faults(r, checks), r["arch"]) for r in faulty)),
            *_by_name("Notes", ((r["note"], r["arch"]) for r in known if r["note"])),
            *_by_name("Checks that were not run", _left_out(known, checks)),
            *_not_run({n: z for n, z in zoos.items() if n not in {r["arch"] for r in known}}),
        ]
    )


def _by_zoo(rows: Sequence[Row], zoos: Mapping[str, str], checks: Sequence[str]) -> list[str]:
    ran, faulty = Counter(zoos[r["arch"]] for r in rows), Counter(zoos[r["arch"]] for r in rows if _faults(r, checks))
    lines = ["| zoo | names | have run | not run yet | with a fault |", "|---|---|---|---|---|"]
    for zoo, n in sorted(Counter(zoos.values()).items()):
        lines.append(f"| {zoo} | {n} | {ran[zoo]} | {n - ran[zoo]} | {faulty[zoo]} |")
    return lines


def _by_check(rows: Sequence[Row], checks: Sequence[str]) -> list[str]:
    lines = ["", "## By check", "", "| check | ok | fault | not run |", "|---|---|---|---|"]
    for check in checks:
        counts = Counter(_kind(r[check]) for r in rows)
        lines.append(f"| {check} | {counts['ok']} | {counts['fault']} | {counts['not run']} |")
    return lines


def _by_family(rows: Sequence[Row], checks: Sequence[str]) -> list[str]:
    "A cell is 'ok', or the numbers of archs by result."
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        families[row["zoo"], row["family"]].append(row)
    lines = ["", "## By family", "", "Ok / fault / not run in every cell; one number where all are ok.", ""]
    lines += [f"| zoo | family | archs run | {' | '.join(checks)} |", "|---" * (len(checks) + 3) + "|"]
    for (zoo, family), found in sorted(families.items()):
        cells = []
        for check in checks:
            n = Counter(_kind(r[check]) for r in found)
            cells.append(f"{n['ok']}" if n["ok"] == len(found) else f"{n['ok']} / {n['fault']} / {n['not run']}")
        lines.append(f"| {zoo or '?'} | {family or '?'} | {len(found)} | {' | '.join(cells)} |")
    return lines


def _by_name(title: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    "A line per reason with the archs that it holds for."
    found: dict[str, list[str]] = defaultdict(list)
    for why, arch in pairs:
        found[why].append(arch)
    lines = [f"- {why}: {', '.join(f'`{a}`' for a in sorted(archs))}" for why, archs in sorted(found.items())]
    return ["", f"## {title}", "", *(lines or ["None."])]


def _left_out(rows: Sequence[Row], checks: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{c}, {r[c]}", r["arch"]) for r in rows for c in checks if _kind(r[c]) == "not run"]


def _not_run(zoos: Mapping[str, str]) -> list[str]:
    lines = ["", "## Not run yet", ""]
    for zoo in sorted(set(zoos.values())):
        names = sorted(n for n, z in zoos.items() if z == zoo)
        lines += [f"{zoo}, {len(names)}: {', '.join(f'`{n}`' for n in names)}", ""]
    return lines if zoos else [*lines, "None.", ""]


def _faults(row: Row, checks: Sequence[str]) -> str:
    return "; ".join(f"{c}, {row[c]}" for c in checks if row[c].startswith(FAULT))


def _kind(cell: str) -> str:
    return cell.partition(":")[0]
