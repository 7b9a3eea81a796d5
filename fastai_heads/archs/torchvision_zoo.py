"""Torchvision's weights, and the images that they declare."""

from collections.abc import Callable
from enum import Enum

from torch import nn
from torchvision.models import get_model_weights, list_models, segmentation

from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["BUILD_ARGS", "choose_weights", "weights_stats"]

BUILD_ARGS: dict[str, dict[str, object]] = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}
BUILD_ARGS |= {name: {"weights_backbone": None} for name in list_models(module=segmentation)}
"""Arguments for a random network. `init_weights` is torchvision's own default; torchvision warns where it is left out.
`weights_backbone` is None, as the backbone of a segmentation network has weights by default."""


def choose_weights(
    build: Callable[..., nn.Module],  # a torchvision function
    name: str,  # for messages
    pretrained: bool,
    weights: Enum | str | None,  # a member of its enum, or its name; None: DEFAULT if `pretrained`
) -> Enum | None:
    "Choose the member of the weights enum that the user means, or None for random weights."
    options = get_model_weights(build)
    if weights is None:
        if pretrained and not len(options):
            raise HeadsError(f"`pretrained=True`: torchvision has no weights for {name!r}; say pretrained=False.")
        return options["DEFAULT"] if pretrained else None
    if not pretrained:
        raise HeadsError(f"`weights={weights}` contradicts `pretrained=False`; leave one of the two out.")
    if isinstance(weights, options):
        return weights
    key = weights.removeprefix(f"{options.__name__}.") if isinstance(weights, str) else None
    if key in options.__members__:
        return options[key]
    known = list(options.__members__)
    raise HeadsError(
        f"`weights` of {name!r}: expected a member of {options.__name__} or its name ({', '.join(known)}), "
        f"found {weights!r}.{did_you_mean(weights, known)}"
    )


def weights_stats(
    weights: Enum | None,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None, int | None]:
    "Read mean, standard deviation, side of the image, and least side from the weights in use. Each may be None."
    if weights is None:
        return None, None, None, None
    preset = weights.transforms()
    side = getattr(preset, "crop_size", None)  # of segmentation only the resizing is known
    side = side[0] if isinstance(side, list | tuple) else side
    least = weights.meta.get("min_size", (None,))[0]
    return tuple(preset.mean), tuple(preset.std), side, least
