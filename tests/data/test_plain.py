"""A plain PyTorch `Dataset` in fastai's loaders: targets as the heads name them."""

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import load_learner
from torch.utils.data import Dataset, IterableDataset

from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, MultiLabelHead, PointHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.specs import state_targets

HEADS = {
    "kind": ClassificationHead(n_out=3),
    "age": RegressionHead(n_out=1),
    "tags": MultiLabelHead(n_out=2),
    "nose": PointHead(n_out=2),
    "frame": BoxHead(),
}


class Pictures(Dataset):
    "Items of an image and five labels, each read counted."

    def __init__(self, n, labels=None, image=None):
        self.n, self.labels, self.image, self.read = n, labels, image, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        image = torch.full((3, 32, 32), i / 32) if self.image is None else self.image
        own = (i % 3, np.float64(i), [i % 2, 1.0], torch.tensor([0.5, -0.5]), np.array([-0.5, -0.5, 0.5, 0.5]))
        return image, *(own if self.labels is None else self.labels)


def from_loaders(train, valid):
    return DataLoaders(DataLoader(train, bs=4, shuffle=True), DataLoader(valid, bs=4))


def from_dsets(train, valid):
    return DataLoaders.from_dsets(train, valid, bs=4)


def make(dls=None, heads=HEADS, **kwargs):
    dls = from_dsets(Pictures(12), Pictures(8)) if dls is None else dls
    learn = multihead_learner(dls, "test_resnet", heads, pretrained=False, **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.rows = []
    learn.logger = learn.rows.append
    return learn


@pytest.fixture(scope="module", params=[from_loaders, from_dsets], ids=["DataLoader", "from_dsets"])
def trained(request, tmp_path_factory):
    "A learner on a plain Dataset after an epoch."
    learn = make(request.param(Pictures(12), Pictures(8)))
    learn.path = tmp_path_factory.mktemp("plain")
    learn.fit(1)
    return learn


def test_it_trains_and_has_a_table(trained):
    row = dict(zip(trained.recorder.metric_names, trained.rows[-1], strict=True))
    for column in ("train_kind_loss", "valid_age_loss", "kind_accuracy", "age_mae", "tags_accuracy_multi", "frame_iou"):
        assert np.isfinite(float(row[column]))
    assert [t.name for t in trained.data_targets] == list(HEADS) and trained.dls.n_inp == 1


def test_predictions_are_by_name_and_the_targets_are_the_datasets(trained):
    preds, targs = trained.get_preds()
    assert targs.kind.tolist() == [i % 3 for i in range(8)] and targs.age.tolist() == list(map(float, range(8)))
    assert preds.kind.shape == (8, 3) and targs.tags.shape == (8, 2)
    assert preds.nose.shape == targs.nose.shape == (8, 1, 2) and preds.frame.shape == targs.frame.shape == (8, 1, 4)


def test_predict_takes_a_tensor_and_gives_numbers(trained):
    values, _, activated = trained.predict(Pictures(8)[3][0])
    assert values.kind in (0, 1, 2) and values.kind == activated.kind.argmax().item()
    assert values.age == pytest.approx(trained.get_preds()[0].age[3].item(), rel=1e-4)
    assert trained.head("kind").get_preds()[0].shape == (8, 3)


@pytest.mark.parametrize("what", ["show_results", "show_batch"])
def test_what_needs_decoding_says_so(trained, what):
    with pytest.raises(HeadsError, match=r"cannot be shown.*DataBlock.*`learn\.predict\(tensor\)`"):
        getattr(trained, what)()


@pytest.mark.parametrize("item", ["a.png", np.zeros((32, 32, 3), np.uint8)], ids=["path", "pixels"])
def test_an_item_that_is_no_tensor_is_refused(trained, item):
    with pytest.raises(HeadsError, match=r"images are tensors \(C, H, W\) of floats.*need a DataBlock"):
        trained.predict(item)


def test_other_data_and_an_export(trained):
    trained.dls = from_dsets(Pictures(8), Pictures(4))
    assert len(trained.get_preds()[0].kind) == 4
    trained.logger = print
    trained.export()
    again = load_learner(trained.path / "export.pkl")
    assert again.predict(Pictures(1)[0][0])[0].names == tuple(HEADS)
    trained.dls = from_dsets(Pictures(12), Pictures(8))


def test_an_item_is_read_once_for_all_its_targets():
    train = Pictures(12)
    learn = make(from_dsets(train, Pictures(8)))
    train.read = 0
    learn.dls.train.dataset[5]
    assert train.read == 1


def test_statistics_come_from_a_bounded_number_of_items():
    train = Pictures(5000)
    learn = make(from_dsets(train, Pictures(8)))
    assert train.read < 600
    assert learn.heads.age.module.layers[-1].mean.item() == pytest.approx(2499.5, rel=0.01)


def test_a_label_that_is_missing_has_no_gradient():
    labels = (-100, float("nan"), [float("nan")] * 2, torch.tensor([0.5, -0.5]), [-0.5, -0.5, 0.5, 0.5])
    learn = make(
        from_dsets(Pictures(12), Pictures(4, labels)), HEADS | {"age": RegressionHead(n_out=1, standardize=False)}
    )
    learn.fit(1)
    row = dict(zip(learn.recorder.metric_names, learn.rows[-1], strict=True))
    assert np.isfinite(float(row["valid_loss"])) and np.isfinite(float(row["frame_iou"]))


GOOD = (0, 1.0, [0.0, 1.0], [0.5, -0.5], [-0.5, -0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("place", "bad", "said"),
    [
        (0, 3, r"item 0: target 'kind' is a class from 0 to 2 \(`n_out=3`\).*found 3"),
        (0, 1.0, "target 'kind' is a class"),
        (1, float("inf"), "target 'age' needs 1 finite number"),
        (1, [1.0, 2.0], "target 'age' needs 1 finite number"),
        (2, [1.0], "target 'tags' needs 2 finite number"),
        (3, [1.0], "target 'nose' needs 2 finite number"),
        (4, "a", "target 'frame' is a number or a tensor"),
    ],
)
def test_labels_that_no_head_takes_are_refused(place, bad, said):
    labels = [*GOOD[:place], bad, *GOOD[place + 1 :]]
    for dls in (from_dsets(Pictures(4, labels), Pictures(4)), from_dsets(Pictures(4, GOOD), Pictures(4, labels))):
        with pytest.raises(HeadsError, match=said):
            make(dls, HEADS | {"age": RegressionHead(n_out=1, standardize=False)})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("dls", "heads", "said"),
    [
        (
            None,
            None,
            r"of 5 target.*`heads=\{'y1': ClassificationHead\(n_out=10\), 'y2': RegressionHead\(n_out=1\)",
        ),
        (None, {"kind": ClassificationHead(n_out=3)}, r"of 5 target\(s\).*found kind\."),
        (None, HEADS | {"kind": ClassificationHead()}, r"`n_out` of `heads\['kind'\]` is needed.*`n_out=10`"),
        (lambda: DataLoaders(torch.utils.data.DataLoader(Pictures(4))), HEADS, r"`DataLoaders\.from_dsets\("),
        (lambda: DataLoaders(DataLoader(Stream(), bs=2)), HEADS, "IterableDataset"),
        (
            lambda: from_dsets([{"x": 1}] * 4, [{"x": 1}] * 4),
            HEADS,
            r"items are tuples .*, found dict",
        ),
        (lambda: from_dsets(Pictures(4, image="a"), Pictures(4)), HEADS, r"images are tensors \(C, H, W\)"),
    ],
)
def test_what_is_not_told_is_asked_for(dls, heads, said):
    with pytest.raises(HeadsError, match=said):
        make(None if dls is None else dls(), heads)


def test_what_heads_say_of_their_targets():
    found = state_targets(HEADS | {"again": ClassificationHead(target="kind", train_only=True), "left": None})
    assert {name: (s.kind, s.n_out) for name, s in found.items()} == {
        "kind": ("category", 3),
        "age": ("regression", 1),
        "tags": ("multilabel", 2),
        "nose": ("point", 2),
        "frame": ("box", 4),
        "left": ("unknown", None),
    }
    assert state_targets(None) == state_targets(["a"]) == {}
