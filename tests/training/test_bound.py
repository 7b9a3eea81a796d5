"""A head in a learner: its loss over the labelled items, its weight, how it is reached."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead


def blanked(targs, which):
    "The targets with every label of the items `which` missing, as `PartialBlock` encodes them."
    age, breed, tags = (t.clone() for t in targs)
    age[which], breed[which], tags[which] = math.nan, -100, math.nan
    return age, breed, tags


@pytest.mark.parametrize("name", ["breed", "tags", "age"])
@pytest.mark.parametrize("which", [[], [0], [1, 2, 5], list(range(7))], ids=str)
def test_the_loss_is_that_of_the_labelled_items_alone(three, batch, name, which):
    whole, partial = three()[name], three(partial=True)[name]
    pred, index = batch[0][["breed", "tags", "age"].index(name)], whole.target.index
    targ, kept = batch[1][index], [i for i in range(8) if i not in which]
    gaps = blanked(batch[1], which)[index]
    wanted = whole.train_loss(pred[kept], targ[kept])
    (wanted_grad,) = torch.autograd.grad(wanted, pred)
    found = partial.train_loss(pred, gaps)
    (grad,) = torch.autograd.grad(found, pred)
    assert torch.equal(found, wanted) and torch.equal(grad, wanted_grad)
    assert partial.labelled(gaps).tolist() == [i in kept for i in range(8)]
    per_item = partial.item_loss(pred, gaps)
    assert per_item.shape == (8,) and per_item[which].isnan().all()
    torch.testing.assert_close(per_item[kept].mean(), wanted)
    torch.testing.assert_close(per_item[kept], whole.item_loss(pred, targ)[kept])


@pytest.mark.parametrize("name", ["breed", "tags", "age"])
def test_a_batch_without_a_label_gives_zero_and_reaches_every_parameter(three, batch, name):
    head = three(partial=True)[name]
    targ = blanked(batch[1], list(range(8)))[head.target.index]
    pred = head.module(torch.randn(8, 4))
    loss = head.train_loss(pred, targ)
    loss.backward()
    assert loss.item() == 0
    assert [p.grad is not None and not p.grad.any() for p in head.parameters()] == [True, True]
    assert head.item_loss(pred, targ).isnan().all() and head.loss_count(pred, targ, loss) == 0
    assert head.item_loss(pred, targ).requires_grad


def test_without_a_partial_block_every_item_counts(three, batch):
    head = three()["breed"]
    targ = batch[1][1].clone()
    targ[0] = -100
    assert head.labelled(targ).all()
    torch.testing.assert_close(head.train_loss(batch[0][0], targ), F.cross_entropy(batch[0][0], targ))


def test_weighted_cross_entropy_divides_by_the_weights_of_the_labelled_items(three, batch):
    head = three(partial=True, breed={"class_weights": [0.1, 1, 5]})["breed"]
    targ = blanked(batch[1], [0, 3])[1]
    wanted = F.cross_entropy(batch[0][0], targ, weight=torch.tensor([0.1, 1, 5]))  # torch ignores −100
    torch.testing.assert_close(head.train_loss(batch[0][0], targ), wanted)
    each = F.cross_entropy(batch[0][0], targ, weight=torch.tensor([0.1, 1, 5]), reduction="none")
    each[[0, 3]] = math.nan
    torch.testing.assert_close(torch.as_tensor(head.item_loss(batch[0][0], targ)), each, equal_nan=True)
    weights = torch.tensor([0.1, 1, 5])[targ[targ >= 0]].sum()
    torch.testing.assert_close(float(head.loss_count(batch[0][0], targ, wanted)), float(weights), rtol=1e-6, atol=0)


def test_the_weight_may_be_set_and_bad_ones_are_refused(three):
    head = three(breed={"loss_weight": 2})["breed"]
    assert head.loss_weight == 2.0
    for good in (0, 0.5, np.float32(3)):
        head.loss_weight = good
        assert head.loss_weight == float(good) and type(head.loss_weight) is float
    for bad in (-1, math.nan, math.inf, "1", None, True):
        with pytest.raises(HeadsError, match=r"`loss_weight` of head 'breed' is a finite number of at least 0, found"):
            head.loss_weight = bad
    assert head.loss_weight == 3.0


def test_heads_are_reached_by_name_and_attribute(three):
    heads = three()
    assert heads.breed is heads["breed"] and list(heads) == ["breed", "tags", "age"] == list(heads.names)
    assert len(heads) == 3 and "tags" in heads and "tag" not in heads and "age" in dir(heads)
    assert heads.get("zebra") is None and [h.name for h in heads.values()] == list(heads.names)
    assert heads.breed.vocab == ("cat", "dog", "fox") and heads.age.vocab is None
    assert heads.tags.module is heads.tags._heads["tags"]
    assert repr(heads).splitlines()[0] == "breed: ClassificationHead on 'features', target 'breed'"
    with pytest.raises(HeadsError, match=r"no head 'bred'. There is breed, tags, age. Did you mean 'breed'"):
        heads["bred"]
    with pytest.raises(AttributeError, match="Did you mean 'breed'"):
        _ = heads.bred


def test_a_name_that_begins_with_an_underscore_is_reached_too(three, bind):
    breed = three()["breed"]
    heads = bind({"_2nd": (breed.spec, breed.target)})
    assert heads._2nd is heads["_2nd"]
    assert not hasattr(heads, "_other") and not hasattr(heads, "__len__x__")
    assert pickle.loads(pickle.dumps(heads))._2nd.name == "_2nd"


def test_deciding_heads_are_all_but_the_auxiliary(bind, three):
    target = three()["breed"].target
    specs = {"breed": ClassificationHead(n_out=3), "aux": ClassificationHead(n_out=3, train_only=True)}
    heads = bind({name: (spec, target) for name, spec in specs.items()})
    assert [h.name for h in heads.deciding] == ["breed"]


def test_activation_and_decoding_are_the_specs(three, batch):
    heads, (breed, tags, age) = three(tags={"threshold": 0.3}), batch[0]
    torch.testing.assert_close(heads.breed.activation(breed), breed.softmax(1))
    assert torch.equal(heads.breed.decode(breed.softmax(1)), breed.argmax(1))
    assert torch.equal(heads.tags.decode(heads.tags.activation(tags)), tags.sigmoid() > 0.3)
    assert heads.age.decode(heads.age.activation(age)) is age


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "los_weight",
            r"`learn.heads.breed.los_weight` cannot be set: a head has no 'los_weight'\. Did you mean 'loss_wei",
        ),
        ("weight", r"a head has no 'weight'\. Did you mean 'loss_weight'"),
        ("lr_mult", r"`learn.heads.breed.lr_mult` cannot be set: it is fixed.*`heads=\{'breed': …\(lr_mult=1\)\}`"),
        ("metrics", r"it is fixed when the head is made"),
        ("xyz", r"a head has no 'xyz'\. What may change while training is `loss_weight`"),
    ],
)
def test_what_a_head_does_not_have_cannot_be_set(three, name, says):
    head = three()["breed"]
    with pytest.raises(HeadsError, match=says):
        setattr(head, name, 1)
    assert name not in vars(head)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("foo", r"`learn.heads.foo` cannot be set: `learn.add_head\('foo', spec\)`.*Heads: breed, tags, age"),
        ("bred", r"`learn.heads.bred` cannot be set.*Did you mean 'breed'"),
        (
            "breed",
            r"`learn.heads.breed` cannot be set: `learn.drop_head\('breed'\)`, then `learn.add_head\('breed', spec\)`",
        ),
    ],
)
def test_heads_cannot_be_set(three, name, says):
    heads = three()
    with pytest.raises(HeadsError, match=says):
        setattr(heads, name, ClassificationHead())
    assert heads.names == ("breed", "tags", "age")
