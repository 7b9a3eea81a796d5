"""Arguments of a wrong type are refused before any training, whichever method they were given to."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.training import GradientClip
from fastai.metrics import accuracy
from fastai.optimizer import Adam, OptimWrapper

from fastai_heads.errors import HeadsError
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.arguments import check_arguments, check_settings

RATE = r"is a rate such as `1e-3`, `slice\(1e-5, 1e-3\)`.*found '1e-3'\. Pass `{}=1e-3`, without quotes"
CALLS = [  # (method, arguments, what it says)
    *((m, {"lr": "1e-3"}, "`lr` of `" + m + "` " + RATE.format("lr")) for m in ("fit", "fit_flat_cos")),
    *(
        (m, {"lr_max": "1e-3"}, "`lr_max` of `" + m + "` " + RATE.format("lr_max"))
        for m in ("fit_one_cycle", "fit_sgdr")
    ),
    ("fine_tune", {"base_lr": "1e-3"}, "`base_lr` of `fine_tune` " + RATE.format("base_lr")),
    ("lr_find", {"start_lr": "1e-7"}, r"`start_lr` of `lr_find` is a rate such as.*Pass `start_lr=1e-7`"),
    ("lr_find", {"num_it": 0}, r"`num_it` of `lr_find` is a whole number of at least 1, found 0"),
    ("lr_find", {"suggest_funcs": "valley"}, r"`suggest_funcs` of `lr_find` is a function such as `valley`"),
    ("fit", {"lr": -1}, "`lr` of `fit` is a rate"),
    ("fit", {"lr": slice("1e-3")}, "`lr` of `fit` is a rate"),
    ("fit", {"lr": float("nan")}, "`lr` of `fit` is a rate"),
    *(
        (m, {"wd": "0.1"}, r"`wd` of `.*` is a weight decay such as `1e-2`.*Pass `wd=0.1`")
        for m in ("fit", "fine_tune")
    ),
    *((m, {"moms": 0.9}, r"`moms` of `.*` is three momenta") for m in ("fit_one_cycle", "fine_tune")),
    *((m, {"cbs": "clip"}, r"`cbs` of `.*` is a callback or a list") for m in ("fit", "fit_one_cycle", "fit_sgdr")),
    ("fit", {"cbs": [accuracy]}, r"`cbs` of `fit` is a callback or a list"),
    ("fit", {"reset_opt": "yes"}, "`reset_opt` of `fit` is True or False"),
    ("fit_one_cycle", {"pct_start": 25}, "`pct_start` of `fit_one_cycle` is a share from 0 to 1, found 25"),
    ("fit_one_cycle", {"div": "25"}, "`div` of `fit_one_cycle` is a number.*Pass `div=25`"),
    ("fine_tune", {"freeze_epochs": 0.5}, "`freeze_epochs` of `fine_tune` is a whole number of at least 0, found 0.5"),
]


@pytest.fixture(scope="module")
def learn(scenes):
    from fastai_heads.data.digits import digits_dls

    return multihead_learner(digits_dls(("digit",), bs=8, path=scenes, n=40, size=32), "test_resnet", pretrained=False)


@pytest.mark.parametrize(("method", "given", "says"), CALLS, ids=str)
def test_training_refuses_it_before_the_first_step(learn, method, given, says):
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    count = {"lr_find": (), "fit_sgdr": (1, 1)}.get(method, (1,))
    with pytest.raises(HeadsError, match=says):
        getattr(learn, method)(*count, **given)
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())


@pytest.mark.parametrize("method", ["fit", "fit_one_cycle", "fit_flat_cos", "fine_tune"])
@pytest.mark.parametrize("count", ["1", 1.5, -1, None, True], ids=str)
def test_how_many_epochs_is_a_whole_number(learn, method, count):
    with pytest.raises(HeadsError, match=rf"`(n_epoch|epochs)` of `{method}` is a whole number of at least 0"):
        getattr(learn, method)(count)


@pytest.mark.parametrize(
    "given",
    [
        {"lr": 1e-3},
        {"lr": np.float32(1e-3)},
        {"lr": slice(1e-5, 1e-3)},
        {"lr": slice(1e-3)},
        {"lr": [1e-4, 1e-3]},
        {"lr": np.array([1e-4, 1e-3])},
        {"lr": torch.tensor(1e-3)},
        {"lr": None, "wd": None, "cbs": None},
        {"wd": [0.1, 0.2], "cbs": [GradientClip(), GradientClip]},
        {"moms": [0.9, 0.8, 0.9], "n_epoch": np.int64(2), "num_it": 10},
    ],
    ids=str,
)
def test_what_fastai_takes_is_taken(given):
    check_arguments("fit", given)


SETTINGS = [
    ({"opt_func": "adam"}, r"`opt_func` is a function that makes an optimizer.*found 'adam'\. Did you mean 'Adam'"),
    ({"opt_func": "sgd"}, r"`opt_func`.*found 'sgd'"),
    ({"opt_func": torch.optim.AdamW}, r"`opt_func=partial\(OptimWrapper, opt=torch.optim.AdamW\)`"),
    ({"opt_func": 1e-3}, "`opt_func` is a function that makes an optimizer"),
    ({"lr": "1e-3"}, r"`lr` is a rate.*Pass `lr=1e-3`, without quotes"),
    ({"lr": None}, "`lr` is a rate.*found None"),
    ({"wd": "0.1"}, r"`wd` is a weight decay.*Pass `wd=0.1`"),
    ({"moms": (0.9, 0.8)}, r"`moms` is three momenta"),
    ({"moms": None}, r"`moms` is three momenta.*found None"),
    ({"cbs": "SaveModelCallback"}, r"`cbs` is a callback or a list of them"),
    ({"path": 3}, r"`path` is a folder"),
    ({"model_dir": None}, r"`model_dir` is a folder"),
    ({"metrics": "accuracy"}, r"`metrics` is a metric or a list of them, such as `accuracy`, found 'accuracy'"),
    ({"metrics": [accuracy, 3]}, r"`metrics` is a metric or a list of them"),
    ({"train_bn": "no"}, r"`train_bn` is True or False"),
    ({"normalize": None}, r"`normalize` is True or False"),
    ({"body_kwargs": [1]}, r"`body_kwargs` is a dict of options of the arch"),
]


@pytest.mark.parametrize(("given", "says"), SETTINGS, ids=str)
def test_a_learner_is_not_made_with_it(learn, given, says):
    with pytest.raises(HeadsError, match=says):
        multihead_learner(learn.dls, "test_resnet", **{"pretrained": False, **given})


@pytest.mark.parametrize(
    "given",
    [
        {"opt_func": Adam},
        {"opt_func": partial(OptimWrapper, opt=torch.optim.AdamW)},
        {"path": Path(), "model_dir": "m"},
    ],
    ids=str,
)
def test_settings_that_fastai_takes_are_taken(given):
    check_settings(given)
