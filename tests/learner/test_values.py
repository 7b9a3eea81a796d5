"""A value per item and a figure of the table are the same whatever the size of the batches: kinds of heads × `bs`."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter
from fastai.learner import AvgLoss, Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, L1LossFlat, MSELossFlat
from fastai.metrics import DiceMulti, Perplexity, accuracy, foreground_acc, rmse
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, MaskBlock
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from fastai_heads.data.digits import digits_dls
from fastai_heads.heads import (
    BoxHead,
    ClassificationHead,
    DetectionHead,
    MultiLabelHead,
    PointHead,
    RegressionHead,
    SegmentationHead,
)
from fastai_heads.learner import multihead_learner
from fastai_heads.view.interpret import HeadsInterpretation

WEIGHTS = torch.tensor([1.0] * 9 + [10.0])
CODES = torch.linspace(0.2, 3, 11)
POSITIVE = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
TARGETS = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")
MASK = {"decoder": "dynamic_unet", "metrics": []}
BOXES = {"channels": 64, "tap": (4, 8), "extra_levels": 0, "metrics": []}


def also(make, target, **fields):
    "A further head on a target."
    return make(target=target, train_only=True, **fields)


HEADS = {
    "digit": ClassificationHead(class_weights=WEIGHTS, loss_weight=0.5, metrics=[accuracy, AvgLoss(), Perplexity()]),
    "smooth": also(ClassificationHead, "digit", class_weights=WEIGHTS, label_smoothing=0.1),
    "plain": also(ClassificationHead, "digit"),
    "focal": also(ClassificationHead, "digit", loss=FocalLossFlat(weight=WEIGHTS)),
    "summed": also(ClassificationHead, "digit", loss=CrossEntropyLossFlat(reduction="sum")),
    "tags": MultiLabelHead(pos_weight=POSITIVE),
    "ink": RegressionHead(metrics=rmse),
    "centre": PointHead(),
    "box": BoxHead(loss_weight=3.0),
    "mask": SegmentationHead(class_weights=CODES, **MASK),
    "mask_focal": also(SegmentationHead, "mask", losses="focal", **MASK),
    "mask_dice": also(SegmentationHead, "mask", losses="dice", **MASK),
    "mask_lovasz": also(SegmentationHead, "mask", losses=("cross_entropy", "lovasz"), **MASK),
    "boxes": DetectionHead(**BOXES),
    "fcos": also(DetectionHead, "boxes", kind="fcos", **BOXES),
}

LOSSES = {  # fastai's, of one target
    "digit": CrossEntropyLossFlat(weight=WEIGHTS),
    "smooth": CrossEntropyLossFlat(weight=WEIGHTS, label_smoothing=0.1),
    "plain": CrossEntropyLossFlat(),
    "focal": FocalLossFlat(weight=WEIGHTS),
    "summed": CrossEntropyLossFlat(reduction="sum"),
    "tags": BCEWithLogitsLossFlat(pos_weight=torch.tensor(POSITIVE)),
    "ink": MSELossFlat(),
    "centre": MSELossFlat(),
    "box": L1LossFlat(),
    "mask": CrossEntropyLossFlat(axis=1, weight=CODES),
}


@pytest.fixture(scope="module")
def learn(scenes, quiet):
    "Every kind of head, three labels of ten missing."
    dls = digits_dls(TARGETS, n=40, size=32, bs=8, path=scenes, missing=0.3)
    learn = quiet(multihead_learner(dls, "test_resnet", HEADS, pretrained=False))
    learn.fit(1, 1e-3)
    return learn


def columns(learn):
    "What `validate` measures."
    return [name for name in learn.recorder.metric_names[1:-1] if not name.startswith("train_")]


def loader(learn, bs):
    "Sixteen items of the training set."
    return learn.dls.train.new(shuffle=False, drop_last=False, bs=bs, get_idxs=first)


def first():
    return list(range(16))


@pytest.fixture(scope="module")
def outputs(learn):
    "The raw output and the target of every head for the whole set, and which items have a label."
    loss_func, seen = learn.loss_func, []
    learn.model.eval()
    with torch.no_grad():
        batch = loader(learn, 16).one_batch()
        preds = learn.model(batch[0])
    for head, pred in zip(loss_func.heads.values(), preds):
        targ = batch[1 + head.target.index].as_subclass(Tensor)
        seen.append((pred, targ, head.labelled(targ)))
    return dict(zip(loss_func.heads, seen))


@pytest.fixture(scope="module")
def at(learn):
    "A function: the size of the batches → table and values per item."
    found = {}

    def ask(bs):
        if bs not in found:
            dl = loader(learn, bs)
            table = dict(zip(columns(learn), learn.validate(dl=dl)))
            found[bs] = table, learn.get_preds(dl=dl, with_loss=True)[-1]
        return found[bs]

    return ask


def scaled(learn, name, pred, targ):
    "Numbers as the loss sees them."
    if name == "ink":
        return (pred[:, 0] - targ) / learn.heads.ink.spec.standardize[1][0], torch.zeros_like(targ)
    if name in ("centre", "box"):
        return pred, targ.view(len(targ), -1)
    return pred, targ


@pytest.mark.parametrize("bs", [1, 5, 16])
@pytest.mark.parametrize("name", LOSSES)
def test_the_value_of_an_item_is_fastais_whatever_stands_beside_it(learn, outputs, at, name, bs):
    pred, targ, known = outputs[name]
    loss, own = LOSSES[name], LOSSES[name].reduction
    loss.reduction = "none"
    each = loss(*scaled(learn, name, pred[known], targ[known])).view(int(known.sum()), -1).mean(1)
    loss.reduction = own
    found = torch.as_tensor(at(bs)[1].heads[name])
    assert found.isnan().tolist() == (~known).tolist()
    torch.testing.assert_close(found[known], each.as_subclass(Tensor), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_value_is_the_same_in_any_batch(outputs, at, name):
    known = outputs[name][2]
    one, five, whole = (torch.as_tensor(at(bs)[1].heads[name]) for bs in (1, 5, 16))
    assert one.isnan().tolist() == (~known).tolist()
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(five, whole, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_total_of_an_item_is_over_the_heads_that_have_a_label(learn, at):
    losses = at(5)[1]
    weighted = torch.stack([loss * learn.heads[name].loss_weight for name, loss in losses.heads.pairs()])
    torch.testing.assert_close(torch.as_tensor(losses), weighted.as_subclass(Tensor).nansum(0))


@pytest.mark.parametrize("bs", [2, 5, 16])
@pytest.mark.parametrize("name", HEADS)
def test_the_tables_loss_is_that_of_the_whole_set(learn, outputs, at, name, bs):
    pred, targ, known = outputs[name]
    head, table = learn.heads[name], at(bs)[0]
    if name in ("mask_dice", "mask_lovasz"):  # of nothing that adds up: the mean of the items' own
        wanted = torch.as_tensor(at(16)[1].heads[name]).nanmean()
    elif name in LOSSES:
        wanted = LOSSES[name](*scaled(learn, name, pred[known], targ[known]))
    else:
        wanted = head.loss_func(pred[known], targ[known])
    assert table[f"valid_{name}_loss"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("bs", [2, 5, 16])
def test_the_tables_total_is_the_sum_of_its_parts(learn, at, bs):
    table = at(bs)[0]
    parts = sum(head.loss_weight * table[f"valid_{name}_loss"] for name, head in learn.heads.items())
    assert table["valid_loss"] == pytest.approx(parts, rel=1e-6)
    assert table["valid_loss"] == pytest.approx(at(1)[0]["valid_loss"], rel=1e-5)


def test_no_metric_depends_on_the_batch(learn, outputs, at):
    pred, targ, known = outputs["digit"]
    for bs in (2, 5, 16):
        table = at(bs)[0]
        for name, value in at(1)[0].items():
            assert table[name] == pytest.approx(value, rel=1e-5), name
        guess = pred[known].argmax(1)
        assert table["digit_accuracy"] == pytest.approx((guess == targ[known]).float().mean().item())
        assert table["digit_loss"] == pytest.approx(table["valid_digit_loss"], rel=1e-6)
        assert table["digit_perplexity"] == pytest.approx(math.exp(table["valid_digit_loss"]), rel=1e-5)
        off = (outputs["ink"][0][:, 0] - outputs["ink"][1])[outputs["ink"][2]]
        assert table["ink_rmse"] == pytest.approx(off.square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["digit", "smooth", "tags", "ink", "box", "mask", "mask_dice", "fcos"])
def test_one_heads_learner_says_the_same(learn, at, quiet, name):
    view = quiet(learn.head(name))
    for bs in (5, 16):
        dl = view.dls.train.new(shuffle=False, drop_last=False, bs=bs, get_idxs=first)
        table, losses = view.validate(dl=dl), view.get_preds(dl=dl, with_loss=True)[-1]
        assert table[0] == pytest.approx(at(5)[0][f"valid_{name}_loss"], rel=1e-5)
        wanted = torch.as_tensor(at(5)[1].heads[name])
        torch.testing.assert_close(torch.as_tensor(losses), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("bs", [5, 16])
@pytest.mark.parametrize("name", [None, "digit", "mask", "boxes"])
def test_top_losses_rank_by_the_items_own(learn, at, name, bs):
    interp = HeadsInterpretation.from_learner(learn, dl=loader(learn, bs))
    losses = at(16)[1] if name is None else at(16)[1].heads[name]
    losses = torch.as_tensor(losses)
    known = losses.isfinite().nonzero().view(-1)
    values, idx = interp.top_losses(head=name)
    assert idx.tolist() == known[losses[known].argsort(descending=True)].tolist()
    torch.testing.assert_close(torch.as_tensor(values), losses[idx], rtol=1e-4, atol=1e-5)


def test_one_head_is_stock_fastai(make_dls, make_learner, quiet):
    learn = make_learner("digit", heads={"digit": ClassificationHead(class_weights=WEIGHTS)})
    loss = CrossEntropyLossFlat(weight=WEIGHTS)
    stock = quiet(Learner(learn.dls, torch.nn.Sequential(learn.model, First()), loss_func=loss))
    for bs in (2, 5, 8):
        dl = learn.dls.valid.new(bs=bs)
        wanted = stock.get_preds(dl=dl, with_loss=True)[-1]
        torch.testing.assert_close(torch.as_tensor(learn.get_preds(dl=dl, with_loss=True)[-1]), torch.as_tensor(wanted))


class First(torch.nn.Module):
    def forward(self, preds):
        return preds[0]


# masks in which some pixels, or all, have no label


def half_labelled(i):
    "Two thirds of the masks are void; of the others a growing part is."
    codes = (np.indices((32, 32)).sum(0) + i) % 5 // 3
    codes[: 32 if i % 3 else 2 * i] = 255
    return codes.astype(np.uint8)


@pytest.fixture(scope="module")
def masks():
    "Masks in a plain `MaskBlock`, beside a class."
    block = DataBlock(
        (ImageBlock, CategoryBlock, MaskBlock(["paper", "ink"])),
        getters=[lambda i: PILImage.create(np.full((32, 32, 3), 9 * i, np.uint8)), lambda i: i % 2, half_labelled],
        n_inp=1,
        splitter=IndexSplitter(range(9, 21)),
    )
    return block.dataloaders(list(range(21)), bs=3, num_workers=0)


def seen_accuracy(pred, targ):
    known = targ != 255
    return (pred.argmax(1) == targ)[known].float().mean()


def all_accuracy(pred, targ):
    return (pred.argmax(1) == targ).float().mean()


@pytest.mark.parametrize("weights", [None, [0.3, 2.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize("own", [True, False], ids=["ours", "fastai's"])
def test_pixels_without_a_label_count_nowhere(masks, quiet, own, weights):
    weight = None if weights is None else torch.tensor(weights)
    fastais = CrossEntropyLossFlat(axis=1, weight=weight, ignore_index=255)
    loss = {"class_weights": weights} if own else {"loss": fastais}
    metrics = [seen_accuracy, all_accuracy, DiceMulti(), foreground_acc, MulticlassJaccardIndex(2)]
    heads = {"mask": SegmentationHead(decoder="dynamic_unet", metrics=metrics, **loss)}
    learn = quiet(multihead_learner(masks, "test_resnet", heads, pretrained=False))
    learn.fit(1, 1e-3)
    preds, targs, losses = learn.get_preds(act=lambda pred: pred, with_loss=True)
    logits, targ = preds.mask, targs.mask.as_subclass(Tensor)
    known = targ != 255
    each = F.cross_entropy(logits, targ, weight=weight, ignore_index=255, reduction="none")
    wanted = torch.where(known.any(2).any(1), each.sum((1, 2)) / known.sum((1, 2)), torch.nan)
    torch.testing.assert_close(torch.as_tensor(losses.mask), wanted, equal_nan=True)
    said, truth = logits.argmax(1)[known].numpy(), targ[known].numpy()
    table = {
        "valid_mask_loss": F.cross_entropy(logits, targ, weight=weight, ignore_index=255).item(),
        "mask_seen_accuracy": (said == truth).mean(),
        "mask_all_accuracy": (said == truth).mean(),
        "mask_dice_multi": f1_score(truth, said, average="macro"),
        "mask_multiclass_jaccard_index": jaccard_score(truth, said, average="macro"),
    }
    for bs in (1, 2, 12):
        dl = learn.dls.valid.new(bs=bs)
        found = dict(zip(columns(learn), learn.validate(dl=dl)))
        each = learn.get_preds(dl=dl, with_loss=True)[-1].mask
        torch.testing.assert_close(torch.as_tensor(each), wanted, equal_nan=True)
        assert {name: found[name] for name in table} == pytest.approx(table, rel=1e-5)
