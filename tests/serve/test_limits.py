"""Limits are numbers of at least their least."""

import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.serve.limits import Limits


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"items": 0}, "`items` is a whole number of at least 1, found 0"),
        ({"wait": -1}, "`wait` is a number of at least 0"),
        ({"seconds": float("nan")}, "`seconds` is a number"),
        ({"body": 1.5}, "`body` is a whole number"),
        ({"waiting": 8}, "`waiting` is at least `items`"),
    ],
)
def test_limits_that_are_none(limit, said):
    with pytest.raises(HeadsError, match=said):
        Limits(**limit)
