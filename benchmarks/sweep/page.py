"""The rows of the sweep as a page: the archs that have run, by family and by check, and the results."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastai_heads.archs.proof.checks import FAULT, OK

__all__ = ["Place", "page"]

Row = Mapping[str, str]
STOCK = ("right", "lost", "raised")
"The results that stock fastai's cut can have."


@dataclass(frozen=True)
class Place:
    "The place of a name in its zoo."

    zoo: str
    family: str  # the module of its zoo


def page(
    rows: Sequence[Row],  # of the CSV
    stock: Sequence[Row],  # of stock fastai's results
    places: Mapping[str, Place],  # of all names that can be run
    checks: Sequence[str],  # names of the CSV's columns that hold results
) -> str:  # Markdown
    """Write the page: counts by zoo, by check and by family; then, by name, faults, claims that are not made, and
    names that have not run."""
    known = [r for r in rows if r["arch"] in places]
    faulty = [r for r in known if _faults(r, checks)]
    whole = sum(all(r[c] == OK for c in checks) for r in known)
    return "\n".join(
        [
            "# Archs",
            "",
            f"**{len(known)} of the {len(places)} names have run**; {len(places) - len(known)} have not. Of those that "
            f"have, {whole} passed every check, {len(faulty)} have a fault, and for {len(known) - whole - len(faulty)} "
            "some check was not run, for a reason that stands in its cell.",
            "",
            "Written by `python -m benchmarks.zoo --no-run --table docs/archs.md` from [archs.csv](archs.csv), a row "
            "per arch with the result of each check: `ok`, `fault: …`, `not run` or `not run: why`. What the checks "
            "are is told in `fastai_heads/archs/proof/checks.py` and `benchmarks/sweep/training.py`. `make zoo` runs "
            "the rest.",
            "",
            *_by_zoo(known, places, checks),
            *_by_check(known, checks),
            *_against_stock(known, stock, places, checks),
            *_by_family(known, places, checks),
            *_by_name("Faults", ((_faults(r, checks), r["arch"]) for r in faulty)),
            *_by_name("Notes", ((r["note"], r["arch"]) for r in known if r["note"])),
            *_by_name("Checks that were not run", _left_out(known, checks)),
            *_shrunken(known),
            *_not_run({n: p.zoo for n, p in places.items() if n not in {r["arch"] for r in known}}),
        ]
    )


def _by_zoo(rows: Sequence[Row], places: Mapping[str, Place], checks: Sequence[str]) -> list[str]:
    ran = Counter(places[r["arch"]].zoo for r in rows)
    faulty = Counter(places[r["arch"]].zoo for r in rows if _faults(r, checks))
    lines = ["| zoo | names | have run | not run yet | with a fault |", "|---|---|---|---|---|"]
    for zoo, n in sorted(Counter(p.zoo for p in places.values()).items()):
        lines.append(f"| {zoo} | {n} | {ran[zoo]} | {n - ran[zoo]} | {faulty[zoo]} |")
    return lines


def _against_stock(
    rows: Sequence[Row], stock: Sequence[Row], places: Mapping[str, Place], checks: Sequence[str]
) -> list[str]:
    "Compare by family: what stock fastai's cut did to the archs that were tried, and what our checks found."
    theirs: dict[Place, Counter[str]] = defaultdict(Counter)
    for row in stock:
        if row["arch"] in places and row["verdict"] in STOCK:
            theirs[places[row["arch"]]][row["verdict"]] += 1
    ours: dict[Place, Counter[str]] = defaultdict(Counter)
    for row in rows:
        ours[places[row["arch"]]]["a fault" if _faults(row, checks) else "no fault"] += 1
    names = Counter(places.values())
    lines = ["", "## Against stock fastai", "", _STOCK_TEXT, ""]
    lines += ["| zoo | family | names | stock: right | lost | raised | ours: run | with a fault |", "|---" * 8 + "|"]
    for zoo in sorted({p.zoo for p in places.values()}):
        those = sorted((p for p in names if p.zoo == zoo), key=lambda p: p.family)
        total = _stock_cells(sum((theirs[p] for p in those), Counter()), sum((ours[p] for p in those), Counter()))
        lines.append(f"| **{zoo}** | **all** | {sum(names[p] for p in those)} | {total} |")
        lines += [f"| {zoo} | {p.family} | {names[p]} | {_stock_cells(theirs[p], ours[p])} |" for p in those]
    lines += _by_name("What stock fastai loses or raises", _stock_faults(stock), level=3)
    return lines


_NUMBERS = re.compile(r"(?<= )\d+(?= )|(?<= )\d+$")
"Numbers in an error. They differ from arch to arch."
_STOCK_TEXT = (
    "What `fastai.vision.learner.create_body` (fastai 2.8.12) did: cut right, lost trained layers or an operation "
    "without a word, or raised. Each arch that was tried has a row in [stock_fastai.csv](stock_fastai.csv); "
    "where cells are blank, none of that family was tried."
)


def _stock_cells(theirs: Counter[str], ours: Counter[str]) -> str:
    stock = [str(theirs[v]) for v in STOCK] if theirs else ["", "", ""]
    return " | ".join([*stock, str(ours.total()), str(ours["a fault"])])


def _stock_faults(stock: Sequence[Row]) -> Iterable[tuple[str, str]]:
    wrong = [r for r in stock if r["verdict"] in ("lost", "raised")]
    return ((f"{r['verdict']}, {_NUMBERS.sub('…', r['what'])}", r["arch"]) for r in wrong)


def _by_check(rows: Sequence[Row], checks: Sequence[str]) -> list[str]:
    lines = ["", "## By check", "", "| check | ok | fault | not run |", "|---|---|---|---|"]
    for check in checks:
        counts = Counter(_kind(r[check]) for r in rows)
        lines.append(f"| {check} | {counts['ok']} | {counts['fault']} | {counts['not run']} |")
    return lines


def _by_family(rows: Sequence[Row], places: Mapping[str, Place], checks: Sequence[str]) -> list[str]:
    "Write a row per family. A cell holds one number where all archs are ok, else the numbers of archs by result."
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        place = places[row["arch"]]
        families[place.zoo, place.family].append(row)
    lines = ["", "## By family", "", "Ok / fault / not run in every cell; one number where all are ok.", ""]
    lines += [f"| zoo | family | archs run | {' | '.join(checks)} |", "|---" * (len(checks) + 3) + "|"]
    for (zoo, family), found in sorted(families.items()):
        cells = []
        for check in checks:
            n = Counter(_kind(r[check]) for r in found)
            cells.append(f"{n['ok']}" if n["ok"] == len(found) else f"{n['ok']} / {n['fault']} / {n['not run']}")
        lines.append(f"| {zoo} | {family or '?'} | {len(found)} | {' | '.join(cells)} |")
    return lines


def _by_name(title: str, pairs: Iterable[tuple[str, str]], level: int = 2) -> list[str]:
    "Write a line per reason, with the archs that it holds for."
    found: dict[str, list[str]] = defaultdict(list)
    for why, arch in pairs:
        found[why].append(arch)
    lines = [f"- {why}: {', '.join(f'`{a}`' for a in sorted(archs))}" for why, archs in sorted(found.items())]
    return ["", f"{'#' * level} {title}", "", *(lines or ["None."])]


def _shrunken(rows: Sequence[Row]) -> list[str]:
    text = (
        "Over 300 M parameters: shapes of the arch itself on the meta device, values in a smaller configuration of its "
        "class (`fastai_heads/archs/proof/shrunken.py`)."
    )
    title, *lines = _by_name("Shrunken", ((r["shrunken"], r["arch"]) for r in rows if r["shrunken"]))[1:]
    return ["", title, "", text, *lines]


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
