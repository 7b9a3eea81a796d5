"""Heads added to and dropped from a trained learner, and files of weights of other heads."""

import pytest
import torch

from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import BoxHead, ClassificationHead, MultiLabelHead, PointHead, RegressionHead


@pytest.fixture
def learn(make_learner):
    learn = make_learner("digit", "ink", "tags", "centre", heads={"tags": None, "centre": None})
    learn.fit(1, 1e-2)
    return learn


def test_a_new_head_leaves_all_others_bit_for_bit(learn):
    before, state = learn.get_preds()[0], {k: v.clone() for k, v in learn.model.state_dict().items()}
    bound = learn.add_head("tags", MultiLabelHead(tap=8))
    after = learn.get_preds()[0]
    assert after.names == ("digit", "ink", "tags") and bound is learn.heads.tags
    assert torch.equal(before.digit, after.digit) and torch.equal(before.ink, after.ink)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in state.items())


def test_a_new_head_trains_and_is_measured(learn):
    learn.add_head("place", PointHead(tap=16), target="centre")
    weights = [p.clone() for p in learn.heads.place.parameters()]
    learn.fit(1, 1e-2)
    assert any(not torch.equal(a, b) for a, b in zip(weights, learn.heads.place.parameters()))
    assert {"train_place_loss", "valid_place_loss", "place_distance"} <= set(learn.recorder.metric_names)
    assert learn.get_preds(with_decoded=True)[2].names == ("digit", "ink", "place")


def test_dropping_a_head_leaves_all_others_bit_for_bit(learn):
    before = learn.get_preds()[0]
    learn.drop_head("digit")
    after = learn.get_preds()[0]
    assert after.names == ("ink",) and torch.equal(before.ink, after.ink)
    assert [m.name for m in learn.metrics] == ["ink_mae"]
    learn.fit(1, 1e-3)
    assert learn.validate()[-1] == pytest.approx(
        float((learn.get_preds()[0].ink.view(-1) - learn.get_preds()[1].ink).abs().mean()), rel=1e-4
    )


def test_what_was_frozen_stays_frozen(learn):
    learn.freeze()
    learn.add_head("tags", MultiLabelHead())
    body = [p for n, p in learn.model[0].named_parameters() if "bn" not in n and p.ndim == 4]
    assert not any(p.requires_grad for p in body)
    assert all(p.requires_grad for p in learn.heads.tags.parameters())
    assert learn.opt.frozen_idx == len(learn.opt.param_lists) - 1


def test_loss_weights_set_before_are_kept(learn):
    learn.heads.digit.loss_weight = 0.25
    learn.add_head("tags", MultiLabelHead(loss_weight=2.0))
    assert [h.loss_weight for h in learn.heads.values()] == [0.25, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "head", "target", "message"),
    [
        ("digit", ClassificationHead(), None, r"there is a head 'digit' already"),
        ("tag", MultiLabelHead(), None, r"there is no target 'tag'.*Did you mean 'tags'"),
        ("tags", ClassificationHead(), None, r"needs a target of kind category"),
        ("tags", MultiLabelHead(tap="layer9"), None, r"layer9"),
        ("number", ClassificationHead(), "digit", r"'digit' and 'number' both decode target 'digit'.*train_only"),
        ("tags", MultiLabelHead, None, r"`head` is a spec"),
        ("my tags", MultiLabelHead(), "tags", r"'my tags' is not an identifier.*'my_tags'"),
    ],
)
def test_a_head_that_does_not_fit_changes_nothing(learn, name, head, target, message):
    before = learn.get_preds()[0]
    with pytest.raises(HeadsError, match=message):
        learn.add_head(name, head, target)
    after = learn.get_preds()[0]
    assert learn.heads.names == learn.model[1].names == ("digit", "ink")
    assert torch.equal(before.digit, after.digit)


