"""The sweep's names, which of them are checked at length, and the page that is written."""

import csv
from collections import Counter
from pathlib import Path

import timm
from torch import nn
from torchvision import models

from benchmarks.sweep.cut import CUT
from benchmarks.sweep.kinds import kinds, select
from benchmarks.sweep.long import LONG
from benchmarks.sweep.names import every_name, family_name, in_turn, zoo_of
from benchmarks.sweep.page import Place, page
from benchmarks.zoo import TIERS, read
from fastai_heads.archs.proof.smallest import SMALLEST, SMALLEST_TORCHVISION
from fastai_heads.archs.registry import list_archs

DOCS = Path(__file__).parents[2] / "docs"
STOCK = DOCS / "stock_fastai.csv"


def cut(arch, **cells):
    return {"arch": arch, "mparams": "1", "shrunken": "", "note": "", **dict.fromkeys(CUT, "ok"), **cells}


def checked(arch, **cells):
    return {"arch": arch, "note": "", **dict.fromkeys(LONG, "ok"), **cells}


def test_one_number_of_names_everywhere():
    names = every_name()
    assert names == list_archs() and len(set(names)) == len(names)
    twice = [n for n in names if ":" in n]
    assert {n.partition(":")[2] for n in twice} == {n for n in models.list_models(module=models) if timm.is_model(n)}
    assert f"**{len(names)} names can be cut" in (DOCS / "archs.md").read_text()
    for tier in TIERS.values():
        rows = [r["arch"] for r in read(DOCS.parent / tier.csv)]
        assert set(rows) <= set(names) and len(set(rows)) == len(rows)


def test_every_name_has_its_family():
    families = {(zoo_of(n), family_name(n)) for n in every_name()}
    assert {f for z, f in families if z == "timm"} == set(SMALLEST)
    assert {f for z, f in families if z == "torchvision"} == set(SMALLEST_TORCHVISION)
    assert {f for z, f in families if z == "fastai"} == {"xresnet"}


def test_the_smallest_come_first():
    names = ["resnet10t", "test_vit", "xresnet18", "test_resnet", "resnet14t"]
    assert in_turn(names) == ["test_vit", "test_resnet", "resnet10t", "resnet14t", "xresnet18"]


def test_kinds_tell_networks_apart_by_their_layers():
    one, other = timm.create_model("test_resnet"), timm.create_model("test_resnet", act_layer="gelu")
    pools = "AdaptiveAvgPool2d AvgPool2d MaxPool2d SelectAdaptivePool2d"
    assert kinds(one) == f"ResNet; BatchNorm2d; ReLU; {pools}; Conv2d 3/2"
    assert kinds(other) == kinds(one).replace("ReLU", "GELU")
    assert kinds(nn.Flatten()) == "Flatten; -; -; -; NoneType"


def test_the_smallest_of_each_kind_and_some_at_random_are_checked_at_length():
    rows = [{"arch": f"a{i}", "zoo": "timm", "kinds": "AB"[i % 2], "mparams": str(9 - i)} for i in range(9)]
    assert select(rows, drawn=0) == ["a7", "a8"]
    more = select(rows, drawn=3)
    assert {"a7", "a8"} < set(more) and len(more) == 5 and more == select(rows[::-1], drawn=3)
    assert len(select(rows, drawn=99)) == 9


def test_what_stock_fastai_did_is_about_archs_that_there_are():
    with STOCK.open(newline="") as f:
        stock = list(csv.DictReader(f))
    assert {r["arch"] for r in stock} <= set(every_name())
    counts = Counter((r["zoo"], r["verdict"]) for r in stock)
    assert [counts["torchvision", v] for v in ("right", "lost", "raised")] == [44, 23, 13]
    assert [counts["timm", v] for v in ("right", "lost", "raised", "timed out")] == [423, 117, 31, 3]
    assert all(r["what"] for r in stock if r["verdict"] in ("lost", "raised"))


def test_the_page_counts_names_and_says_what_has_not_run():
    places = {n: Place(z, "resnet") for n, z in (("a", "timm"), ("b", "torchvision"), ("c", "fastai"), ("d", "timm"))}
    none = {"vector": "not run: why", "map": "not run: tokens"}
    cuts = [cut("a"), cut("b", state="fault: no", **none), cut("c", shrunken="c depth=2", **none)]
    long = [checked("a"), checked("c", export="fault: no", training="not run: so")]
    stock = [
        {"arch": "a", "verdict": "right", "what": ""},
        {"arch": "b", "verdict": "lost", "what": "head.norm"},
        {"arch": "c", "verdict": "raised", "what": "running_mean should contain 14 elements not 1536"},
    ]
    text = page(cuts, long, stock, places, (CUT, LONG))
    assert "**4 names can be cut; the cut of 3 has been checked: 1 have a fault, 1 make no claim" in text
    assert "| timm | resnet | 2 | 1 | 0 | 0 | 1 | 0 |" in text and "| vector | 1 | 0 | 2 |" in text
    assert "- state, fault: no: `b`" in text and "- not run: why: `c`" in text and "| `c` | 1 | c depth=2 |" in text
    assert "- export, fault: no: `c`" in text and "- training, not run: so: `c`" in text
    assert "- lost, head.norm: `b`" in text and "running_mean should contain … elements not …: `c`" in text
    assert "timm, 1: `d`" in text
