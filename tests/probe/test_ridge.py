"""Ridge in closed form, against scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.linear_model import RidgeCV

from fastai_heads.probe.ridge import STRENGTHS, Ridge


def problem(n, d, k=3):
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(n, d, generator=generator) * torch.rand(d, generator=generator) * 4 + 2
    y = x @ torch.randn(d, k, generator=generator) / d + torch.randn(n, k, generator=generator) + 5
    return x, y


def standardised(x):
    "Features as the ridge takes them."
    x = x.double()
    return ((x - x.mean(0)) / x.std(0, correction=0) / x.shape[1] ** 0.5).numpy()


SHAPES = [(40, 6), (40, 39), (30, 90)]


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_the_strength_and_the_predictions_left_out_are_scikit_learns(n, d, each):
    x, y = problem(n, d)
    theirs = RidgeCV(STRENGTHS.numpy(), alpha_per_target=each, store_cv_results=True)
    theirs.fit(standardised(x), y.double().numpy())
    ours = Ridge([x]).fit(y, each)
    wanted = torch.as_tensor(theirs.alpha_, dtype=torch.float64).expand(3)
    torch.testing.assert_close(ours.strengths, wanted)
    places = [(STRENGTHS - s).abs().argmin() for s in wanted]
    squared = torch.stack([torch.as_tensor(theirs.cv_results_)[:, k, i] for k, i in enumerate(places)], 1)
    torch.testing.assert_close((ours.left_out - y).square(), squared, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_weights_and_bias_are_those_of_scikit_learn_on_the_features_as_they_are(n, d):
    x, y = problem(n, d)
    ours = Ridge([x]).fit(y)
    theirs = TheirRidge(alpha=float(ours.strengths[0])).fit(standardised(x), y.double().numpy())
    predicted = x.double() @ ours.weights[0] + ours.bias
    torch.testing.assert_close(predicted, torch.as_tensor(theirs.predict(standardised(x))))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_a_fold_left_out_is_a_fit_without_it(n, d):
    x, y = problem(n, d)
    folds, strengths = torch.arange(n) % 4, torch.tensor([0.1, 10.0, 0.1], dtype=torch.float64)
    ours = Ridge([x]).leave_out(y, folds, strengths)
    for fold in range(4):
        out = (folds == fold).numpy()
        theirs = TheirRidge(alpha=strengths.numpy()).fit(standardised(x)[~out], y.double().numpy()[~out])
        torch.testing.assert_close(ours[out], torch.as_tensor(theirs.predict(standardised(x)[out])))


def test_blocks_are_their_features_side_by_side_each_block_of_the_same_weight():
    (x, y), (wide, _) = problem(30, 4), problem(30, 50)
    both = torch.tensor(standardised(x)), torch.tensor(standardised(wide))
    ours = Ridge([x, wide]).fit(y)
    theirs = TheirRidge(alpha=float(ours.strengths[0])).fit(torch.cat(both, 1).numpy(), y.double().numpy())
    predicted = x.double() @ ours.weights[0] + wide.double() @ ours.weights[1] + ours.bias
    torch.testing.assert_close(predicted, torch.as_tensor(theirs.predict(torch.cat(both, 1).numpy())))


def test_noise_gets_a_strong_penalty_and_a_law_a_weak_one():
    "Centred features must not make leave-one-out pick the smallest strength: the intercept is not penalised."
    x, _ = problem(60, 200)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 1, generator=generator)
    law = x[:, :3].sum(1, keepdim=True)
    narrow = Ridge([x[:, :10]])
    assert Ridge([x]).fit(noise).strengths > 10
    assert narrow.fit(law).strengths < 0.1


def test_constant_features_and_equal_items_give_the_mean():
    y = torch.tensor([[1.0], [2.0], [6.0]])
    ours = Ridge([torch.ones(3, 4)]).fit(y)
    torch.testing.assert_close(ours.left_out, torch.tensor([[4.0], [3.5], [1.5]], dtype=torch.float64))
