"""What a refusal carries, besides its text."""

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest

from fastai_heads.errors import FixedError, HeadsError, first_line, unknown


def test_a_refusal_has_attributes_that_survive_a_copy_and_a_process():
    error = HeadsError("`tap=7`: no.", parameter="tap", head="age", tap=7)
    for found in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(found), found.parameter, found.head, found.tap) == ("`tap=7`: no.", "tap", "age", 7)
    bare = HeadsError("no.")
    assert (bare.parameter, bare.head, bare.tap) == (None, None, None) and isinstance(bare, ValueError)


def test_where_it_was_found_is_said_first_and_what_is_known_stays():
    error = HeadsError("`tap=7`: no.", parameter="tap", tap=7).within("`heads['age']`", " Yes?")
    assert str(error) == "`heads['age']`: `tap=7`: no. Yes?"
    assert (error.parameter, error.head, error.tap) == ("tap", "age", 7)


def test_an_unknown_head_and_a_fixed_field_are_named():
    assert unknown("head", "agee", ["age", "sex"]).head == "agee" and unknown("trunk", "a", ["b"]).head is None
    error = FixedError("no.", parameter="n_out")
    assert error.parameter == "n_out" and isinstance(error, AttributeError)


@pytest.mark.parametrize(
    ("error", "says"),
    [(ValueError("  a.\nb"), "a"), (KeyError(), "KeyError"), (RuntimeError(""), "RuntimeError")],
    ids=str,
)
def test_an_error_in_short(error, says):
    assert first_line(error) == says


@pytest.mark.parametrize(
    ("message", "parameter", "head"),
    [
        ("`n_in`: no.", "n_in", None),
        ("`tap='layer9'`, which no body has.", "tap", None),
        ("`learn.dls`: no.", "dls", None),
        ("`lrs['age']` of Disjoint is a number.", "lrs", None),
        ("`heads['age']`: `loss` of RegressionHead.", "loss", "age"),
        ('`heads["o\'clock"]`: there is no target.', "heads", "o'clock"),
        ("the model gave 2 predictions for 3 heads.", None, None),
    ],
)
def test_a_message_that_begins_with_its_parameter_says_it_once(message, parameter, head):
    error = HeadsError(message)
    assert (error.parameter, error.head) == (parameter, head)


FILES = sorted((Path(__file__).parents[1] / "fastai_heads").rglob("*.py"))


def raised(path: Path):
    "List (line, message as it is written, keywords) for every `HeadsError` that a file makes."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "HeadsError" and node.args:
            yield node.lineno, ast.unparse(node.args[0]), {keyword.arg for keyword in node.keywords}


def test_what_is_about_a_tap_or_a_head_carries_it():
    bad = [
        f"{path.name}:{line}: {message} sets no `{field}`"
        for path in FILES
        for line, message, keywords in raised(path)
        for field, starts in (("tap", r"f.`tap=\{"), ("head", r"f.(`\w+`[^.]*|`\{\w+\}`[^.]*)?\bhead \{"))
        if re.match(starts, message) and field not in keywords
    ]
    assert not bad
