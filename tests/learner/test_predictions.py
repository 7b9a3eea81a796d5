"""Predictions, losses and test-time augmentation for one, two and five heads."""

import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.augment import aug_transforms
from fastai.vision.data import ImageBlock

from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead

SETS = [("digit",), ("digit", "parity"), ("digit", "tags", "ink", "centre", "box")]


@pytest.fixture(params=SETS, ids=len)
def learn(request, make_learner, two_classes):
    return make_learner(dls=two_classes) if "parity" in request.param else make_learner(*request.param)


@pytest.fixture
def two_classes(scenes, table, tmp_path):
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=list("0123456789")), CategoryBlock(vocab=["even", "odd"])),
        n_inp=1,
        get_x=ColReader("image", pref=scenes),
        get_y=[ColReader("digit"), ColReader("parity")],
        splitter=ColSplitter(),
    )
    return block.dataloaders(_with_parity(table), bs=8, num_workers=0, path=tmp_path)


@pytest.fixture
def rows(table):
    return _with_parity(table)


def _with_parity(table):
    return table.assign(parity=["odd" if int(d) % 2 else "even" for d in table.digit])


def test_losses_per_item_add_up(learn):
    *_, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (8,)
    assert losses.heads.names == learn.heads.names
    weighted = sum(loss * head.loss_weight for loss, head in zip(losses.heads, learn.heads.values()))
    torch.testing.assert_close(torch.as_tensor(losses), torch.as_tensor(weighted))
    assert losses.digit is losses.heads.digit


def test_the_mean_of_the_losses_is_the_validation_loss(learn):
    losses = learn.get_preds(with_loss=True)[-1]
    total, *rest = learn.validate()
    assert float(losses.mean()) == pytest.approx(total, rel=1e-5)
    for mean, loss in zip(rest, losses.heads):
        assert float(loss.mean()) == pytest.approx(mean, rel=1e-5)


def test_every_flag_at_once_and_in_fastais_order(learn, tmp_path):
    for folder in ("preds", "targs"):
        (tmp_path / folder).mkdir()
    inputs, preds, targs, decoded, losses = learn.get_preds(
        with_input=True,
        with_decoded=True,
        with_loss=True,
        save_preds=tmp_path / "preds",
        save_targs=tmp_path / "targs",
        reorder=False,
    )
    assert len(inputs) == len(losses) == 8
    assert preds.names == decoded.names == learn.heads.names
    assert targs.names == tuple(t.name for t in learn.data_targets)
    saved = torch.load(tmp_path / "targs" / "0", weights_only=False)
    assert len(saved) == len(targs) and all(torch.equal(a, b) for a, b in zip(saved, targs))
    assert len(torch.load(tmp_path / "preds" / "0", weights_only=False)) == len(preds)


def test_an_empty_test_set_gives_empty_answers(learn):
    preds, targs, decoded = learn.get_preds(dl=learn.test_dl([]), with_decoded=True)
    assert targs is None and decoded.names == learn.heads.names
    assert [p.flatten(1).shape for p in preds] == [(0, h.spec.n_out) for h in learn.heads.values()]


def test_a_batch_of_one_and_an_odd_last_batch(learn, rows):
    whole = learn.get_preds(dl=learn.test_dl(rows[:3], bs=3))[0]
    odd = learn.get_preds(dl=learn.test_dl(rows[:3], bs=2))[0]
    one = learn.get_preds(dl=learn.test_dl(rows[:1]))[0]
    for a, b, c in zip(whole, odd, one):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a[:1], c)


def test_labels_are_read_with_the_right_number_of_inputs(learn, rows):
    dl = learn.test_dl(rows[:4], with_labels=True)
    assert dl.n_inp == 1
    assert len(dl.one_batch()) == 1 + len(learn.data_targets)
    assert learn.get_preds(dl=dl)[1].names == tuple(t.name for t in learn.data_targets)


def test_losses_without_labels_are_refused(learn, rows):
    with pytest.raises(HeadsError, match=r"`with_loss=True` needs labels.*with_labels=True"):
        learn.get_preds(dl=learn.test_dl(rows[:4]), with_loss=True)


def test_predictions_alone_or_targets_alone(learn):
    preds, targs = learn.get_preds(with_targs=False)
    assert targs is None and len(preds) == len(learn.heads)
    preds, targs = learn.get_preds(with_preds=False)
    assert preds is None and len(targs) == len(learn.data_targets)


def test_predictions_leave_the_record_of_the_last_fit(learn):
    learn.fit(1, 1e-3)
    names = ("losses", "values", "losses_by_head", "metric_names")
    before = {name: list(getattr(learn.recorder, name)) for name in names}
    learn.get_preds()
    learn.validate()
    assert {name: list(getattr(learn.recorder, name)) for name in names} == before
    assert before["losses"] and before["values"]


def test_tta_without_augmentation_is_a_plain_prediction(make_learner):
    learn = make_learner("digit", "tags")
    plain, targs = learn.get_preds()
    averaged, again = learn.tta(n=2)
    for a, b in zip((*plain, *targs), (*averaged, *again)):
        torch.testing.assert_close(a, b)


def test_tta_is_fastais_formula_head_by_head(make_dls, make_learner):
    dls = make_dls("digit", "tags", batch_tfms=aug_transforms(do_flip=False, max_rotate=20.0, p_affine=1.0))
    learn = make_learner(dls=dls)
    (augmented, plain), _ = learn.tta(n=2, beta=None)
    assert not torch.allclose(augmented.digit, plain.digit)
    torch.testing.assert_close(plain.digit, learn.get_preds()[0].digit)
    torch.manual_seed(7)
    mixed = learn.tta(n=2, beta=0.25, heads=("digit",))[0]
    torch.testing.assert_close(mixed.tags, plain.tags)
    assert not torch.allclose(mixed.digit, plain.digit)
    largest = learn.tta(n=2, use_max=True)[0]
    assert (largest.digit >= plain.digit - 1e-6).all()


def test_tta_refuses_by_name_what_moves_with_the_image(make_learner):
    learn = make_learner("digit", "centre", "box")
    with pytest.raises(HeadsError, match=r"centre, box move with the image.*heads=\('digit',\)"):
        learn.tta()
    plain = learn.get_preds()[0]
    torch.testing.assert_close(learn.tta(n=1, heads=("digit",))[0].box, plain.box)
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        learn.tta(heads=("digti",))


def test_a_head_called_as_a_method_of_tensors_is_reached_through_heads(make_learner):
    learn = make_learner("digit", heads={"size": ClassificationHead(target="digit")})
    losses = learn.get_preds(with_loss=True)[-1]
    assert losses.size() == (8,) and losses.heads.size.shape == (8,)


def test_predictions_measure_nothing(make_learner):
    learn = make_learner("digit", "ink")
    learn.fit(1)
    measured = list(learn.validate())
    metrics, counts = list(learn.metrics), [m.metric.count for m in learn.metrics]
    learn.get_preds(ds_idx=0)
    assert list(learn.metrics) == metrics and [m.metric.count for m in learn.metrics] == counts
    with pytest.raises(ZeroDivisionError):
        learn.get_preds(act=lambda pred: 1 / 0)
    assert list(learn.metrics) == metrics and list(learn.validate()) == measured
