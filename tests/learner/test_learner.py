"""Training, the table, freezing, rates and predictions, of one head and of several."""

from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.metrics import accuracy, accuracy_multi, error_rate, mae
from fastai.optimizer import SGD, Adam, OptimWrapper, RMSProp, ranger
from fastai.torch_core import params
from fastai.vision.core import TensorBBox, TensorPoint
from fastai.vision.data import ImageBlock
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads import BoxHead, ClassificationHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.training.optimizer import HeadsOptimizer
from fastai_heads.trunks import Trunk

FIVE = ("digit", "tags", "ink", "centre", "box")
METRICS = ("digit_accuracy", "tags_accuracy_multi", "ink_mae", "centre_distance", "box_iou")


@pytest.fixture
def two_classes(scenes, table, tmp_path):
    "Two targets of the same kind: the digit, and whether its ink is pale."
    table["pale"] = table.tags.str.contains("faint").map({True: "pale", False: "dark"})
    block = DataBlock(
        (ImageBlock, CategoryBlock(vocab=list("0123456789")), CategoryBlock),
        getters=[ColReader("image", pref=scenes), ColReader("digit"), ColReader("pale")],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
    )
    return block.dataloaders(table, bs=8, num_workers=0, path=tmp_path)


@pytest.fixture(params=["two classes", "five kinds", "one class"])
def learn(request, make_learner, make_dls, two_classes):
    dls = {"two classes": two_classes, "five kinds": make_dls(*FIVE), "one class": make_dls("digit")}[request.param]
    return make_learner(dls=dls)


def logged(learn, epoch=-1):
    "One row of the table, by column."
    return dict(zip(learn.recorder.metric_names, learn.rows[epoch], strict=True))


# training


@pytest.mark.parametrize(
    ("train", "epochs"),
    [
        (lambda learn: learn.fit(2, 1e-3), 2),
        (lambda learn: learn.fit_one_cycle(1, slice(1e-4, 1e-2)), 1),
        (lambda learn: learn.fine_tune(1, freeze_epochs=1), 2),
        (lambda learn: learn.fit_flat_cos(1), 1),
    ],
    ids=["fit", "fit_one_cycle", "fine_tune", "fit_flat_cos"],
)
def test_every_way_of_training_moves_body_and_heads(learn, train, epochs):
    before = [p.detach().clone() for p in learn.model.parameters()]
    train(learn)
    assert len(learn.rows) == epochs
    assert all(not torch.equal(p, old) for p, old in zip(learn.model.parameters(), before, strict=True))
    assert all(np.isfinite(v) for v in learn.rows[-1][:-1])


def test_lr_find_gives_a_rate_and_puts_everything_back(learn):
    before = [p.detach().clone() for p in learn.model.parameters()]
    found = learn.lr_find(show_plot=False, num_it=12)
    assert found.valley > 0
    assert all(torch.equal(p, old) for p, old in zip(learn.model.parameters(), before, strict=True))
    learn.fit(1)
    assert len(learn.rows) == 1


def test_training_learns_what_there_is_to_learn(make_learner):
    learn = make_learner("digit", "ink", heads={"digit": ClassificationHead(ps=0.0), "ink": RegressionHead(ps=0.0)})
    _, digit, ink, *_ = learn.validate(ds_idx=0)
    learn.fit_one_cycle(20, 3e-3)
    _, learned_digit, learned_ink, *_ = learn.validate(ds_idx=0)
    assert learned_digit < 0.5 * digit and learned_ink < 0.5 * ink


# the table


def test_columns_are_named_by_head(make_learner):
    learn = make_learner(*FIVE)
    learn.fit(1)
    assert tuple(learn.recorder.metric_names) == (
        "epoch",
        *("train_loss", "valid_loss"),
        *(f"train_{name}_loss" for name in FIVE),
        *(f"valid_{name}_loss" for name in FIVE),
        *METRICS,
        "time",
    )


def test_the_progress_table_has_a_cell_for_every_column(make_dls, capsys):
    learn = multihead_learner(make_dls("digit", "ink"), "test_resnet", pretrained=False)
    assert learn._grab_cbs(ProgressCallback)
    learn.fit(1)
    words = capsys.readouterr().out.split()
    assert "train_ink_loss" in words and "digit_accuracy" in words


