"""What the arguments of training, and those of fastai's `Learner`, may be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from fastcore.foundation import L
from torch import Tensor

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.spec import is_metric, is_number

__all__ = ["SETTINGS", "check_arguments", "check_settings"]

_OPTIMIZERS = ("Adam", "SGD", "RMSProp", "QHAdam", "RAdam", "Lamb", "Larc", "Lookahead", "ranger")


@dataclass(frozen=True)
class Rule:
    "What one argument may be."

    fits: Callable[[Any], bool]
    expected: str  # as the end of '`name` is …'
    optional: bool = False  # None will do


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and is_number(value, least=0)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and is_number(value, least=1)


def _is_size(value: Any) -> bool:
    "Tell whether it is a number of at least 0, also one that stands in a tensor."
    single = isinstance(value, Tensor | np.ndarray) and prod(value.shape) == 1
    return is_number(value.item() if single else value, least=0)


def _is_divisor(value: Any) -> bool:
    return _is_size(value) and value > 0


def _one_or_all(
    fits: Callable[[Any], bool],  # tells of one value whether it will do
) -> Callable[[Any], bool]:
    "Make the test of one value, or of every value in a list."

    def test(value: Any) -> bool:
        listed = isinstance(value, list | tuple | L) or (isinstance(value, np.ndarray) and value.ndim > 0)
        return all(map(fits, value)) if listed else fits(value)

    return test


def _is_rate(value: Any) -> bool:
    if isinstance(value, slice):
        return (
            value.step is None
            and value.stop is not None
            and _is_size(value.stop)
            and (value.start is None or _is_size(value.start))
        )
    return _one_or_all(_is_size)(value)


def _is_share(value: Any) -> bool:
    return is_number(value, least=0) and value <= 1


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def _are_momenta(value: Any) -> bool:
    return isinstance(value, list | tuple | L) and len(value) == 3 and all(map(_is_share, value))


def _are_options(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_callback(value: Any) -> bool:
    return isinstance(value, Callback) or (isinstance(value, type) and issubclass(value, Callback))


def _makes_optimizer(value: Any) -> bool:
    of_torch = isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    return isinstance(value, OptimWrapper) or (callable(value) and not of_torch)


_COUNT = Rule(_is_count, "a whole number of at least 1")
_WHOLE = Rule(_is_whole, "a whole number of at least 0")
_SIZE = Rule(_is_size, "a number of at least 0, such as `100`")
_RATE = Rule(_is_rate, "a rate such as `1e-3`, `slice(1e-5, 1e-3)`, or a list with one for each group", True)
_START = Rule(_is_size, "a rate such as `1e-3`")
_SHARE = Rule(_is_share, "a share from 0 to 1")
_FLAG = Rule(_is_flag, "True or False")
_MOMENTA = Rule(_are_momenta, "three momenta from 0 to 1, such as `(0.95, 0.85, 0.95)`", True)
_CALLBACKS = Rule(_one_or_all(_is_callback), "a callback or a list of them, such as `[SaveModelCallback()]`", True)

_TRAINING: dict[str, Rule] = {
    **dict.fromkeys(("n_epoch", "epochs", "freeze_epochs", "start_epoch"), _WHOLE),
    **dict.fromkeys(("n_cycles", "cycle_len", "num_it", "views"), _COUNT),
    **dict.fromkeys(("lr", "lr_max"), _RATE),
    **dict.fromkeys(("start_lr", "end_lr"), _START),
    "base_lr": Rule(_is_rate, _RATE.expected),
    **dict.fromkeys(("div", "div_final"), Rule(_is_divisor, "a number above 0, such as `25`")),
    **dict.fromkeys(("lr_mult", "cycle_mult"), _SIZE),
    "n": Rule(lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number of groups"),
    "pct_start": _SHARE,
    "wd": Rule(_one_or_all(_is_size), "a weight decay such as `1e-2`", True),
    "moms": _MOMENTA,
    "cbs": _CALLBACKS,
    **dict.fromkeys(("reset_opt", "stop_div", "show_plot"), _FLAG),
    "suggest_funcs": Rule(_one_or_all(callable), "a function such as `valley`, or a list of them", True),
}
"Of the arguments of fastai's `fit`, `fit_one_cycle`, `fit_flat_cos`, `fit_sgdr`, `fine_tune` and `lr_find`, and ours."

SETTINGS: dict[str, Rule] = {
    "opt_func": Rule(_makes_optimizer, "a function that makes an optimizer, such as fastai's `Adam`"),
    "lr": Rule(_is_rate, _RATE.expected),
    "cbs": _CALLBACKS,
    "metrics": Rule(_one_or_all(is_metric), "a metric or a list of them, such as `accuracy`", True),
    "path": Rule(_is_path, "a folder, as a `Path` or a text", True),
    "model_dir": Rule(_is_path, "a folder, as a `Path` or a text"),
    "wd": _TRAINING["wd"],
    "moms": Rule(_are_momenta, _MOMENTA.expected),
    **dict.fromkeys(("wd_bn_bias", "train_bn", "default_cbs", "pretrained", "normalize", "fused"), _FLAG),
    "body_kwargs": Rule(_are_options, "a dict of options of the arch, by name", True),
    "n_in": Rule(_is_count, "the number of an image's channels, at least one"),
}
"Of the arguments of fastai's `Learner`, and the plain ones of `multihead_learner`."


def check_arguments(
    method: str,  # of a learner, for the message
    given: Mapping[str, Any],  # name → value, as it is called
) -> None:
    "Refuse arguments of training that are of another type, or out of range."
    _check(given, _TRAINING, f" of `{method}`")
    start, end = (given.get(name, default) for name, default in (("start_lr", 1e-7), ("end_lr", 10)))
    if method == "lr_find" and start >= end:
        raise HeadsError(f"`start_lr` of `lr_find` is below `end_lr`, found {start} and {end}.")


def check_settings(
    given: Mapping[str, Any],  # name → value, as a learner is made with them
) -> None:
    "Refuse settings of a learner that are of another type, or out of range."
    _check(given, SETTINGS, "")


def _check(given: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    for name, value in given.items():
        rule = rules.get(name)
        if rule is None or (rule.optional and value is None) or rule.fits(value):
            continue
        raise HeadsError(f"`{name}`{where} is {rule.expected}, found {value!r}.{_nearest(name, value)}")


def _nearest(name: str, value: Any) -> str:
    "Propose a call that works, where it can be told."
    if name == "opt_func" and isinstance(value, str):
        return did_you_mean(value, _OPTIMIZERS, 1) or did_you_mean(value.capitalize(), _OPTIMIZERS, 1)
    if name == "opt_func" and isinstance(value, type):
        return f" One of torch's is `opt_func=partial(OptimWrapper, opt=torch.optim.{value.__name__})`."
    number = _as_number(value)
    return "" if number is None else f" Pass `{name}={number}`, without quotes."


def _as_number(value: Any) -> str | None:
    "Give the text of a number, where a text holds one."
    if not isinstance(value, str):
        return None
    try:
        float(value)
    except ValueError:
        return None
    return value.strip()
