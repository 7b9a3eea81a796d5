"""Boxes with labels as a table holds them."""

import pandas as pd
import pytest
from fastai.data.core import TfmdLists
from fastcore.foundation import L

from fastai_heads.data.box_items import BoxesReader, parse_boxes, row_name
from fastai_heads.errors import HeadsError


@pytest.mark.parametrize(
    ("boxes", "labels", "read"),
    [
        ("[[1, 2, 3, 4]]", '["cat"]', ([[1, 2, 3, 4]], ["cat"])),
        ([[1, 2, 3, 4]], ["cat"], ([[1, 2, 3, 4]], ["cat"])),
        ("[]", "[]", ([], [])),
        ("[[1, 2, 3, 4]]", "7", ([[1, 2, 3, 4]], [7])),
        (None, None, None),
        (float("nan"), "[]", None),
    ],
)
def test_cells_are_read_as_lists(boxes, labels, read):
    assert BoxesReader("boxes", "labels")(pd.Series({"boxes": boxes, "labels": labels})) == read


def test_a_cell_that_is_no_json_says_what_it_holds():
    with pytest.raises(HeadsError, match=r"list written as JSON, found '\[\[1, 2'"):
        BoxesReader(0, 1)(pd.Series({"boxes": "[[1, 2", "labels": "[]"}))


def test_boxes_are_checked_whatever_they_are_held_in():
    assert parse_boxes(L([[0, 0, 2, 3]], L("cat"))) == ([[0.0, 0.0, 2.0, 3.0]], ["cat"])
    for bad, said in ((3, "Expected"), (([[0, 0, 2, 3]], []), r"1 box\(es\)"), (([[2, 0, 0, 3]], ["a"]), "x1 < x2")):
        with pytest.raises(HeadsError, match=said):
            parse_boxes(bad)


def test_an_item_is_named_by_row_and_file():
    table = pd.DataFrame({"image": ["a.png", "b.png"]}, index=[10, 11])
    assert row_name(TfmdLists(table, []), 1) == "row 11 (b.png)"
    assert row_name(TfmdLists(pd.DataFrame({"n": [1, 2]}), []), 1) == "row 1"
    assert row_name(TfmdLists(["x.png"], []), 0) == "x.png"
    assert row_name(TfmdLists([5], []), 0) == "item 0"