@pytest.mark.parametrize(("train", "valid"), [(True, True), (True, False), (False, True)])
def test_columns_match_values_whatever_is_recorded(make_learner, train, valid):
    learn = make_learner("digit", "ink")
    learn.recorder.train_metrics, learn.recorder.valid_metrics = train, valid
    learn.fit(1)
    row = logged(learn)
    assert ("train_digit_accuracy" in row) is train
    assert ("valid_ink_loss" in row) is valid
    assert ("digit_accuracy" in row) is (valid and not train)


def by_hand(name, pred, targ, deviation=None):
    "(loss, metric) of one head of five kinds, without this library. `pred` is activated."
    if name == "digit":
        return F.nll_loss(pred.log(), targ), (pred.argmax(1) == targ).float().mean()
    if name == "tags":
        return F.binary_cross_entropy(pred, targ.float()), ((pred > 0.5) == targ.bool()).float().mean()
    if name == "ink":
        gap = pred.view(-1) - targ
        return (gap / deviation).square().mean(), gap.abs().mean()
    if name == "centre":
        gap = pred.view(-1, 2) - targ.view(-1, 2)
        return gap.square().mean(), gap.square().sum(1).sqrt().mean() / 2
    pred, targ = (torch.Tensor(t).view(-1, 4) for t in (pred, targ))
    whole = (pred[:, 2:] > pred[:, :2]).all(1)
    iou = torch.where(whole, box_iou(pred, targ).diagonal(), torch.zeros(len(pred)))
    return (pred - targ).abs().mean(), iou.mean()


def test_every_value_of_the_table_is_what_the_predictions_say(make_learner, table):
    learn = make_learner(*FIVE)
    learn.fit(1)
    row = logged(learn)
    preds, targets = learn.get_preds()
    deviation = float(table.ink[~table.is_valid].std(ddof=0))
    total = 0.0
    for name, metric in zip(FIVE, METRICS, strict=True):
        loss, value = by_hand(name, preds[name], targets[name], deviation)
        assert row[f"valid_{name}_loss"] == pytest.approx(loss.item(), rel=1e-4), name
        assert row[metric] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
        total += loss.item()
    assert row["valid_loss"] == pytest.approx(total, rel=1e-4)


def test_the_training_loss_of_a_head_is_smoothed_as_the_total_is(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(loss_weight=0.25)})
    learn.fit(2)
    row, recorder = logged(learn), learn.recorder
    assert len(recorder.losses_by_head["digit"]) == len(recorder.losses) == 8
    for i, total in enumerate(recorder.losses):
        parts = recorder.losses_by_head["digit"][i] + 0.25 * recorder.losses_by_head["ink"][i]
        assert total.item() == pytest.approx(parts.item(), rel=1e-5)
    assert row["train_loss"] == pytest.approx(row["train_digit_loss"] + 0.25 * row["train_ink_loss"], rel=1e-5)


def test_metrics_go_to_every_head_that_can_take_them(make_learner):
    learn = make_learner("digit", "tags", "ink", "box", metrics=[error_rate, mae, accuracy_multi])
    learn.fit(1)
    named = learn.recorder.metric_names
    assert [n for n in named if not n.endswith("_loss") and n not in ("epoch", "time")] == [
        "digit_error_rate", "tags_accuracy_multi", "ink_mae", "box_mae",
    ]  # fmt: skip


def test_a_spec_that_names_its_metrics_keeps_them(make_learner):
    heads = {"digit": ClassificationHead(metrics=[accuracy, error_rate]), "ink": RegressionHead(metrics=[])}
    learn = make_learner("digit", "ink", heads=heads)
    learn.fit(1)
    row = logged(learn)
    assert row["digit_accuracy"] + row["digit_error_rate"] == pytest.approx(1)
    assert not [n for n in row if n.startswith("ink_")]


def test_validate_gives_the_row_without_the_training_losses(make_learner):
    learn = make_learner("digit", "ink")
    learn.fit(1)
    row = logged(learn)
    expected = [value for key, value in row.items() if "train" not in key and key not in ("epoch", "time")]
    assert list(learn.validate()) == pytest.approx(expected)


