"""What a refusal carries, besides its text."""

import copy
import pickle

import pytest

from fastai_heads.errors import FixedError, HeadsError, first_line, unknown


def test_a_refusal_has_attributes_that_survive_a_copy_and_a_process():
    error = HeadsError("`tap=7`: no.", parameter="tap", head="age", tap=7)
    for found in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(found), found.parameter, found.head, found.tap) == ("`tap=7`: no.", "tap", "age", 7)
    bare = HeadsError("no.")
    assert (bare.parameter, bare.head, bare.tap) == (None, None, None) and isinstance(bare, ValueError)


def test_where_it_was_found_is_said_first_and_what_is_known_stays():
    error = HeadsError("`tap=7`: no.", parameter="tap", tap=7).within(
        "`heads['age']`", " Yes?", parameter="x", head="age"
    )
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
