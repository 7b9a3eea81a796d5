"""From a batch and predictions back to what can be shown, each value by its own target."""

import pytest
import torch
from fastai.vision.core import TensorBBox, TensorPoint

from fastai_heads.data.decode import decode_targets, select_targets
from fastai_heads.data.digits import digits_dls

TARGETS = ("digit", "tags", "ink", "centre", "box")


@pytest.fixture(scope="module")
def dls(tmp_path_factory):
    return digits_dls(TARGETS, n=20, size=32, bs=4, path=tmp_path_factory.mktemp("decode") / "scenes")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("places", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2,), (3, 0), (1, 1)], ids=str)
def test_values_in_any_order_are_decoded_by_their_own_target(dls, places):
    batch = dls.valid.one_batch()
    whole = dls.valid.decode_batch(batch)
    found = decode_targets(dls.valid, batch[:1], [batch[1 + p] for p in places], places)
    assert len(found) == len(whole) == 4
    for item, wanted in zip(found, whole):
        assert len(item) == 1 + len(places)
        assert all(same(a, b) for a, b in zip(item, (wanted[0], *(wanted[1 + p] for p in places)), strict=True))


def test_predictions_without_fastais_types_are_decoded_to_pixels_and_classes(dls):
    x, *_ = dls.valid.one_batch()
    digit, box, centre = torch.tensor([3, 1, 0, 9]), torch.zeros(4, 4), torch.full((4, 2), -1.0)
    box[:, 2:] = 1
    items = decode_targets(dls.valid, (x,), [box, digit, centre], [4, 0, 3])
    for (_, shown_box, shown_digit, point), d in zip(items, digit):
        assert shown_digit == str(d.item())
        assert isinstance(shown_box, TensorBBox) and shown_box.tolist() == [[16, 16, 32, 32]]
        assert isinstance(point, TensorPoint) and point.tolist() == [[0, 0]]


def test_at_most_max_n_items(dls):
    batch = dls.valid.one_batch()
    assert len(decode_targets(dls.valid, batch[:1], [batch[1]], [0], max_n=2)) == 2


@pytest.mark.parametrize("places", [(0,), (4, 0)], ids=str)
def test_a_view_of_some_targets_gives_and_shows_just_those(dls, places):
    whole, part = dls.valid.one_batch(), select_targets(dls.valid, places).one_batch()
    assert len(part) == 1 + len(places)
    for a, b in zip(part, (whole[0], *(whole[1 + p] for p in places)), strict=True):
        assert torch.equal(a, b) and type(a) is type(b)
    assert len(dls.valid.one_batch()) == 6, "the data itself is as before"
    assert select_targets(dls.valid, places).n_inp == 1
