"""The tables of the sweep as a page: the names that there are, the cut of each, the long checks of some."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastai_heads.archs.proof.checks import FAULT, NOT_RUN, OK

__all__ = ["Place", "page"]

Row = Mapping[str, str]
STOCK = ("right", "lost", "raised")
"The results that stock fastai's cut can have."
SHOWN = 12
"Archs that are named for a reason that many share."


@dataclass(frozen=True)
class Place:
    "The place of a name in its zoo."

    zoo: str
    family: str  # the module of its zoo


def page(
    cuts: Sequence[Row],  # of the table of cuts
    long: Sequence[Row],  # of the table of long checks
    stock: Sequence[Row],  # of stock fastai's results
    places: Mapping[str, Place],  # of all names
    checks: tuple[Sequence[str], Sequence[str]],  # columns with results, of both tables
) -> str:  # Markdown
    "Write the page: what the names are, the cut of each, the long checks of some, and stock fastai's cut."
    cuts = [r for r in cuts if r["arch"] in places]
    long = [r for r in long if r["arch"] in places]
    faulty = [r for r in cuts if _faults(r, checks[0])]
    unproved = [r for r in cuts if not _faults(r, checks[0]) and not _proved(r)]
    zoos = Counter(p.zoo for p in places.values())
    return "\n".join(
        [
            "# Archs",
            "",
            f"**{len(places)} names can be cut; the cut of {len(cuts)} has been checked: {len(faulty)} have a fault, "
            f"{len(unproved)} make no claim about their logits.**",
            "",
            _NAMES_TEXT.format(n=len(places), **zoos, twice=sum(n.startswith("torchvision:") for n in places)),
            "",
            _CUT_TEXT,
            "",
            "## The cut",
            "",
            *_by_check(cuts, checks[0]),
            *_by_name("Faults", ((_faults(r, checks[0]), r["arch"]) for r in faulty), level=3),
            *_by_name("No claim about the logits", ((r["vector"], r["arch"]) for r in unproved), level=3),
            *_by_name("Not claimed", _left_out(cuts, checks[0]), level=3, short=True),
            *_by_name("Notes", ((r["note"], r["arch"]) for r in cuts if r["note"]), level=3, short=True),
            *_shrunken(cuts),
            *_not_run({n: p.zoo for n, p in places.items() if n not in {r["arch"] for r in cuts}}),
            *_long(long, checks[1]),
            *_against_stock(cuts, stock, places, checks[0]),
            "",
        ]
    )


_NAMES_TEXT = (
    "`list_archs()` lists the {n} names: {timm} of timm, {torchvision} of torchvision (80 for classes, 6 for masks), "
    "{fastai} of fastai. timm has {twice} of torchvision's names, too: `resnet18` is timm's and "
    "`torchvision:resnet18` the other, and each is a name of its own here. Left out are torchvision's networks for "
    "video (9: they take clips), detection (12: they have no single map; a `DetectionHead` reads the levels of any "
    "body) and optical flow (2: they take two images), its quantized ones (12: their weights do not train), and "
    "fastai's `xsenet154`, whose function always raises."
)
_CUT_TEXT = (
    "Two tables hold the results, a row per arch, each cell `ok`, `fault: …` or `not run: why`. `make zoo` runs what "
    "has no row yet and writes this page. [archs_cut.csv](archs_cut.csv) is about the cut itself, for every name, "
    "judged by the network that the zoo's own function builds (`benchmarks/sweep/cut.py`): every tap's value stands "
    "bit for bit in that network's run (taps); put in its place in the run of other images, the vector makes the "
    "network give the logits of the first images, bit for bit (vector), and so does the last map, where the "
    "classifier reads nothing else (map); widths and strides (shapes); what is kept and what is removed add up "
    "(parameters); names and values of weights, and loading them (state); a gradient for every kept parameter that "
    "the network's own loss reaches (gradients). Images are as small as the arch takes, 64 pixels for most. Kinds are "
    "its class, norms, activations, pools and the layer that reads the image. [archs.csv](archs.csv) holds the long "
    "checks (a second size, export, a training step, and more: `fastai_heads/archs/proof/checks.py`, "
    "`benchmarks/sweep/training.py`), for one arch of each kind and 150 at random: `make zoo ARGS='--tier long'`."
)


def _proved(row: Row) -> bool:
    return OK in (row["vector"], row["map"])


def _long(rows: Sequence[Row], checks: Sequence[str]) -> list[str]:
    faulty = ((_faults(r, checks), r["arch"]) for r in rows if _faults(r, checks))
    return [
        "",
        "## The long checks",
        "",
        f"{len(rows)} have run.",
        "",
        *_by_check(rows, checks),
        *_by_name("Faults of the long checks", faulty, level=3),
        *_by_name("Long checks that were not run", _left_out(rows, checks), level=3, short=True),
    ]


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
    lines += ["| zoo | family | names | stock: right | lost | raised | our cut: run | with a fault |", "|---" * 8 + "|"]
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
    lines = ["| check | ok | fault | not run |", "|---|---|---|---|"]
    for check in checks:
        counts = Counter(_kind(r[check]) for r in rows)
        lines.append(f"| {check} | {counts[OK]} | {counts[FAULT]} | {counts[NOT_RUN]} |")
    return lines


def _by_name(title: str, pairs: Iterable[tuple[str, str]], level: int = 2, short: bool = False) -> list[str]:
    "Write a line per reason, with the archs that it holds for; of many, the count and the first."
    found: dict[str, list[str]] = defaultdict(list)
    for why, arch in pairs:
        found[why].append(arch)
    lines = []
    for why, archs in sorted(found.items()):
        shown = sorted(archs)[: SHOWN if short else None]
        more = f" and {len(archs) - len(shown)} more" if len(archs) > len(shown) else ""
        lines.append(f"- {why}: {', '.join(f'`{a}`' for a in shown)}{more}")
    return ["", f"{'#' * level} {title}", "", *(lines or ["None."])]


def _shrunken(rows: Sequence[Row]) -> list[str]:
    lines = [f"| `{r['arch']}` | {float(r['mparams']):.0f} | {r['shrunken']} |" for r in rows if r["shrunken"]]
    text = (
        "Over 300 M parameters: a smaller configuration is checked (`fastai_heads/archs/proof/shrunken.py`), "
        "as deep as the arch where it can be built so."
    )
    return ["", "### Shrunken", "", text, "", "| arch | M parameters | checked |", "|---|---|---|", *sorted(lines)]


def _left_out(rows: Sequence[Row], checks: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{c}, {r[c]}", r["arch"]) for r in rows for c in checks if _kind(r[c]) == NOT_RUN]


def _not_run(zoos: Mapping[str, str]) -> list[str]:
    lines = ["", "### Not run yet", ""]
    for zoo in sorted(set(zoos.values())):
        names = sorted(n for n, z in zoos.items() if z == zoo)
        lines += [f"{zoo}, {len(names)}: {', '.join(f'`{n}`' for n in names)}", ""]
    return lines if zoos else [*lines, "None.", ""]


def _faults(row: Row, checks: Sequence[str]) -> str:
    return "; ".join(f"{c}, {row[c]}" for c in checks if row[c].startswith(FAULT))


def _kind(cell: str) -> str:
    return cell.partition(":")[0]
