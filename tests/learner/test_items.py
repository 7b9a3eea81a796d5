"""Predictions of many items are those of each."""

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.preds import MCDropoutCallback

from fastai_heads.errors import HeadsError


@pytest.fixture
def learn(make_learner):
    return make_learner("digit", "tags", "ink", "centre", "box")


def by_fastai(learn, item):
    "Predict an item through fastai's loop."
    dl = learn.test_dl([item])
    *_, preds, _, decoded = learn.get_preds(dl=dl, with_input=True, with_decoded=True)
    return [t[0] for t in decoded], [p[0] for p in preds]


def assert_same(one, other):
    assert str(one[0]) == str(other[0])
    for a, b in zip((*one[1], *one[2]), (*other[1], *other[2])):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_one_item_is_what_the_loop_gives(learn, table):
    learn.model.train()
    row = table.iloc[0]
    values, tensors, activated = learn.predict(row)
    for ours, theirs in zip((tensors, activated), by_fastai(learn, row)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert values.names == learn.heads.names and not learn.model.training


@pytest.mark.parametrize("form", [lambda rows: rows, lambda rows: [row for _, row in rows.iterrows()]])
def test_many_items_are_each_of_them(learn, table, form):
    rows = table[:5]
    found = learn.predict_many(form(rows), bs=2)
    assert len(found) == 5
    for answer, (_, row) in zip(found, rows.iterrows()):
        assert_same(answer, learn.predict(row))


def test_inputs_come_first_if_asked_for(learn, table):
    found = learn.predict_many(table[:3], with_input=True)
    one = learn.predict(table.iloc[2], with_input=True)
    assert len(found[2]) == len(one) == 4
    assert type(found[2][0]) is type(one[0])
    torch.testing.assert_close(found[2][0], one[0])


def test_no_items_and_one(learn, table):
    assert learn.predict_many(table[:0]) == [] == learn.predict_many([])
    (one,) = learn.predict_many(table[:1])
    assert_same(one, learn.predict(table.iloc[0]))


def test_callbacks_of_the_users_own_see_the_batches(learn, table):
    seen = []

    class Look(Callback):
        def after_pred(self):
            seen.append(len(self.pred[0]))

    plain = learn.predict_many(table[:3], bs=2)
    learn.add_cb(Look())
    with learn.no_bar():
        looked = learn.predict_many(table[:3], bs=2)
    assert seen == [2, 1]
    for one, other in zip(plain, looked):
        assert_same(one, other)


def test_dropout_callback_drops(learn, table):
    learn.add_cb(MCDropoutCallback())
    with learn.no_bar():
        one, other = (learn.predict(table.iloc[0])[2].digit for _ in range(2))
    assert not torch.equal(one, other)


def test_a_lock_of_another_thread_is_waited_for(learn, table):
    learn.predict(table.iloc[0])
    assert not learn.lock.locked()


@pytest.mark.parametrize("odd", [None, 3, [1], {"image": "there is none.png"}])
def test_what_is_no_item_is_refused_by_its_place(learn, table, odd):
    with pytest.raises(HeadsError, match=r"`items\[2\]`"):
        learn.predict_many([table.iloc[0], table.iloc[1], odd])


def test_a_file_that_cannot_be_read_is_named(learn, table, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("missing.png", "broken.png"):
        rows = table[:3].assign(image=[*table.image[:2], tmp_path / name])
        with pytest.raises(HeadsError, match=rf"`items\[2\]` cannot be read.*{name}"):
            learn.predict_many(rows)


def test_one_item_is_refused_with_what_to_write(learn, table):
    with pytest.raises(HeadsError, match="one item"):
        learn.predict_many("a.png")
    with pytest.raises(HeadsError, match="`shuffel` is not a keyword"):
        learn.predict_many(table[:2], shuffel=True)
