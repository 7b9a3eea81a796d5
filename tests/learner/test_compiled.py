"""A compiled learner trains, predicts, saves and leaves the house as a plain one."""

import warnings

import pytest
import torch
from fastai.learner import load_learner
from torchjd.aggregation import UPGrad
from torchjd.scalarization import UW

from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.export.bundle import load_bundle
from fastai_heads.learner import compiled


def weights(learn):
    return {name: value.clone() for name, value in learn.model.state_dict().items()}


@pytest.mark.parametrize("strategy", [None, UW])
def test_a_fit_is_the_plain_one(make_learner, strategy):
    found = []
    for compiles in (False, True):
        torch.manual_seed(0)
        learn = make_learner("digit", "ink", strategy=strategy)
        if compiles:
            assert learn.compile(backend="eager") is learn
            assert learn.model._compiled_call_impl is not None
        learn.dls.train.rng.seed(0)
        torch.manual_seed(1)
        learn.fit(1, 1e-3)
        found.append((weights(learn), learn.get_preds()[0]))
    (plain, preds), (same, others) = found
    assert list(plain) == list(same)
    for name, value in plain.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6)
    for one, other in zip(preds, others):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_files_hold_the_plain_network(make_learner, table, tmp_path):
    learn, plain = make_learner("digit", "ink"), make_learner("digit", "ink")
    learn.compile(backend="eager")
    row = table.iloc[0]
    want = learn.predict(row)[2]
    plain.load(learn.save(tmp_path / "weights"), with_opt=False)
    learn.load(tmp_path / "weights", with_opt=False)
    learn.export(tmp_path / "learner.pkl")
    learn.save_bundle(tmp_path / "bundle")
    again = load_learner(tmp_path / "learner.pkl")
    assert again.model._compiled_call_impl is None and learn.model._compiled_call_impl is not None
    for other in (plain, again):
        with other.no_bar():
            found = other.predict(row)[2]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, want))
    assert load_bundle(tmp_path / "bundle").heads == ("digit", "ink")


def test_where_there_is_no_compiler_it_runs_as_before(make_learner, monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("g++ not found")

    learn = make_learner("digit")
    monkeypatch.setattr(compiled.torch, "compile", missing)
    with pytest.warns(HeadsWarning, match="no compiler here, and the network runs as before: g\\+\\+ not found"):
        learn.compile()
    assert learn.model._compiled_call_impl is None
    learn.get_preds()


def test_what_cannot_be_compiled_is_refused(make_learner):
    learn = make_learner("digit", "ink", strategy=UPGrad)
    with pytest.raises(HeadsError, match=r"`compile`: .* goes back through the network once for each head"):
        learn.compile(backend="eager")
    learn.strategy = None
    with pytest.raises(HeadsError, match=r"options of `torch.compile`"):
        learn.compile(backendd="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.compile(backend="eager")
    with pytest.raises(HeadsError, match=r"compiled by `torch.compile`"):
        learn.strategy = UPGrad
