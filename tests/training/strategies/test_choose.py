"""What may be written as `strategy=`."""

import pytest
import torchjd._mixins
from torchjd.aggregation import CAGrad, UPGrad
from torchjd.scalarization import UW, GeometricMean

from fastai_heads.errors import HeadsError
from fastai_heads.training.strategies.balance import Balance
from fastai_heads.training.strategies.base import Strategy, WeightedSum
from fastai_heads.training.strategies.bridge import classes_by_name
from fastai_heads.training.strategies.choose import as_strategy
from fastai_heads.training.strategies.disjoint import Disjoint
from fastai_heads.training.strategies.scalarized import Scalarized


def test_none_is_the_sum():
    assert isinstance(as_strategy(None, 2), WeightedSum)


def test_objects_and_classes_of_torchjd():
    scalarizer, aggregator = GeometricMean(), UPGrad()
    assert as_strategy(scalarizer, 2).scalarizer is scalarizer
    assert as_strategy(aggregator, 2).aggregator is aggregator
    assert as_strategy(UW, 5).scalarizer.log_var.shape == (5,)
    assert isinstance(as_strategy(UPGrad, 5), Balance) and isinstance(as_strategy(GeometricMean, 5), Scalarized)


@pytest.mark.parametrize("value", ["UW", UW])
def test_a_name_is_its_class_and_a_class_is_made_for_so_many_heads(value):
    assert as_strategy(value, 3).scalarizer.log_var.shape == (3,)


@pytest.mark.parametrize("value", ["Disjoint", Disjoint, "WeightedSum", WeightedSum])
def test_a_class_of_ours_is_made(value):
    assert type(as_strategy(value, 3)).__name__ == getattr(value, "__name__", value)


@pytest.mark.parametrize("value", ["UPGrad", UPGrad])
def test_an_aggregator_by_name_or_class_is_balanced(value):
    found = as_strategy(value, 3)
    assert isinstance(found, Balance) and isinstance(found.aggregator, UPGrad)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Balance, r"`strategy`: Balance needs aggregator: pass `Balance\(UPGrad\(\)\)`"),
        ("Balance", r"pass `Balance\(UPGrad\(\)\)`"),
        (Scalarized, r"`strategy`: Scalarized needs scalarizer: pass `Scalarized\(UW\(2\)\)`"),
        ("disjoint", r"found 'disjoint'. Did you mean 'Disjoint'"),
    ],
)
def test_a_class_that_needs_more_says_what(value, says):
    with pytest.raises(HeadsError, match=says):
        as_strategy(value, 2)


@pytest.mark.parametrize(
    ("strategy", "name", "says"),
    [
        (Balance(UPGrad()), "ovr", r"`ovr` is no field of Balance, which has aggregator, over. Did you mean 'over'"),
        (Disjoint(), "lr", r"`lr` is no field of Disjoint, which has opt_func, lrs. Did you mean 'lrs'"),
        (Scalarized(UW(2)), "scalariser", r"no field of Scalarized.*Did you mean 'scalarizer'"),
        (WeightedSum(), "weight", r"`weight` is no field of WeightedSum, which has nothing that may be set"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_field_that_a_strategy_does_not_have_is_refused(strategy, name, says):
    with pytest.raises(HeadsError, match=says):
        setattr(strategy, name, 1)


def test_a_strategy_of_the_users_own_may_have_any_field():
    class Mine(Disjoint):
        def __init__(self):
            super().__init__()
            self.pace = 2

    assert Mine().pace == 2


def test_a_strategy_is_itself():
    for strategy in (WeightedSum(), Disjoint(), Balance(UPGrad(), "taps"), Scalarized(UW(2))):
        assert as_strategy(strategy, 2) is strategy


@pytest.mark.parametrize("value", ["zzz", 3, Strategy, object()])
def test_what_is_none_of_these_is_refused(value):
    with pytest.raises(HeadsError, match=r"`strategy` is None, an aggregator or a scalarizer.*`Disjoint\(…\)`, found"):
        as_strategy(value, 2)


def test_a_name_gets_the_nearest_class():
    with pytest.raises(HeadsError, match=r"found 'upgrad'\. Did you mean 'UPGrad'"):
        as_strategy("upgrad", 2)


def test_a_name_stands_for_the_class():
    assert isinstance(as_strategy("UPGrad", 3).aggregator, UPGrad)
    assert as_strategy("UW", 5).scalarizer.log_var.shape == (5,)
    assert isinstance(as_strategy("Disjoint", 2), Disjoint)
    assert Balance("UPGrad").aggregator is UPGrad


@pytest.mark.parametrize("name", sorted(classes_by_name()))
def test_every_name_is_taken_or_says_what_its_class_needs(name):
    try:
        strategy = as_strategy(name, 2)
    except HeadsError as error:
        assert f"{name} needs " in str(error) and f"pass `{name}(" in str(error)
    else:
        made = strategy.aggregator if isinstance(strategy, Balance) else strategy.scalarizer
        assert made is classes_by_name()[name] or type(made) is classes_by_name()[name]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: as_strategy("CAGrad", 2), r"CAGrad needs c: pass `CAGrad\(c=…\)`"),
        (lambda: as_strategy("Balance", 2), r"Balance needs aggregator: pass `Balance\(UPGrad\(\)\)`"),
        (lambda: as_strategy("Disjiont", 2), r"found 'Disjiont'\. Did you mean 'Disjoint'"),
        (lambda: Balance("UPgrad"), r"`aggregator` of Balance .* found 'UPgrad'\. Did you mean 'UPGrad'"),
        (lambda: Balance("UW"), r"`aggregator` of Balance .* found .*UW"),
    ],
)
def test_a_name_that_does_not_do(value, says):
    with pytest.raises(HeadsError, match=says):
        value()


def test_a_missing_extra_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(torchjd._mixins, "find_spec", lambda name: None)
    with pytest.raises(HeadsError, match=r"`strategy`: QuadprogProjector requires .*pip install .torchjd\[quadprog"):
        as_strategy(UPGrad, 2)
    with pytest.raises(HeadsError, match=r"`strategy`: CAGrad needs c: pass `CAGrad\(c=…\)`"):
        as_strategy(CAGrad, 2)
    with pytest.raises(ImportError, match=r"pip install .torchjd\[cagrad\]"):  # torchjd's own words
        CAGrad(c=0.5)