def test_a_tap_beyond_the_end_of_the_body_is_refused(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": None, "digit": ClassificationHead(tap="layer2")})
    with pytest.raises(HeadsError, match=r"this body of test_resnet ends before it, at layer2"):
        learn.add_head("ink", RegressionHead(tap="layer4"))
    learn.add_head("ink", RegressionHead(tap="layer1"))
    assert learn.get_preds()[0].names == ("digit", "ink")


def test_the_last_head_cannot_be_dropped(make_learner):
    with pytest.raises(HeadsError, match="'digit' is the only head"):
        make_learner("digit").drop_head("digit")


def test_a_file_with_more_heads_is_refused_by_name_and_loads_by_name(learn):
    learn.add_head("tags", MultiLabelHead())
    expected = learn.get_preds()[0]
    learn.save("three")
    learn.drop_head("tags")
    learn.fit(1, 1e-2)
    moved = learn.get_preds()[0]
    with pytest.raises(HeadsError, match=r"does not fit head tags: it is in the file only"):
        learn.load("three")
    assert torch.equal(learn.get_preds()[0].digit, moved.digit)
    with pytest.warns(HeadsWarning, match=r"head tags: it is in the file only"):
        learn.load("three", strict=False)
    assert torch.equal(learn.get_preds()[0].digit, expected.digit)


def test_a_file_with_fewer_heads_leaves_the_new_one_alone(learn):
    learn.save("two")
    expected = learn.get_preds()[0]
    learn.add_head("tags", MultiLabelHead())
    learn.fit(1, 1e-2)
    tags = [p.clone() for p in learn.heads.tags.parameters()]
    with pytest.warns(HeadsWarning, match=r"head tags: it is not in the file"):
        learn.load("two", strict=False)
    assert torch.equal(learn.get_preds()[0].digit, expected.digit)
    assert all(torch.equal(a, b) for a, b in zip(tags, learn.heads.tags.parameters()))


def test_a_head_of_another_shape_is_named(learn, make_learner):
    learn.save("wide")
    other = make_learner("digit", "ink", heads={"digit": ClassificationHead(lin_ftrs=[8])})
    with pytest.raises(HeadsError, match=r"does not fit head digit: .* has shape"):
        other.load(learn.path / "models" / "wide")
    with pytest.warns(HeadsWarning, match=r"left as they are: head digit"):
        other.load(learn.path / "models" / "wide", strict=False)
    assert torch.equal(other.get_preds()[0].ink, learn.get_preds()[0].ink)


def test_a_file_in_which_nothing_fits_is_refused(learn, make_learner, tmp_path):
    torch.save({"0.net.weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(HeadsError, match=r"nothing in odd\.pth fits"):
        learn.load(tmp_path / "odd", strict=False)


def test_box_of_another_learner(make_learner):
    learn = make_learner("digit", "box", heads={"box": None})
    learn.add_head("box", BoxHead(lr_mult=0.5))
    learn.fit(1, 1e-3)
    assert len(learn.opt.param_lists) == len(learn.model[0].groups()) + 1


def test_other_data_keeps_the_statistics_unless_told_otherwise(learn, make_dls):
    dls = make_dls("digit", "ink", "tags", "centre", missing=0.5)
    unit = learn.model[1]["ink"].layers[-1]
    before = unit.mean.clone(), unit.deviation.clone()
    learn.dls = make_dls("digit", "ink", "tags", "centre", bs=4)
    assert (unit.mean, unit.deviation) == before
    learn.set_dls(dls, statistics=True)
    labels = torch.tensor([float(v) for v in dls.train_ds.items.ink if v == v])
    torch.testing.assert_close(unit.mean, labels.mean()[None])
    torch.testing.assert_close(unit.deviation, labels.std(correction=0)[None])
    torch.testing.assert_close(learn.heads.ink.loss_func.deviation, unit.deviation)


def test_other_data_may_lack_labels(make_learner, make_dls):
    learn = make_learner("digit", "ink")
    learn.dls = make_dls("digit", "ink", missing=0.5)
    learn.fit(1, 1e-3)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert all(head.target.partial for head in learn.heads.values())