def test_loss_weight_may_change_while_training(make_learner):
    class Silence(Callback):
        "The ink head counts in the first epoch only."

        def before_epoch(self):
            self.learn.heads.ink.loss_weight = 1.0 if self.epoch == 0 else 0.0

        def after_epoch(self):
            self.learn.ink = [*getattr(self.learn, "ink", []), self.learn.heads.ink.module.layers[-2].weight.clone()]

    learn = make_learner("digit", "ink", opt_func=SGD, wd=0.0)
    before = learn.heads.ink.module.layers[-2].weight.clone()
    learn.fit(2, 1e-2, cbs=Silence())
    assert not torch.equal(before, learn.ink[0])
    assert torch.equal(learn.ink[0], learn.ink[1]), "without weight, no gradient"
    assert logged(learn)["valid_loss"] == pytest.approx(logged(learn)["valid_digit_loss"])
    with pytest.raises(HeadsError, match="`loss_weight` of head 'ink' is a finite number of at least 0, found -1"):
        learn.heads.ink.loss_weight = -1
    assert learn.heads.ink.loss_weight == 0


# groups, freezing, rates


def rates(learn):
    return [float(lr) for lr in learn.opt.hypers.attrgot("lr")]


HEADS = {
    "digit": ClassificationHead(tap="neck"),
    "ink": RegressionHead(lr_mult=10.0),
    "aux": ClassificationHead(target="digit", tap="layer2", train_only=True),
}


@pytest.fixture
def rich(make_learner):
    "A trunk, an auxiliary head and a head with a rate of its own."
    neck = {"neck": Trunk(lambda channels: nn.Conv2d(channels, 16, 1))}
    return make_learner("digit", "ink", heads=HEADS, trunk=neck)


def test_three_groups_the_heads_together_the_last(rich):
    rich.create_opt()
    assert isinstance(rich.opt, HeadsOptimizer)
    groups = rich.opt.param_lists
    assert len(groups) == len(rich.opt.hypers) == 3
    assert set(groups[2]) == set(rich.model[1].parameters())
    assert [set(g) for g in groups[:2]] == [set(g) for g in rich.model[0].groups()]


def test_freeze_leaves_heads_trunk_and_auxiliary_trainable(rich):
    rich.freeze()
    assert all(p.requires_grad for p in rich.model[1].parameters())
    norms = {p for m in rich.model[0].modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert norms
    assert {p for p in rich.model[0].parameters() if p.requires_grad} == norms, "as fastai: batch norm goes on"
    before = [p.detach().clone() for p in rich.model.parameters()]
    rich.fit(1)
    moved = {p for p, old in zip(rich.model.parameters(), before, strict=True) if not torch.equal(p, old)}
    assert moved == {p for p in rich.model.parameters() if p.requires_grad}
    rich.unfreeze()
    assert all(p.requires_grad for p in rich.model.parameters())


def test_freeze_to_counts_the_groups_that_are_shown(rich):
    rich.freeze_to(1)
    early, late, _ = rich.opt.param_lists
    convs = {m.weight for m in rich.model[0].modules() if isinstance(m, nn.Conv2d)}
    assert not any(p.requires_grad for p in early if p in convs)
    assert all(p.requires_grad for p in late)
    assert rich.opt.frozen_idx == 1


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(1e-3, [1e-3] * 3), (slice(1e-3), [1e-4, 1e-4, 1e-3]), (slice(1e-5, 1e-3), [1e-5, 1e-4, 1e-3])],
)
@pytest.mark.parametrize("heads", [None, {"ink": RegressionHead(lr_mult=10.0)}], ids=["plain", "lr_mult"])
def test_slices_spread_over_the_body_and_the_heads(make_learner, lr, expected, heads):
    learn = make_learner("digit", "ink", heads=heads)
    learn.fit(1, lr)
    assert rates(learn) == pytest.approx(expected)
    assert learn.recorder.lrs == pytest.approx([expected[-1]] * 4), "the rate that is recorded is the heads' own"


