"""A head of the user's own: a module, a function that makes one, several taps."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, error_rate
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.box import BoxHead
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.custom import CustomHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.heads.spec import TapShape
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.tasks.box import BoxTask, iou
from fastai_heads.view.interpret import HeadsInterpretation

MAPS = (TapShape("layer2", 6, 8), TapShape("features", 12, 32))


class TwoMaps(nn.Module):
    "Reads two maps."

    def __init__(self, first, second):
        super().__init__()
        self.linear = nn.Linear(first + second, 3)

    def forward(self, a, b):
        return self.linear(torch.cat([a.mean((2, 3)), b.mean((2, 3))], dim=1))


def test_a_module_is_used_as_it_is(target, no_labels):
    module = nn.Linear(12, 3)
    assert CustomHead(module).fit(target("category"), no_labels).build(MAPS[1:]) is module


def test_a_function_gets_the_width_of_every_tap_in_order(target, no_labels):
    spec = CustomHead(TwoMaps, tap=("layer2", "features")).fit(target("category"), no_labels)
    module = spec.build(MAPS)
    assert isinstance(module, TwoMaps) and module.linear.in_features == 18
    with pytest.raises(HeadsError, match=r"`module` of CustomHead is a function that makes an nn.Module.*made 12"):
        CustomHead(lambda width: width, tap="features").fit(target("category"), no_labels).build(MAPS[1:])


def test_all_else_is_that_of_the_targets_kind(target, no_labels):
    spec = CustomHead(nn.Linear(12, 3)).fit(target("category"), no_labels)
    task = spec.task(target("category"))
    pred, targ = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = task.loss_func
    assert isinstance(loss, CrossEntropyLossFlat) and spec.n_out == 3 and task.default_metrics() == (accuracy,)
    assert torch.equal(task.train_loss(pred, targ), F.cross_entropy(pred, targ))
    torch.testing.assert_close(task.activation(pred), pred.softmax(1))
    assert torch.equal(task.decode(task.activation(pred)), pred.argmax(1))


def test_like_lends_its_options(target, no_labels):
    like = ClassificationHead(class_weights=[1, 2, 5], metrics=error_rate)
    spec = CustomHead(nn.Linear(12, 3), like=like).fit(target("category"), no_labels)
    task = spec.task(target("category"))
    pred, targ = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    wanted = F.cross_entropy(pred, targ, weight=torch.tensor([1.0, 2, 5]))
    assert torch.equal(task.train_loss(pred, targ), wanted)
    with pytest.raises(HeadsError, match="ClassificationHead needs a target of kind category"):
        CustomHead(nn.Linear(12, 3), like=like).fit(target("box"), no_labels)


class HalvedTask(BoxTask):
    "Trains on half the loss, and calls an item with a first coordinate of zero unlabelled."

    def train_loss(self, pred, targ):
        return super().train_loss(pred, targ) / 2

    def item_loss(self, pred, targ):
        return super().item_loss(pred, targ) / 2

    def labelled(self, targ):
        return targ[:, 0, 0] != 0


@dataclass(frozen=True, kw_only=True)
class Halved(BoxHead):
    "Predicts so."

    predicts = HalvedTask


def test_like_says_how_it_trains_and_which_items_have_a_label(target, no_labels):
    spec = CustomHead(nn.Linear(12, 4), like=Halved()).fit(target("box"), no_labels)
    task = spec.task(target("box"))
    pred, targ = torch.randn(5, 4), torch.randn(5, 1, 4)
    targ[2, 0, 0] = 0
    wanted = (pred - targ[:, 0]).abs()
    torch.testing.assert_close(task.train_loss(pred, targ), wanted.mean() / 2)
    torch.testing.assert_close(task.item_loss(pred, targ), wanted.mean(1) / 2)
    assert task.labelled(targ).tolist() == [True, True, False, True, True] and task.default_metrics() == (iou,)


def test_its_own_loss_sees_numbers_in_the_shape_of_the_predictions(target, no_labels):
    spec = CustomHead(nn.Linear(12, 1), loss=nn.MSELoss()).fit(target("regression"), no_labels)
    task = spec.task(target("regression"))
    pred, targ = torch.randn(5, 1), torch.randn(5)
    torch.testing.assert_close(task.train_loss(pred, targ), F.mse_loss(pred[:, 0], targ))


def test_a_number_is_standardised_only_where_like_says_so(target, no_labels):
    labels = torch.tensor([10.0, 14.0])
    pred, targ = torch.tensor([[11.0], [12.0]]), labels
    plain = CustomHead(nn.Linear(12, 1)).fit(target("regression"), no_labels)
    plain_task = plain.task(target("regression"))
    torch.testing.assert_close(plain_task.train_loss(pred, targ), torch.tensor(2.5))
    standard = CustomHead(nn.Linear(12, 1), like=RegressionHead()).fit(target("regression"), lambda: labels)
    standard_task = standard.task(target("regression"))
    torch.testing.assert_close(standard_task.train_loss(pred, targ), torch.tensor(2.5 / 4))


def test_a_target_of_unknown_kind_needs_a_loss(target, no_labels):
    with pytest.raises(HeadsError, match=r"'thing' is of kind unknown, which has no default head: pass.*CustomHead"):
        CustomHead(nn.Linear(12, 2)).fit(target("unknown"), no_labels)
    spec = CustomHead(nn.Linear(12, 2), loss=F.mse_loss, n_out=2).fit(target("unknown"), no_labels)
    task = spec.task(target("unknown"))
    pred, targ = torch.randn(4, 2), torch.randn(4, 2)
    assert spec.n_out == 2 and torch.equal(task.train_loss(pred, targ), F.mse_loss(pred, targ))
    assert task.activation(pred) is pred and task.default_metrics() == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"module": 3}, r"`module` of CustomHead is an nn.Module or a function that makes one, found 3"),
        ({"module": nn.Identity(), "like": ClassificationHead}, r"`like` of CustomHead is a spec such as"),
        ({"module": nn.Identity(), "loss_weight": -1}, r"`loss_weight` of CustomHead"),
    ],
    ids=str,
)
def test_refusals(options, says):
    with pytest.raises(HeadsError, match=says):
        CustomHead(**options)


def test_trains_beside_the_others_from_several_taps(digits):
    class Both(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.linear = nn.Linear(first + second, 10)

        def forward(self, a, b):
            return self.linear(torch.cat([a.mean((2, 3)), b], dim=1))

    heads = {"digit": CustomHead(Both, tap=("layer2", "pre_logits"))}
    learn = multihead_learner(digits, "test_resnet", heads=heads, pretrained=False)
    before = learn.model[1]["digit"].linear.weight.clone()
    with learn.no_logging():
        learn.fit(1, 1e-3)
    assert not torch.equal(before, learn.model[1]["digit"].linear.weight)
    assert "digit_accuracy" in learn.recorder.metric_names


# a loss of the user's own


def pooled(n_out):
    "A function of the channels that makes a pooled linear layer."
    return lambda channels: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_out))


def mean_and_variance(pred, targ):
    return F.gaussian_nll_loss(100 * pred[:, 0], targ, 1e4 * pred[:, 1].exp())


def quantiles(pred, targ):
    off, q = targ[:, None] / 100 - pred, torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(q * off, (q - 1) * off).mean()


def ordinal(pred, targ):
    return F.binary_cross_entropy_with_logits(pred, (targ[:, None] > torch.arange(9)).float())


def mixture(pred, targ):
    share, mean = pred[:, :2].log_softmax(1), 100 * pred[:, 2:]
    return -torch.logsumexp(share - ((targ[:, None] - mean) / 100).square() / 2, 1).mean()


OWN = {  # head → (its spec, outputs, whether what it says has the form of its target)
    "mean and variance": ("ink", CustomHead(pooled(2), loss=mean_and_variance), 2, False),
    "n_out given": ("ink", CustomHead(pooled(2), n_out=2, loss=mean_and_variance), 2, False),
    "mean alone": ("ink", CustomHead(pooled(2), loss=mean_and_variance, decode=lambda p: 100 * p[:, 0]), 2, True),
    "quantiles": ("ink", CustomHead(pooled(3), loss=quantiles, decode=lambda pred: 100 * pred), 3, False),
    "median": ("ink", CustomHead(pooled(3), loss=quantiles, decode=lambda pred: 100 * pred[:, 1]), 3, True),
    "ordinal": ("digit", CustomHead(pooled(9), loss=ordinal, decode=lambda pred: (pred > 0).sum(1)), 9, True),
    "ordinal logits": ("digit", CustomHead(pooled(9), loss=ordinal), 9, False),
    "mixture": ("ink", CustomHead(pooled(4), loss=mixture), 4, False),
    "one number": ("ink", CustomHead(pooled(1), loss=lambda p, t: (p[:, 0] - t).abs().mean()), 1, True),
    "classes": ("digit", CustomHead(pooled(10), loss=F.cross_entropy), 10, True),
}


@pytest.fixture(scope="module", params=OWN)
def own(request, digits):
    "A learner with a head that has a loss of its own, after one step, and what is said of it in the table."
    name, spec, n_out, formed = OWN[request.param]
    torch.manual_seed(0)
    others = dict.fromkeys({"digit", "tags", "ink", "centre", "box"} - {name})
    learn = multihead_learner(digits, "test_resnet", {name: spec, **others}, pretrained=False)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = print
    learn.fit(1, 1e-3)
    return learn, learn.heads[name], spec, n_out, formed


def test_a_loss_of_its_own_is_that_of_the_prediction_and_the_target_as_they_are(own):
    learn, head, spec, n_out, _ = own
    preds, targs, losses = learn.get_preds(with_loss=True, act=lambda pred: pred)
    pred, targ = preds[0], targs[head.target.index]
    assert pred.shape == (8, n_out) and targ.shape == (8,) and head.spec.n_out == n_out
    wanted = torch.stack([spec.loss(p[None], t[None]) for p, t in zip(pred, targ.as_subclass(torch.Tensor))])
    torch.testing.assert_close(losses.as_subclass(torch.Tensor), wanted, rtol=1e-4, atol=1e-5)
    table = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    torch.testing.assert_close(torch.tensor(table["valid_loss"]), wanted.mean(), rtol=1e-4, atol=1e-5)


def test_decode_says_what_is_said_of_it(own):
    learn, head, spec, n_out, formed = own
    preds, _, decoded = learn.get_preds(with_decoded=True)
    pred, said = preds[0], decoded[0]
    if spec.decode is not None:
        assert torch.equal(said, spec.decode(pred))
    elif n_out == 10:
        assert torch.equal(said, pred.argmax(1)) and torch.allclose(pred.sum(1), torch.ones(8))
    else:
        assert torch.equal(said, pred.squeeze(1) if n_out == 1 else pred)
    assert head.task.in_form(said) is formed
    item = learn.dls.valid_ds.items.iloc[0]
    values, tensors, activated = learn.predict(item)
    torch.testing.assert_close(tensors[0], said[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(activated[0], pred[0], rtol=1e-4, atol=1e-4)
    assert isinstance(values[0], (str, float) if formed else torch.Tensor)


def test_it_is_shown_interpreted_exported_and_taken_alone(own, tmp_path):
    learn, head, _, _, formed = own
    learn.show_results(max_n=2)
    found = HeadsInterpretation.from_learner(learn)
    found.plot_top_losses(2)
    draw = found.plot_regression if head.name == "ink" else found.plot_confusion_matrix
    if formed:
        draw(head.name)
    else:
        with pytest.raises(HeadsError, match=rf"head '{head.name}' says has not the form.*decode=…"):
            draw(head.name)
    alone, item = learn.head(head.name), learn.dls.valid_ds.items.iloc[0]
    alone.remove_cbs([cb for cb in alone.cbs if cb.name == "progress"])
    torch.testing.assert_close(alone.predict(item)[2], learn.predict(item)[2][0], rtol=1e-4, atol=1e-4)
    alone.show_results(max_n=2)
    learn.path = tmp_path
    learn.export()
    again = load_learner(tmp_path / "export.pkl")
    torch.testing.assert_close(again.predict(item)[2][0], learn.predict(item)[2][0], rtol=1e-4, atol=1e-4)


def test_default_metrics_are_those_that_fit(own):
    learn, head, _, n_out, _ = own
    fits = {("ink", 1): ["ink_mae"], ("digit", 10): ["digit_accuracy"]}
    assert [metric.name for metric in learn.metrics] == fits.get((head.name, n_out), [])


def test_another_number_of_outputs_without_a_loss_says_how(target, no_labels):
    for spec in (RegressionHead(n_out=2), CustomHead(nn.Identity(), n_out=2)):
        with pytest.raises(HeadsError, match=r"`n_out=2` of .*it needs 1\. With .*`CustomHead\(module, n_out=2, lo"):
            spec.fit(target("regression"), no_labels)


def test_decode_outlives_a_copy(target, no_labels):
    spec = CustomHead(nn.Identity(), loss=F.mse_loss, decode=torch.exp)
    fitted = replace(spec, lr_mult=2.0).fit(target("regression"), no_labels)
    fitted_task = fitted.task(target("regression"))
    assert fitted.decode is torch.exp and copy.deepcopy(fitted).decode is torch.exp
    assert torch.equal(fitted_task.decode(torch.zeros(3, 2)), torch.ones(3, 2))
    with pytest.raises(HeadsError, match="`decode` of CustomHead is a function of the prediction, or None, found 3"):
        CustomHead(nn.Identity(), decode=3)
