"""What is refused before a training step: batches, empty sets, other data."""

from dataclasses import replace

import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.vision.data import ImageBlock

from fastai_heads.data.digits import digits_block
from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import dls_targets
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.guards import check_batches

PLAIN = {"digit": ClassificationHead(first_bn=False, lin_ftrs=[])}


def changed(learn, before):
    return [p for p, old in zip(learn.model.parameters(), before, strict=True) if not torch.equal(p, old)]


def test_ranks_share_the_last_batch(split_dls, make_learner):
    learn = make_learner(dls=split_dls(range(34, 40), drop_last=False))  # 34 items: 16, 16, and 1 for each of two ranks
    check_batches(learn.dls, learn.model)
    with pytest.raises(HeadsError, match=r"the last of 3 training batches \(34 items, `bs=8`\) holds one item"):
        check_batches(learn.dls, learn.model, ranks=2)
    dls = split_dls(range(10, 40))  # 10 items, drop_last
    check_batches(dls, learn.model)
    with pytest.raises(HeadsError, match=r"gives no batch: 10 item\(s\).*on 2 ranks. Pass `bs=5` or less"):
        check_batches(dls, learn.model, ranks=2)


@pytest.mark.parametrize("train", ["fit", "fit_one_cycle", "fine_tune"])
def test_a_batch_of_one_is_refused_before_the_first_step(make_learner, train):
    learn = make_learner("digit", bs=1)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(HeadsError, match=r"`dls\.train`: every training batch holds one item, .*Pass `bs=2` or more"):
        getattr(learn, train)(1)
    assert not changed(learn, before) and learn.rows == []
    with pytest.raises(HeadsError, match="every training batch holds one item"):
        learn.lr_find(show_plot=False)


def test_a_last_batch_of_one_is_refused(split_dls, make_learner):
    learn = make_learner(dls=split_dls(range(33, 40), drop_last=False))
    assert learn.dls.train.n == 33
    with pytest.raises(HeadsError, match=r"the last of 5 training batches \(33 items, `bs=8`\).*`drop_last=True`"):
        learn.fit(1)
    make_learner(dls=split_dls(range(33, 40))).fit(1)  # fastai drops the last batch unless it is told not to
    make_learner(dls=split_dls(range(34, 40), drop_last=False)).fit(1)


def test_a_batch_norm_of_the_body_minds_a_map_of_one_pixel(make_learner):
    learn = make_learner("digit", bs=1, heads=PLAIN)
    with pytest.raises(HeadsError, match=r"would see one value per channel \(0\.net\.layer4.*Pass `bs=2` or more\.$"):
        learn.fit(1)


def test_batches_of_one_pass_where_no_batch_norm_minds(make_learner):
    learn = make_learner("digit", bs=1, heads={"digit": replace(PLAIN["digit"], tap="layer2")})
    learn.fit(1)
    assert len(learn.rows) == 1 and len(learn.recorder.losses) == 32


def test_a_training_set_smaller_than_a_batch_is_refused(make_learner):
    with pytest.raises(HeadsError, match=r"gives no batch: 32 item\(s\), `bs=64` and `drop_last=True`\. Pass `bs=32`"):
        make_learner("digit", bs=64).fit(1)


def test_an_empty_training_set_is_refused(make_dls):
    with pytest.raises(HeadsError, match=r"`dls\.train` holds no item.*training set of one item at least.*`new_empty`"):
        multihead_learner(make_dls("digit", "ink").new_empty(), "test_resnet", pretrained=False)


def test_a_learner_whose_items_are_gone_says_how_to_train_on(make_learner, make_dls):
    learn = make_learner("digit")
    learn.dls = learn.dls.new_empty()
    with pytest.raises(HeadsError, match=r"`dls\.train` holds no item to train on: .*`learn\.dls = dls`"):
        learn.fit(1)
    learn.dls = make_dls("digit")
    learn.fit(1)
    assert len(learn.rows) == 1


# `learn.dls`


def classes(table, scenes, column, **kwargs):
    table["image"] = [str(scenes / f) for f in table.image]
    block = DataBlock(
        (ImageBlock, CategoryBlock(sort=False, **kwargs)), getters=[ColReader("image"), ColReader(column)],
        splitter=RandomSplitter(seed=0),
    )  # fmt: skip
    return block.dataloaders(table, bs=8, num_workers=0)


@pytest.mark.parametrize("vocab", [list("9876543210"), list("0123456789x")], ids=["order", "more"])
def test_other_vocabularies_are_refused_and_the_learner_is_unharmed(make_learner, scenes, table, vocab):
    learn = make_learner("digit")
    old, preds = learn.dls, learn.get_preds()[0].digit
    with pytest.raises(
        HeadsError, match=r"`learn\.dls`: target 'digit' has another vocabulary: expected .* found .*vocab="
    ):
        learn.dls = classes(table, scenes, "digit", vocab=vocab)
    assert learn.dls is old
    assert torch.equal(learn.get_preds()[0].digit, preds)
    learn.fit(1)
    learn.show_results()
    assert len(learn.rows) == 1


def test_other_targets_are_refused(make_learner, make_dls):
    learn = make_learner("digit", "ink")
    for other in (make_dls("digit"), make_dls("ink", "digit"), make_dls("digit", "ink", "box")):
        with pytest.raises(
            HeadsError, match=r"made for targets digit \(category\), ink \(regression\), and the new data"
        ):
            learn.dls = other


def test_the_same_targets_are_taken(make_learner, make_dls, scenes, table):
    learn = make_learner("digit")
    for new in (make_dls("digit", bs=4), classes(table, scenes, "digit", vocab=list("0123456789"))):
        learn.dls = new
        learn.fit(1)
        assert learn.dls is new
    assert len(learn.rows) == 2


# the sample


def test_drawing_a_sample_leaves_the_random_state_alone(make_dls):
    dls = make_dls("digit", "ink")
    state = torch.get_rng_state()
    (image,) = draw_sample(dls, n=1).inputs()
    assert torch.equal(state, torch.get_rng_state())
    assert image.shape == (1, 3, 32, 32) and image.dtype == torch.float32
    assert [t.name for t in dls_targets(dls)] == ["digit", "ink"]


# `learn.dls` is looked at as the first data is


def test_new_data_is_looked_at_row_by_row(make_learner, scenes, table):
    learn = make_learner("box")
    old = learn.dls
    table.loc[39, "box"] = "20 2 4 30"
    block = digits_block(scenes, ("box",))
    with pytest.raises(HeadsError, match=r"target 'box', row 39 \(.*\) of the validation set: .*x1 < x2"):
        learn.dls = block.dataloaders(table, bs=8, num_workers=0)
    assert learn.dls is old


def test_targets_keep_the_names_that_heads_gave_them(make_learner, make_dls):
    learn = make_learner("digit", "ink", "centre", heads=["number", "mass", "pts"])
    learn.dls = make_dls("digit", "ink", "centre")
    preds, targs = learn.get_preds()
    assert preds.names == targs.names == ("number", "mass", "pts")
    assert torch.equal(targs.mass, targs[1]) and targs.pts.shape == preds.pts.shape == (8, 1, 2)
    learn.show_results()
    assert learn.show_batch() is not None