def inner_rates(learn):
    "Parameter → the rate that its step was taken with."
    inner = learn.opt.opt if isinstance(learn.opt, HeadsOptimizer) else learn.opt
    return {p: hyper["lr"] for group, hyper in zip(inner.param_lists, inner.hypers, strict=True) for p in group}


def test_each_head_gets_the_top_rate_times_its_lr_mult(rich):
    rich.fit(1, slice(1e-5, 1e-3))
    found = inner_rates(rich)
    assert len(found) == len(params(rich.model))
    for name, expected in (("digit", 1e-3), ("aux", 1e-3), ("ink", 1e-2)):
        assert list({found[p] for p in rich.heads[name].parameters()}) == pytest.approx([expected])
    assert list({found[p] for p in rich.model[1].trunk("neck").parameters()}) == pytest.approx([1e-3])
    assert sorted({found[p] for p in rich.model[0].parameters()}) == pytest.approx([1e-5, 1e-4])


def test_lr_mult_is_a_step_that_many_times_as_long(make_learner):
    moved = {}
    for mult in (1.0, 3.0):
        torch.manual_seed(0)
        learn = make_learner("digit", "ink", opt_func=SGD, wd=0.0, heads={"ink": RegressionHead(lr_mult=mult, ps=0.0)})
        last = learn.heads.ink.module.layers[-2].weight
        before = last.detach().clone()
        batch = learn.dls.valid.one_batch()
        learn.model.eval()
        learn.create_opt()
        learn.opt.set_hypers(lr=1e-3)
        learn.loss_func(learn.model(batch[0]), *batch[1:]).backward()
        learn.opt.step()
        moved[mult] = last.detach() - before
    torch.testing.assert_close(moved[3.0], 3 * moved[1.0], rtol=1e-3, atol=1e-7)


def test_lr_mult_of_nothing_leaves_a_head_as_it_is(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=0)}, wd=0.0)
    before = [p.detach().clone() for p in learn.heads.ink.parameters()]
    learn.fit(1)
    assert all(torch.equal(p, old) for p, old in zip(learn.heads.ink.parameters(), before, strict=True))


def wrapped(params, **kwargs):
    return OptimWrapper(params, torch.optim.AdamW, **kwargs)


@pytest.mark.parametrize("opt_func", [SGD, RMSProp, ranger, wrapped], ids=["SGD", "RMSProp", "ranger", "AdamW"])
@pytest.mark.parametrize("mult", [1.0, 10.0])
def test_any_optimizer_trains_with_any_rate(make_learner, opt_func, mult):
    heads = {"ink": RegressionHead(lr_mult=mult)}
    learn = make_learner("digit", "ink", opt_func=opt_func, heads=heads)
    before = {p: p.detach().clone() for p in learn.model.parameters()}
    learn.fit_one_cycle(1, slice(1e-3, 1e-2))
    for module in (*learn.model[0].groups(), learn.heads.digit.parameters(), learn.heads.ink.parameters()):
        assert any(not torch.equal(p, before[p]) for p in module)
    ink, digit = (inner_rates(learn)[next(learn.heads[n].parameters())] for n in ("ink", "digit"))
    assert ink == pytest.approx(mult * digit)


@pytest.mark.parametrize("mult", [1.0, 10.0])
def test_the_rate_of_a_partial_optimizer_is_used(make_learner, mult):
    heads = {"ink": RegressionHead(lr_mult=mult)}
    learn = make_learner("digit", "ink", opt_func=partial(Adam, lr=0.02, eps=1e-4), heads=heads)
    learn.fit(1)
    assert rates(learn) == pytest.approx([0.02] * 3)
    assert learn.opt.hypers[0]["eps"] == 1e-4


def test_a_ready_optimizer_cannot_keep_the_rates_of_heads(make_learner):
    learn = make_learner("digit", "ink", heads={"ink": RegressionHead(lr_mult=2.0)})
    learn.opt_func = wrapped(learn.splitter(learn.model), lr=1e-3)
    with pytest.raises(HeadsError, match=r"`opt_func` is an optimizer that is made already.*`lr_mult`"):
        learn.fit(1)
    plain = make_learner("digit", "ink")
    plain.opt_func = wrapped(plain.splitter(plain.model), lr=1e-3)
    plain.fit(1)
    assert len(plain.rows) == 1


