"""`HeadsInterpretation`: one head against fastai's own, several against counting by hand, gaps left out."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
import torch
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.interpret import ClassificationInterpretation
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from torch import Tensor

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.partial import KnownTags, PartialBlock
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead
from fastai_heads.learner import multihead_learner
from fastai_heads.view.interpret import HeadsInterpretation
from fastai_heads.view.texts import say_both

FIVE = ("digit", "tags", "ink", "centre", "box")


def trained(learn):
    learn.fit(1, 1e-2)
    return learn


def said(fig):
    "The texts over the images of a figure, broken lines made whole."
    over = [[t.get_text().strip() for t in ax.texts if t.get_position()[0] <= ax.get_position().x0] for ax in fig.axes]
    return [" ".join(lines) for lines in over]


@pytest.fixture(scope="module")
def five(scenes, quiet):
    dls = digits_dls(FIVE, bs=8, path=scenes, n=40, size=48)
    return trained(quiet(multihead_learner(dls, "test_resnet", pretrained=False)))


@pytest.fixture(scope="module")
def gappy(scenes, quiet):
    dls = digits_dls(FIVE, bs=8, path=scenes, n=40, size=48, missing=0.5)
    return trained(quiet(multihead_learner(dls, "test_resnet", pretrained=False)))


# one head against fastai


def test_one_head_is_fastais_interpretation(make_learner):
    learn = trained(make_learner("digit"))
    ours = HeadsInterpretation.from_learner(learn)
    theirs = ClassificationInterpretation.from_learner(learn.head("digit"))
    assert (ours.confusion_matrix("digit") == theirs.confusion_matrix()).all()
    assert ours.most_confused("digit", min_val=1) == theirs.most_confused(1)
    for k, largest in ((None, True), (3, True), (3, False)):
        for head in (None, "digit"):
            values, idx = ours.top_losses(k, largest, head=head)
            expected, places = theirs.top_losses(k, largest)
            torch.testing.assert_close(Tensor(values), Tensor(expected))
            assert idx.tolist() == places.tolist()


def test_the_report_is_scikit_learns(five, capsys):
    interp = HeadsInterpretation.from_learner(five)
    _, targs, decoded = five.get_preds(with_decoded=True)
    expected = skm.classification_report(
        targs.digit, decoded.digit, labels=range(10), target_names=list(five.heads.digit.vocab), zero_division=0
    )
    assert interp.classification_report("digit") == expected
    interp.print_classification_report("digit")
    assert expected in capsys.readouterr().out
    assert interp.classification_report("tags", output_dict=True).keys() >= set(five.heads.tags.vocab)


# several heads


def test_each_heads_top_losses_and_the_total(five, monkeypatch):
    monkeypatch.setattr(five.heads.ink, "loss_weight", 0.5)
    interp = HeadsInterpretation.from_learner(five)
    losses = five.get_preds(with_loss=True)[-1]
    torch.testing.assert_close(Tensor(interp.top_losses()[0]), Tensor(losses.sort(descending=True)[0]))
    for name, own in losses.heads.pairs():
        values, idx = interp.top_losses(2, head=name)
        torch.testing.assert_close(Tensor(values), Tensor(own.sort(descending=True)[0][:2]))
        torch.testing.assert_close(Tensor(own[idx]), Tensor(values))
    rows = interp.top_losses(2, items=True)[2]
    assert rows["digit"].tolist() == [five.dls.valid.items.iloc[int(i)]["digit"] for i in interp.top_losses(2)[1]]


def test_labels_are_confused_one_by_one(five):
    interp = HeadsInterpretation.from_learner(five)
    _, targs, decoded = five.get_preds(with_decoded=True)
    expected = skm.multilabel_confusion_matrix(targs.tags.bool().numpy(), decoded.tags.bool().numpy())
    assert (interp.confusion_matrix("tags") == expected).all()


def test_items_without_a_label_are_left_out_of_their_head(gappy):
    interp = HeadsInterpretation.from_learner(gappy, ds_idx=0)
    rows = gappy.dls.train.items
    for name in FIVE:
        _, idx = interp.top_losses(head=name)
        assert sorted(idx.tolist()) == np.flatnonzero(rows[name].notna()).tolist()
    assert interp.confusion_matrix("digit").sum() == rows["digit"].notna().sum()
    assert interp.confusion_matrix("tags").sum(axis=(1, 2)).tolist() == [rows["tags"].notna().sum()] * 7
    points = interp.plot_regression("ink").axes[0].collections[0].get_offsets()
    assert len(points) == rows["ink"].notna().sum()


def test_a_loss_does_not_depend_on_the_other_labels_of_its_batch(gappy):
    losses = []
    for bs in (3, 8, 32):
        dl = gappy.dls.train.new(shuffle=False, drop_last=False, bs=bs)
        losses.append(HeadsInterpretation.from_learner(gappy, dl=dl).top_losses(head="digit"))
    for values, idx in losses[1:]:
        torch.testing.assert_close(Tensor(values), Tensor(losses[0][0]))
        assert idx.tolist() == losses[0][1].tolist()


@pytest.fixture(scope="module")
def tagged(scenes, quiet):
    "Tags of which each has its column, some of them missing, and a class."
    table, rng = pd.read_csv(scenes / "labels.csv", dtype={"digit": str}), np.random.default_rng(0)
    for tag in ("a", "b", "c"):
        table[tag] = rng.integers(0, 2, len(table)).astype(float)
        table.loc[rng.choice(len(table), 12, replace=False), tag] = np.nan
    table.loc[[0, 5], ["a", "b", "c"]] = np.nan
    tags = PartialBlock(MultiCategoryBlock(encoded=True, vocab=["a", "b", "c"]))
    getters = [ColReader("image", pref=scenes), ColReader("digit"), ColReader(["a", "b", "c"])]
    block = DataBlock((ImageBlock, CategoryBlock, tags), getters=getters, n_inp=1, splitter=IndexSplitter(range(8)))
    dls = block.dataloaders(table, bs=8, num_workers=0, item_tfms=Resize(48))
    return trained(quiet(multihead_learner(dls, "test_resnet", ["digit", "tags"], pretrained=False)))


def test_tags_may_be_missing_one_by_one(tagged):
    _, targs, decoded, losses = tagged.get_preds(with_decoded=True, with_loss=True)
    truth, said = np.asarray(targs[1]), np.asarray(decoded.tags)
    known = ~np.isnan(truth)
    assert not known[[0, 5]].any() and known.any(0).all() and 0 < (~known[1:5]).sum() < 12
    assert losses.tags.isnan().nonzero().flatten().tolist() == [0, 5]
    interp = HeadsInterpretation.from_learner(tagged)
    columns = [(truth[k, c].astype(bool), said[k, c]) for c, k in enumerate(known.T)]
    for matrix, pair in zip(interp.confusion_matrix("tags"), columns, strict=True):
        assert (matrix == skm.confusion_matrix(*pair, labels=[False, True])).all()
    report = interp.classification_report("tags", output_dict=True)
    assert [report[tag]["support"] for tag in "abc"] == [true.sum() for true, _ in columns]
    assert [report[tag]["recall"] for tag in "abc"] == [skm.recall_score(*p, zero_division=0) for p in columns]
    assert sorted(interp.top_losses(head="tags")[1].tolist()) == [1, 2, 3, 4, 6, 7]
    interp.plot_confusion_matrix("tags")
    interp.plot_top_losses(3, head="tags")
    tagged.show_results(max_n=6)
    tagged.show_batch(max_n=6)
    assert tagged.predict(tagged.dls.valid_ds.items.iloc[0])[2].tags.shape == (3,)


def test_a_tag_that_is_not_known_is_not_said_wrong():
    truth = KnownTags.of(["a"], ["b"])
    assert [say_both("tags", truth, said)[1] for said in (["a"], ["a", "b"], ["b"], ["a", "c"])] == [
        *("green", "green"),
        *("red", "red"),
    ]


def test_items_are_read_again_by_place(five):
    interp = HeadsInterpretation.from_learner(five)
    inputs, preds, targs, decoded, losses = interp[[5, 2]]
    whole = five.get_preds(with_decoded=True)
    assert len(inputs) == 2 and preds.names == FIVE
    for part, every in ((preds, whole[0]), (targs, whole[1]), (decoded, whole[2])):
        for name in FIVE:
            torch.testing.assert_close(Tensor(part[name]).float(), Tensor(every[name][[5, 2]]).float())
    assert losses.tolist() == interp.losses[[5, 2]].tolist()


# pictures


def test_top_losses_are_drawn_with_their_losses(five):
    interp = HeadsInterpretation.from_learner(five)
    values, idx = interp.top_losses(3, head="ink")
    fig = interp.plot_top_losses(3, head="ink", ncols=1)
    assert len(fig.axes) == 3
    for title, value, i in zip(said(fig), values, idx, strict=True):
        assert title.startswith(f"loss ink {value:.4g} · total {interp.losses[i]:.4g} · digit ")
    assert all(any(t.get_text().startswith("digit: ") for t in ax.texts) for ax in fig.axes)
    assert said(interp.plot_top_losses(range(1, 3), head="ink", ncols=1)) == said(fig)[1:]


def test_a_missing_label_has_no_loss(gappy):
    interp = HeadsInterpretation.from_learner(gappy, ds_idx=0)
    gap = int((~interp.known.digit).nonzero()[0])
    assert " · digit – · " in said(interp.show_results(gap))[0]


def test_the_confusion_matrix_is_drawn(five):
    interp = HeadsInterpretation.from_learner(five)
    ax = interp.plot_confusion_matrix("digit").axes[0]
    matrix = interp.confusion_matrix("digit")
    assert [t.get_text() for t in ax.texts] == [str(n) for n in matrix.ravel()]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(five.heads.digit.vocab)
    shares = interp.plot_confusion_matrix("digit", normalize=True).axes[0].images[0].get_array()
    assert set(np.round(shares.sum(1), 6)) <= {0.0, 1.0}
    fig = interp.plot_confusion_matrix("tags", plot_txt=False)
    assert [ax.get_title() for ax in fig.axes if ax.images] == list(five.heads.tags.vocab)


@pytest.mark.parametrize(
    ("head", "names"), [("ink", ["ink"]), ("centre", ["centre x", "centre y"]), ("box", ["box x1", "box y1"])]
)
def test_numbers_are_drawn_against_the_truth(five, head, names):
    fig = HeadsInterpretation.from_learner(five).plot_regression(head)
    preds, targs = five.get_preds()
    for n, (ax, name) in enumerate(zip(fig.axes, names, strict=False)):
        assert ax.get_title().startswith(f"{name}: mean error ")
        points = np.asarray(ax.collections[0].get_offsets())
        expected = torch.stack([Tensor(v[head]).float().reshape(8, -1)[:, n] for v in (targs, preds)], 1)
        np.testing.assert_allclose(points, expected.numpy(), rtol=1e-5)


# refusals


def test_wrong_heads_are_refused(make_learner):
    aux = {"aux": ClassificationHead(target="digit", train_only=True)}
    interp = HeadsInterpretation.from_learner(make_learner("digit", "ink", heads=aux))
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        interp.top_losses(3, head="digti")
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        interp.confusion_matrix("digti")
    with pytest.raises(
        HeadsError, match=r"not for head 'ink', whose target is of kind regression.*Heads for it: digit"
    ):
        interp.most_confused("ink")
    with pytest.raises(HeadsError, match="not for head 'digit'"):
        interp.plot_regression("digit")
    with pytest.raises(HeadsError, match="'aux' is auxiliary"):
        interp.confusion_matrix("aux")
    with pytest.raises(HeadsError, match="pass `head=`"):
        interp.confusion_matrix()
    with pytest.raises(HeadsError, match="head='digit'"):
        interp.top_losses(3, "digit")


def test_a_plain_learner_and_data_without_labels_are_refused(make_learner):
    learn = make_learner("digit", "ink")
    with pytest.raises(HeadsError, match="`multihead_learner`"):
        HeadsInterpretation.from_learner(learn.head("digit"))
    dl = learn.test_dl(learn.dls.valid.items)
    with pytest.raises(HeadsError, match="no labels"):
        HeadsInterpretation.from_learner(learn, dl=dl)
