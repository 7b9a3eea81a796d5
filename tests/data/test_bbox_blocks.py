"""fastai's own two blocks of boxes beside other targets."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.learner import load_learner
from fastai.vision.augment import Flip
from fastai.vision.core import TensorBBox, TensorMultiCategory
from fastai.vision.data import BBoxBlock, BBoxLblBlock, ImageBlock, bb_pad
from PIL import Image
from torch import Tensor

from fastai_heads.data.bbox_blocks import join_boxes, pad_boxes
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock, LabeledBoxes, TensorDetections, to_pixels
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.targets import dls_targets
from fastai_heads.errors import HeadsError
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.view.interpret import HeadsInterpretation
from fastai_heads.view.show import show_targets

BOXES = [[[4, 8, 20, 24], [10, 2, 30, 12]], [], [[0, 0, 64, 32]], [[1, 1, 5, 5]], [[2, 2, 60, 30]], []]
LABELS = [["cat", "dog"], [], ["cat"], ["dog"], ["cat"], []]
FIELDS = {"channels": 64, "tap": (4, 8), "extra_levels": 0, "score_thresh": 0.0, "decode_score": 0.0}


@pytest.fixture
def table(tmp_path):
    "Six pictures 64 wide and 32 high; the last two validate."
    for i in range(6):
        Image.fromarray(np.random.randint(0, 255, (32, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    columns = {"image": [f"{i}.png" for i in range(6)], "kind": list("ababab"), "boxes": BOXES, "labels": LABELS}
    return pd.DataFrame({**columns, "is_valid": [False] * 4 + [True] * 2})


@pytest.fixture
def make(tmp_path, table):
    "A function: blocks and their getters between image and class → `DataLoaders`."

    def load(blocks=(BBoxBlock, BBoxLblBlock), readers=("boxes", "labels"), bs=2, before_batch=pad_boxes, **tfms):
        readers = [ColReader(r) if isinstance(r, str) else r for r in readers]
        data = DataBlock(
            (ImageBlock, *blocks, CategoryBlock),
            getters=[ColReader("image", pref=tmp_path), *readers, ColReader("kind")],
            n_inp=1,
            splitter=ColSplitter("is_valid"),
            **tfms,
        )
        padding = {} if before_batch is None else {"before_batch": before_batch}  # None: the blocks' own
        return data.dataloaders(table, bs=bs, num_workers=0, path=tmp_path, **padding)

    return load


def test_stock_blocks_make_a_batch_beside_others(make):
    x, boxes, labels, kind = make().train.new(shuffle=False).one_batch()
    assert (boxes.shape, labels.shape, kind.shape) == ((2, 2, 4), (2, 2), (2,)) and len(x) == 2
    assert isinstance(boxes, TensorBBox) and isinstance(labels, TensorMultiCategory)
    assert torch.allclose(to_pixels(boxes[0].as_subclass(Tensor), 32, 64), torch.tensor(BOXES[0]).float())
    assert labels.tolist() == [[1, 2], [0, 0]] and not boxes[1].any()  # 0 is fastai's '#na#'


def test_alone_they_are_padded_as_fastai_does():
    samples = []
    for n in (3, 1):
        corners = torch.rand(n, 2) - 1
        boxes = torch.cat([corners, corners + torch.rand(n, 2) * 2], 1)
        samples.append((torch.rand(3, 8, 8), TensorBBox(boxes), TensorMultiCategory(torch.arange(1, n + 1))))
    for own, theirs in zip(pad_boxes(samples), bb_pad(samples), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))


def test_no_object_in_a_whole_batch_is_one_row_of_nothing(make, table):
    table["boxes"], table["labels"] = [[] for _ in range(6)], [[] for _ in range(6)]
    _, boxes, labels, _ = make((BBoxBlock, lambda: BBoxLblBlock(["cat", "dog"]))).one_batch()
    assert boxes.shape == (2, 1, 4) and not boxes.any() and not labels.any()


def test_two_blocks_become_the_target_of_a_detection_block(make):
    stock = join_boxes(make(batch_tfms=Flip(p=1.0)))
    readers = (BoxesReader("boxes", "labels"),)
    block = make((lambda: DetectionBlock(["cat", "dog"]),), readers, before_batch=None, batch_tfms=Flip(p=1.0))
    assert join_boxes(block) is block and join_boxes(stock) is stock
    assert [(t.name, t.kind, t.vocab) for t in dls_targets(stock)] == [
        ("boxes", "detection", ("cat", "dog")),
        ("kind", "category", ("a", "b")),
    ]
    for dl, other in zip(stock.loaders, block.loaders):
        batches = zip(dl.new(shuffle=False, drop_last=False), other.new(shuffle=False, drop_last=False), strict=True)
        for own, theirs in batches:
            assert isinstance(own[1], TensorDetections) and all(torch.equal(a, b) for a, b in zip(own, theirs))
            for a, b in zip(dl.decode_batch(own), other.decode_batch(theirs)):
                assert isinstance(a[1], LabeledBoxes) and a[1].labels == b[1].labels and torch.equal(a[1], b[1])


def test_the_users_data_is_left_as_it_is(make):
    dls = make()
    before = [list(map(str, getattr(dls.train, name).fs)) for name in ("after_item", "before_batch", "after_batch")]
    multihead_learner(dls, "test_resnet", pretrained=False, normalize=False)
    after = [list(map(str, getattr(dls.train, name).fs)) for name in ("after_item", "before_batch", "after_batch")]
    assert before == after and len(dls.one_batch()) == 4


def test_the_whole_of_a_learner(make, table, tmp_path):
    dls = make()
    learn = multihead_learner(dls, "test_resnet", heads={"boxes": DetectionHead(**FIELDS)}, pretrained=False)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = print
    assert learn.heads.names == ("boxes", "kind")
    learn.fit(1)
    preds, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    assert (preds.names, targs.names) == (("boxes", "kind"),) * 2
    assert preds.boxes.shape == decoded.boxes.shape == (2, 100, 6) and targs.boxes.shape == (2, 1, 5)
    assert losses.boxes.isfinite().all()
    values = learn.predict(table.iloc[0])[0]
    assert isinstance(values.boxes, LabeledBoxes) and set(values.boxes.labels) <= {"cat", "dog"} and values.kind in "ab"
    labelled = learn.get_preds(dl=learn.test_dl(table, with_labels=True))[1]
    assert (labelled.boxes[..., 4] >= 0).sum(1).tolist() == [len(b) for b in BOXES]
    for fig in (learn.show_batch(max_n=2), learn.show_results(max_n=2, shuffle=False), show_targets(dls, max_n=2)):
        assert any(ax.patches for ax in fig.axes)
    HeadsInterpretation.from_learner(learn).plot_top_losses(2, head="boxes")
    learn.dls = make(bs=3)
    assert learn.dls.bs == 3 and len(learn.dls.one_batch()) == 3
    learn.export("stock.pkl")
    again = load_learner(tmp_path / "stock.pkl").predict(table.iloc[0])[2].boxes
    assert torch.allclose(again, learn.predict(table.iloc[0])[2].boxes, atol=1e-6)


def test_the_default_head_measures_map(make):
    pytest.importorskip("pycocotools")
    learn = multihead_learner(make(), "test_resnet", pretrained=False)
    assert [m.name for m in learn.metrics] == ["boxes_map", "boxes_map50", "kind_accuracy"]
    with learn.no_bar():
        assert all(v is None or v >= 0 for v in learn.validate())


def test_no_other_block_needs_no_padding_of_ours(tmp_path, table):
    readers = [ColReader("image", pref=tmp_path), ColReader("boxes"), ColReader("labels")]
    block = DataBlock((ImageBlock, BBoxBlock, BBoxLblBlock), getters=readers, n_inp=1, splitter=ColSplitter("is_valid"))
    learn = multihead_learner(block.dataloaders(table, bs=2, num_workers=0), "test_resnet", pretrained=False)
    assert learn.heads.boxes.vocab == ("cat", "dog") and len(learn.dls.one_batch()) == 2


@pytest.mark.parametrize(
    ("boxes", "labels", "said"),
    [
        ([[20, 8, 4, 24]], ["cat"], r"row 2 \(2.png\): .*x1 < x2"),
        ([[4, 8, 4, 24]], ["cat"], r"row 2 \(2.png\): .*x1 < x2"),
        ([], ["cat"], r"row 2 \(2.png\): .*0 box\(es\) and 1 label\(s\)"),
        ([[4, 8, 20, 24]], [], r"row 2 \(2.png\): .*1 box\(es\) and 0 label\(s\)"),
        ([[30, 10, 90, 30]], ["cat"], r"row 2 \(2.png\): box .* lies outside its image of 64×32 pixels"),
    ],
)
def test_bad_boxes_are_refused_with_row_and_file(make, table, boxes, labels, said):
    table.at[2, "boxes"], table.at[2, "labels"] = boxes, labels
    with pytest.raises(HeadsError, match=said):
        list(join_boxes(make()).train)


def test_missing_boxes_name_the_block_that_takes_them(make, table):
    dls = make()
    table.at[2, "boxes"] = None
    dls.train_ds.tls[1].items.loc[2, "boxes"] = None
    with pytest.raises(HeadsError, match=r"row 2 \(2.png\).*PartialBlock\(DetectionBlock\(\)\)"):
        join_boxes(dls)
    with pytest.raises(HeadsError, match=r"PartialBlock\(DetectionBlock\(\)\)"):
        join_boxes(make((lambda: PartialBlock(BBoxBlock), BBoxLblBlock)))


def test_one_block_without_the_other(make):
    labels = make((BBoxLblBlock,), ("labels",), bs=1, before_batch=None)
    with pytest.raises(HeadsError, match="labels without boxes"):
        multihead_learner(labels, "test_resnet", pretrained=False)
    boxes = make((BBoxBlock,), ("boxes",), bs=1)
    with pytest.raises(HeadsError, match=r"has its `BBoxLblBlock` right behind it.*`BoxBlock`"):
        multihead_learner(boxes, "test_resnet", pretrained=False)


def test_a_label_that_the_training_set_lacks_is_refused_by_row(make, table):
    table.at[4, "labels"] = ["bird"]
    with pytest.raises(HeadsError, match=r"row 4 \(4.png\).*'bird' of a box is not in the vocabulary"):
        join_boxes(make())
