"""`distrib_ctx` in one process; with two it is in `tests/training/ranks/test_trainer.py`."""

from types import SimpleNamespace

import pytest
import torch

from fastai_heads.errors import HeadsError
from fastai_heads.learner import ranks as learner_ranks


def test_one_process_is_left_alone(make_learner):
    learn = make_learner("digit")
    cbs, model = list(learn.cbs), learn.model
    with learn.distrib_ctx() as same:
        assert same is learn and list(learn.cbs) == cbs and learn.model is model and learn.ranks == 1


def test_without_accelerate(make_learner, monkeypatch):
    learn = make_learner("digit")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(learner_ranks, "find_spec", lambda name: None)
    with (
        pytest.raises(HeadsError, match=r"needs accelerate.*pip install 'fastai_heads\[distributed\]'"),
        learn.distrib_ctx(),
    ):
        pass


def test_an_accelerate_that_was_set_up_for_one_process_is_refused(make_learner, monkeypatch):
    import fastai.distributed

    learn = make_learner("digit")
    monkeypatch.setenv("WORLD_SIZE", "2")
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    monkeypatch.setattr(fastai.distributed, "Accelerator", lambda **kwargs: alone)
    with pytest.raises(HeadsError, match=r"2 processes were started, and accelerate.*knows of 1"):
        learn.to_distributed()
