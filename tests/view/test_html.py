"""What Jupyter shows of a `HeadTuple` and of `learn.heads`."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import torch

from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads import ClassificationHead


def table(html):
    "The cells of a table, row by row."
    return [[cell.text or "" for cell in row] for row in ElementTree.fromstring(html)]


def test_a_value_is_said_and_a_large_tensor_by_its_shape():
    values = HeadTuple(
        ["<7>", torch.tensor([0.123456, 1.0]), torch.zeros(9, 10), np.arange(2), torch.tensor(3), None],
        ["digit", "ink", "map", "count_", "one", "gap"],
    )
    assert table(values._repr_html_()) == [
        ["digit", "<7>"],
        ["ink", "[0.1235, 1] (Tensor 2, torch.float32)"],
        ["map", "Tensor 9 × 10, torch.float32"],
        ["count_", "[0, 1] (ndarray 2, int64)"],
        ["one", "3 (Tensor of one number, torch.int64)"],
        ["gap", "None"],
    ]


def test_the_heads_are_a_table(make_learner):
    learn = make_learner(
        "digit", "ink", heads={"aux": ClassificationHead(target="digit", tap="layer2", train_only=True)}
    )
    learn.heads.ink.loss_weight = 0.25
    head, *rows = table(learn.heads._repr_html_())
    assert head == ["head", "kind", "target", "tap", "outputs", "parameters", "loss weight"]
    found = {row[0]: row[1:] for row in rows}
    assert found.keys() == {"digit", "ink", "aux (auxiliary)"}
    size = sum(p.numel() for p in learn.model[1]["ink"].parameters())
    assert found["ink"] == ["RegressionHead", "ink", "features", "1", f"{size:,}", "0.25"]
    assert found["aux (auxiliary)"][:3] == ["ClassificationHead", "digit", "layer2"]


def test_what_a_learner_answers_has_a_table(make_learner):
    learn = make_learner("digit", "ink")
    preds = learn.get_preds()[0]
    assert table(preds._repr_html_())[0] == ["digit", f"{type(preds.digit).__name__} 8 × 10, torch.float32"]
