"""Which head a target gets."""

import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.defaults import default_head
from fastai_heads.heads.multilabel import MultiLabelHead
from fastai_heads.heads.point import PointHead
from fastai_heads.heads.regression import RegressionHead


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("category", ClassificationHead()),
        ("multilabel", MultiLabelHead()),
        ("regression", RegressionHead()),
        ("point", PointHead()),
        ("box", BoxHead()),
    ],
)
def test_every_kind_has_its_head(target, kind, spec):
    assert default_head(target(kind)) == spec and kind in spec.kinds


@pytest.mark.parametrize("kind", ["boxes", "box_labels", "unknown"])
def test_a_kind_without_one_says_what_to_pass(target, kind):
    with pytest.raises(HeadsError, match=rf"'thing' is of kind {kind}.*`heads=\{{'thing': CustomHead.*'thing': None`"):
        default_head(target(kind))
