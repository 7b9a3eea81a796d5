"""segmentation_models_pytorch, whose decoders and losses are an extra."""

from importlib import import_module
from typing import Any

from fastai_heads.errors import HeadsError

__all__ = ["smp"]

_INSTALL = "pip install 'segmentation_models_pytorch>=0.6,<0.7'"


def smp(
    module: str,  # below the package
) -> Any:
    "Import a module of segmentation_models_pytorch. Raises a `HeadsError` with the command that installs it."
    try:
        return import_module(f"segmentation_models_pytorch.{module}")
    except ImportError as error:
        raise HeadsError(
            f"SMP's decoders and losses need segmentation_models_pytorch ({error}). Run: {_INSTALL}. "
            "`SegmentationHead(decoder='dynamic_unet')` with cross-entropy needs fastai alone."
        ) from None
