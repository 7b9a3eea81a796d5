"""Regression: standardised within, in the user's own unit without."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.layers import sigmoid_range
from fastai.losses import L1LossFlat, MSELossFlat
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads.regression import InUnit, RegressionHead
from fastai_heads.heads.spec import TapShape

MAP = TapShape("features", 8, 32)


def fitted(target, n_out=1, mean=2000.0, **options):
    "(spec, labels): years around 2000, ± 5, of another spread in each column."
    labels = mean + 5 * torch.randn(60, n_out) * (1 + torch.arange(n_out))
    labels = labels.squeeze(1) if n_out == 1 else labels
    return RegressionHead(**options).fit(target("regression", n_out=n_out), lambda: labels), labels


@pytest.mark.parametrize("n_out", [1, 3])
def test_the_statistics_are_numpys(target, n_out):
    spec, labels = fitted(target, n_out)
    found = labels.double().numpy().reshape(-1, n_out)
    np.testing.assert_allclose(spec.standardize[0], found.mean(0), rtol=1e-12)
    np.testing.assert_allclose(spec.standardize[1], found.std(0), rtol=1e-12)
    last = spec.build((MAP,)).layers[-1]
    assert isinstance(last, InUnit) and last.mean.dtype == last.deviation.dtype == torch.float32
    np.testing.assert_allclose(last.mean, found.mean(0), rtol=1e-6)


@pytest.mark.parametrize("n_out", [1, 3])
def test_the_loss_is_taken_in_deviations(target, n_out):
    spec, labels = fitted(target, n_out)
    task = spec.task(target("regression"))
    pred, deviation = labels.view(-1, n_out) + torch.randn(60, n_out), torch.tensor(spec.standardize[1])
    by_hand = (((pred - labels.view(-1, n_out)) / deviation) ** 2).float()
    torch.testing.assert_close(task.train_loss(pred, labels), by_hand.mean())
    torch.testing.assert_close(task.item_loss(pred, labels), by_hand.mean(1))


def test_predictions_are_in_the_users_unit(target):
    spec, labels = fitted(target, 2)
    head = spec.build((MAP,)).eval()
    x = torch.randn(5, 8, 2, 2)
    inner = head.layers[:-1](head.pool(x))
    mean, deviation = (torch.tensor(s, dtype=torch.float32) for s in spec.standardize)
    torch.testing.assert_close(head(x), inner * deviation + mean)
    assert (head(x) - labels.mean(0)).abs().max() < 20 * labels.std(0).max()


@pytest.mark.parametrize("standardize", [True, False])
def test_y_range_is_in_the_users_unit(target, standardize):
    spec, _ = fitted(target, y_range=(1990.0, 2010.0), standardize=standardize)
    plain, _ = fitted(target, standardize=False)
    torch.manual_seed(0)
    head = spec.build((MAP,)).eval()
    torch.manual_seed(0)
    bare = plain.build((MAP,)).eval()
    x = 50 * torch.randn(20, 8, 2, 2)
    torch.testing.assert_close(head(x), sigmoid_range(bare(x), 1990.0, 2010.0))
    assert isinstance(head.layers[-1], InUnit) is standardize


def test_statistics_given_by_hand_are_used(target, no_labels):
    for given in ((10.0, 2.0), ([10], [2]), (torch.tensor(10.0), torch.tensor([2.0])), (np.array([10]), np.float32(2))):
        spec = RegressionHead(standardize=given).fit(target("regression"), no_labels)
        assert spec.standardize == ((10.0,), (2.0,))
    with pytest.raises(HeadsError, match=r"`standardize` for target 'age'.*1 numbers each, found 2 and 1"):
        RegressionHead(standardize=([1, 2], [1])).fit(target("regression"), no_labels)


@pytest.mark.parametrize(
    "labels",
    [torch.full((7,), 0.1), torch.tensor([3.0]), torch.tensor([1.0, float("inf")])],
    ids=["same", "one", "inf"],
)
def test_labels_without_a_deviation_are_refused(target, labels):
    with pytest.raises(HeadsError, match=r"'age' cannot be standardised.*`standardize=False`"):
        RegressionHead().fit(target("regression"), lambda: labels)
    spec = RegressionHead(standardize=False).fit(target("regression"), lambda: labels)
    assert spec.standardize is False


def test_one_flat_column_among_several_is_refused(target):
    labels = torch.stack([torch.randn(6), torch.ones(6)], dim=1)
    with pytest.raises(HeadsError, match="cannot be standardised"):
        RegressionHead().fit(target("regression", n_out=2), lambda: labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_statistics_stay_in_float32_when_the_model_is_cast(target, dtype):
    spec, _ = fitted(target)
    head = spec.build((MAP,)).eval()
    mean, deviation = (t.clone() for t in (head.layers[-1].mean, head.layers[-1].deviation))
    cast = nn.Sequential(copy.deepcopy(head)).to(dtype)
    last = cast[0].layers[-1]
    assert torch.equal(last.mean, mean) and torch.equal(last.deviation, deviation)
    assert cast[0].layers[0].weight.dtype == dtype
    x = torch.randn(6, 8, 2, 2)
    off = (cast(x.to(dtype)) - head(x)).abs().max() / deviation
    assert cast(x.to(dtype)).dtype == torch.float32 and off < 0.2, "bfloat16 alone has steps of 8 at 2000"
    assert cast.double()[0].layers[-1].mean.dtype == torch.float32


def test_copies_pickles_devices_and_states(target):
    spec, _ = fitted(target)
    head = spec.build((MAP,))
    last = head.layers[-1]
    for again in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), copy.deepcopy(head).to("cpu")):
        assert torch.equal(again.layers[-1].mean, last.mean)
        assert again.layers[-1].mean is not last.mean
    meta = copy.deepcopy(head).to("meta")
    assert meta.layers[-1].mean.is_meta and meta.layers[-1].deviation.is_meta
    back = meta.to_empty(device="cpu")
    back.load_state_dict(head.state_dict())
    assert torch.equal(back.layers[-1].mean, last.mean) and torch.equal(back.layers[-1].deviation, last.deviation)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (L1LossFlat, F.l1_loss),
        (MSELossFlat(), F.mse_loss),
        (nn.SmoothL1Loss(beta=0.5), lambda p, t: F.smooth_l1_loss(p, t, beta=0.5)),
        (F.mse_loss, F.mse_loss),
        (lambda p, t: (p - t).abs().mean(), F.l1_loss),
    ],
    ids=["class", "instance", "torch", "function", "without reduction"],
)
def test_any_loss_whatever_the_targets_axes(target, loss, wanted, standardize):
    spec, labels = fitted(target, loss=loss, standardize=standardize)
    task = spec.task(target("regression"))
    pred = labels[:, None] + torch.randn(60, 1)
    scale = spec.standardize[1][0] if standardize else 1.0
    scaled = wanted((pred.view(-1) - labels) / scale, torch.zeros(60))
    torch.testing.assert_close(task.train_loss(pred, labels), scaled, rtol=1e-4, atol=1e-5)
    per_item = task.item_loss(pred, labels)
    assert per_item.shape == (60,)
    torch.testing.assert_close(per_item.mean(), scaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", ["yes", None, 3, (1.0, 2.0, 3.0), ("a", "b"), 1.5])
def test_refusals(given):
    with pytest.raises(HeadsError, match=r"`standardize` of RegressionHead is True, False or \(means, deviations\)"):
        RegressionHead(standardize=given)