# predictions


def test_predictions_and_targets_are_named(learn):
    names = tuple(t.name for t in learn.data_targets)
    preds, targets = learn.get_preds()
    assert isinstance(preds, HeadTuple) and isinstance(targets, HeadTuple)
    assert preds.names == targets.names == names
    assert all(len(p) == len(t) == 8 for p, t in zip(preds, targets, strict=True))


ACTIVATED = {"digit": lambda p: p.softmax(1), "tags": torch.sigmoid, "aux": lambda p: p.softmax(1)}


def test_every_value_is_what_the_model_gave(make_learner):
    learn = make_learner(*FIVE)
    learn.fit(1)
    inputs, preds, targets, decoded, losses = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    learn.model.eval()
    with torch.no_grad():
        raw = learn.model(inputs)
    for name, out in zip(FIVE, raw, strict=True):
        torch.testing.assert_close(
            preds[name], ACTIVATED.get(name, lambda p: p)(out).reshape(preds[name].shape), rtol=1e-4, atol=1e-5
        )
    assert torch.equal(decoded.digit, preds.digit.argmax(1))
    assert torch.equal(decoded.tags, preds.tags > 0.5)
    assert torch.equal(decoded.ink, preds.ink.view(-1)), "in the form of the target"
    assert all(torch.equal(decoded[name], preds[name]) for name in ("centre", "box"))
    batch = learn.dls.valid.one_batch()
    assert all(torch.equal(t, b) for t, b in zip(targets, batch[1:], strict=True))
    assert losses.shape == (8,)
    assert losses.mean().item() == pytest.approx(learn.validate()[0], rel=1e-4)


