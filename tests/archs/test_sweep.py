"""The sweep's names, and the page that it writes."""

import csv
from collections import Counter
from pathlib import Path

from benchmarks.sweep.names import every_name, family_name, in_turn, zoo_of
from benchmarks.sweep.page import Place, page
from benchmarks.zoo import ALL
from fastai_heads.archs.proof.smallest import SMALLEST, SMALLEST_TORCHVISION

STOCK = Path(__file__).parents[2] / "docs" / "stock_fastai.csv"
CELLS = dict.fromkeys(("build", *ALL), "ok")


def row(arch, **cells):
    return {"arch": arch, "shrunken": "", "note": "", **CELLS, **cells}


def test_every_name_has_its_family():
    families = {(zoo_of(n), family_name(n)) for n in every_name()}
    assert {f for z, f in families if z == "timm"} == set(SMALLEST)
    assert {f for z, f in families if z == "torchvision"} == set(SMALLEST_TORCHVISION)
    assert {f for z, f in families if z == "fastai"} == {"xresnet"}


def test_the_smallest_of_a_family_come_first():
    names = ["resnet10t", "test_vit", "xresnet18", "test_resnet", "resnet14t"]
    assert list(in_turn(names)) == ["test_vit", "test_resnet", "xresnet18", "resnet10t", "resnet14t"]


def test_what_stock_fastai_did_is_about_archs_that_there_are():
    with STOCK.open(newline="") as f:
        stock = list(csv.DictReader(f))
    assert {r["arch"] for r in stock} <= set(every_name())
    counts = Counter((r["zoo"], r["verdict"]) for r in stock)
    assert [counts["torchvision", v] for v in ("right", "lost", "raised")] == [44, 23, 13]
    assert [counts["timm", v] for v in ("right", "lost", "raised", "timed out")] == [423, 117, 31, 3]
    assert all(r["what"] for r in stock if r["verdict"] in ("lost", "raised"))


def test_the_page_counts_names_and_says_what_has_not_run():
    places = {n: Place("timm", "resnet") for n in ("a", "b", "c", "d")}
    rows = [row("a"), row("b", export="fault: no"), row("c", shrunken="depth=2", training="not run: why")]
    stock = [
        {"arch": "a", "verdict": "right", "what": ""},
        {"arch": "b", "verdict": "lost", "what": "head.norm"},
        {"arch": "c", "verdict": "raised", "what": "running_mean should contain 14 elements not 1536"},
    ]
    text = page(rows, stock, places, ("build", *ALL))
    assert "**3 of the 4 names have run**; 1 have not. Of those that have, 1 passed every check, 1 have a fault" in text
    assert "| timm | resnet | 4 | 1 | 1 | 1 | 3 | 1 |" in text
    assert "- export, fault: no: `b`" in text and "- training, not run: why: `c`" in text and "- depth=2: `c`" in text
    assert "- lost, head.norm: `b`" in text and "running_mean should contain … elements not …: `c`" in text
    assert "timm, 1: `d`" in text
