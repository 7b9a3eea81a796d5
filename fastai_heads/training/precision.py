"""Mixed precision on the device that the model is on."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastcore.foundation import L
from torch.amp import GradScaler, autocast

from fastai_heads.errors import HeadsError, HeadsWarning

__all__ = ["DevicePrecision", "autocast_of", "check_precision", "check_scaler", "warn_of_half"]


class DevicePrecision(MixedPrecision):
    """fastai's `MixedPrecision`, which knows CUDA only and elsewhere trains in float32, on any device that has
    autocast."""

    name = "mixed_precision"  # fastai asks for it by this name

    def before_fit(self) -> None:
        "Autocast and loss scaling for the model's device; bfloat16 has the range of float32 and is not scaled."
        device = next(self.model.parameters()).device.type
        half = self.amp_mode == AMPMode.FP16
        if device == "cuda" and not half and not torch.cuda.is_bf16_supported():
            raise HeadsError("`to_bf16`: this GPU has no bfloat16. Use `to_fp16`.")
        self.kwargs["enabled"] = half
        self.autocast = autocast(device, dtype=torch.float16 if half else torch.bfloat16)
        self.learn.scaler, self.scales = GradScaler(device, **self.kwargs), L()


def autocast_of(
    cbs: Iterable[Callback | type],  # of a fit
    device: torch.device,  # of the model
) -> Callable[[], AbstractContextManager]:
    "Tell the context in which the fit runs the network."
    modes = [cb.amp_mode for cb in cbs if isinstance(cb, MixedPrecision)]
    if not modes:
        return nullcontext
    return partial(autocast, device.type, dtype=torch.float16 if modes[-1] == AMPMode.FP16 else torch.bfloat16)


def check_precision(
    cb: Callback,  # of a fit
    device: torch.device,  # of the data
) -> None:
    "Refuse fastai's own `MixedPrecision` where it would do nothing."
    if type(cb) is MixedPrecision and device.type != "cuda":
        mode = cb.amp_mode.value
        raise HeadsError(
            f"`cbs`: fastai's MixedPrecision knows CUDA only and would train in float32 on {device.type!r}. "
            f"Use `learn.to_{mode}()`, which works there."
        )


def check_scaler(
    given: Mapping[str, Any],  # keywords of `GradScaler`
) -> Mapping[str, Any]:  # the same
    "Refuse keywords that torch's scaling of losses does not take."
    try:
        GradScaler("cpu", **given)
    except (TypeError, AssertionError) as error:
        raise HeadsError(
            f"`to_fp16` takes the keywords of torch's GradScaler, found {dict(given)!r}: {error}."
        ) from error
    return given


def warn_of_half(
    device: torch.device | None,  # of the data; None: not known
) -> None:
    "Say that float16 is slow on a processor, which has no instructions for it."
    if device is not None and torch.device(device).type == "cpu":
        warnings.warn(
            "`to_fp16` on a CPU trains some twenty times slower than float32. `learn.to_bf16()` is quick there, and "
            "needs no loss scaling.",
            HeadsWarning,
            stacklevel=3,
        )