def test_predictions_of_the_training_set_are_in_its_order(make_learner, table):
    learn = make_learner("digit", "ink")
    _, targets = learn.get_preds(ds_idx=0)
    assert len(targets.digit) == 32, "none is dropped"
    expected = torch.tensor(table.ink[~table.is_valid].to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(targets.ink.view(-1), expected)


def test_an_activation_of_the_users_own_goes_to_every_head(make_learner):
    learn = make_learner("digit", "ink")
    inputs, preds, _ = learn.get_preds(with_input=True, act=lambda p: p + 1)
    learn.model.eval()
    with torch.no_grad():
        raw = learn.model(inputs)
    for pred, out in zip(preds, raw, strict=True):
        torch.testing.assert_close(pred, out + 1)


def test_predict_gives_one_item_decoded(make_learner, table):
    learn = make_learner(*FIVE)
    learn.fit(1)
    row = table[table.is_valid].iloc[0]
    preds, _ = learn.get_preds()
    image, values, decoded, activated = learn.predict(row, with_input=True)
    assert image.shape == (3, 32, 32)
    assert values.names == decoded.names == activated.names == FIVE
    for name in FIVE:
        torch.testing.assert_close(activated[name], preds[name][0], rtol=1e-4, atol=1e-4)
    assert values.digit == learn.heads.digit.vocab[preds.digit[0].argmax()]
    assert list(values.tags) == [t for t, p in zip(learn.heads.tags.vocab, preds.tags[0], strict=True) if p > 0.5]
    assert values.ink == pytest.approx(preds.ink[0].item(), rel=1e-4)
    assert isinstance(values.centre, TensorPoint) and isinstance(values.box, TensorBBox)
    pixels = (preds.centre[0] + 1) * 32 / 2
    torch.testing.assert_close(
        torch.Tensor(values.centre).view(-1), torch.Tensor(pixels).view(-1), rtol=1e-4, atol=1e-3
    )
    assert len(learn.predict(row)) == 3


def test_heads_in_another_order_than_the_targets(make_learner, table):
    heads = {"box": BoxHead(), "sort": ClassificationHead(target="digit"), "ink": RegressionHead()}
    learn = make_learner("digit", "ink", "box", heads=heads)
    learn.fit(1)
    preds, targets, decoded = learn.get_preds(with_decoded=True)
    assert preds.names == decoded.names == ("box", "sort", "ink")
    assert targets.names == ("digit", "ink", "box")
    assert [p.shape for p in preds] == [(8, 1, 4), (8, 10), (8, 1)]
    values = learn.predict(table.iloc[0])[0]
    assert isinstance(values.box, TensorBBox) and values.sort in learn.heads.sort.vocab
    assert values.ink > 20, "in the unit of the ink"
    row = logged(learn)
    assert row["sort_accuracy"] == pytest.approx((preds.sort.argmax(1) == targets.digit).float().mean().item())
    assert row["ink_mae"] == pytest.approx((preds.ink.view(-1) - targets.ink).abs().mean().item(), rel=1e-4)


def test_targets_without_a_head_are_left_alone(make_learner, table):
    learn = make_learner("digit", "ink", "box", heads={"digit": None, "box": None})
    learn.fit(1)
    assert learn.heads.names == ("ink",) and len(learn.model[1]) == 1
    preds, targets, decoded = learn.get_preds(with_decoded=True)
    assert preds.names == decoded.names == ("ink",)
    assert targets.names == ("digit", "ink", "box")
    assert learn.predict(table.iloc[0])[0].names == ("ink",)
    assert logged(learn)["ink_mae"] == pytest.approx((preds.ink.view(-1) - targets.ink).abs().mean().item(), rel=1e-4)


def test_an_auxiliary_head_trains_and_decodes_nothing(rich, table):
    before = rich.heads.aux.module.layers[-1].weight.detach().clone()
    rich.fit(1)
    assert not torch.equal(before, rich.heads.aux.module.layers[-1].weight)
    preds, targets, decoded = rich.get_preds(with_decoded=True)
    assert preds.names == ("digit", "ink", "aux"), "what the model returns never depends on the mode"
    assert decoded.names == ("digit", "ink")
    assert targets.names == ("digit", "ink")
    values, tensors, activated = rich.predict(table.iloc[0])
    assert values.names == tensors.names == ("digit", "ink")
    assert activated.names == ("digit", "ink", "aux")
    assert "aux_accuracy" not in rich.recorder.metric_names and "valid_aux_loss" in rich.recorder.metric_names
    assert rich.loss_func.losses(rich.model(rich.dls.one_batch()[0]), rich.dls.one_batch()[1:])[2] > 0


def test_data_without_labels(make_learner, table):
    learn = make_learner(*FIVE)
    dl = learn.dls.test_dl(table.iloc[:5])
    preds, targets, decoded = learn.get_preds(dl=dl, with_decoded=True)
    assert targets is None
    assert preds.names == decoded.names == FIVE and len(preds.digit) == 5
    again = [learn.predict(table.iloc[i])[2].digit for i in range(5)]
    torch.testing.assert_close(preds.digit, torch.stack(again), rtol=1e-4, atol=1e-5)


def test_data_with_labels(make_learner, table):
    learn = make_learner("digit", "ink")
    dl = learn.dls.test_dl(table.iloc[:5], with_labels=True)
    _, targets = learn.get_preds(dl=dl)
    assert [learn.heads.digit.vocab[i] for i in targets.digit] == list(table.digit[:5])


# what a learner is made of


def test_the_model_is_body_and_heads(rich):
    body, heads = rich.model
    assert isinstance(rich.model, nn.Sequential)
    assert rich.heads.digit is rich.heads["digit"]
    assert heads["digit"] is rich.heads.digit.module
    assert rich.heads.digit.vocab == tuple("0123456789") and rich.heads.ink.vocab is None
    assert body.taps == ("features", "layer2")
    assert "digit: ClassificationHead on 'neck', target 'digit'" in repr(rich.heads)
    assert {"digit", "ink", "aux"} <= set(dir(rich.heads))


def test_a_wrong_name_of_a_head_gets_the_nearest(rich):
    with pytest.raises(HeadsError, match=r"there is no head 'digt'.*Did you mean 'digit'"):
        rich.heads["digt"]
    with pytest.raises(AttributeError, match="Did you mean 'digit'"):
        rich.heads.digt  # noqa: B018
    with pytest.raises(HeadsError, match="Did you mean 'ink'"):
        rich.get_preds()[0]["inc"]
