"""`show_batch`: every target of a batch, gaps visible; the same for data without a learner."""

import pytest
from fastai.data.core import DataLoaders

from fastai_heads.view.show import show_targets

FIVE = ("digit", "tags", "ink", "centre", "box")


def labels(ax):
    return [t.get_text().split(":")[0] for t in ax.texts if not t.get_text().startswith(" ")]


@pytest.mark.parametrize("targets", [("digit",), ("digit", "ink"), FIVE], ids=["1", "2", "5"])
def test_every_target_is_shown(make_learner, targets):
    fig = make_learner(*targets).show_batch(max_n=4)
    assert len(fig.axes) == 4 and not fig.legends
    for ax in fig.axes:
        assert labels(ax) == [t for t in targets if t not in ("centre", "box")]
        assert len(ax.patches) == targets.count("box") and len(ax.collections) == targets.count("centre")


def test_the_validation_set_in_its_order(make_learner):
    learn = make_learner("digit", "ink")
    fig = learn.show_batch(ds_idx=1, max_n=8, ncols=2)
    found = [ax.texts[0].get_text() for ax in fig.axes]
    assert found == [f"digit: {d}" for d in learn.dls.valid.items["digit"]]


def test_one_item_again_and_again(make_learner):
    fig = make_learner("digit", "ink").show_batch(unique=True, max_n=5)
    assert len(fig.axes) == 5 and len({tuple(t.get_text() for t in ax.texts) for ax in fig.axes}) == 1


def test_gaps_are_dashes(make_dls):
    dls = make_dls(*FIVE, "mask", missing=0.5)
    assert isinstance(dls, DataLoaders)
    fig = show_targets(dls, max_n=8)
    shown = [t.get_text() for ax in fig.axes for t in ax.texts]
    for target in FIVE[:3]:
        assert sum(t.startswith(f"{target}: ") for t in shown) == 8 and f"{target}: –" in shown
    drawn = {"box": sum(len(ax.patches) for ax in fig.axes), "centre": sum(len(ax.collections) for ax in fig.axes)}
    drawn["mask"] = sum(len(ax.images) == 2 for ax in fig.axes)
    for target, n in drawn.items():
        assert 0 < n < 8 and shown.count(f"{target}: –") == 8 - n


def test_fewer_images_than_a_batch(make_dls):
    dls = make_dls("digit", "ink", bs=64)
    assert len(show_targets(dls, max_n=3).axes) == 3
