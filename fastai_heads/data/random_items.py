"""Whether a loader draws its items at random: what is stored of them is one draw, or several."""

from collections.abc import Iterator
from typing import Any

import torch
from fastai.data.core import TfmdDL
from fastai.torch_core import no_random, to_device
from fastai.vision.augment import RandTransform, Resize
from torch import Tensor

from fastai_heads.errors import HeadsError

__all__ = ["check_views"]

_LOOKED_AT = 16  # items that are drawn twice


def check_views(
    dl: TfmdDL,  # the training set's
    views: int,  # how often each item is to be stored
) -> None:
    "Refuse one view of items that are drawn at random, and several views of items that are not."
    names = sorted({type(f).__name__ for f in _transforms(dl) if _augments(f)})
    differs = not names and _differs(dl)
    if views == 1 and (names or differs):
        resizes = any(isinstance(f, Resize) for f in _transforms(dl))
        crop = " `Resize` crops at random in training: `Resize(size, method='squish')` does not." if resizes else ""
        what = ", ".join(names) or "two draws of one item differ"
        raise HeadsError(
            f"`views=1`: the training items are augmented ({what}), and what is stored of each would be one draw, the "
            "same in every epoch. Pass `views=4`: each item is stored in four draws, and an epoch takes one of them "
            f"at random. Or build the data without augmentation.{'' if names else crop}"
        )
    if views > 1 and not names and not differs:
        raise HeadsError(
            f"`views={views}`: nothing of the training items is random, so that all views would be alike. Leave "
            "`views` out, or build the data with `batch_tfms=aug_transforms()`."
        )


def _transforms(dl: TfmdDL) -> Iterator[Any]:
    for pipeline in (*(tl.tfms for tl in dl.dataset.tls), dl.after_item, dl.after_batch):
        yield from pipeline.fs


def _augments(f: Any) -> bool:
    "Tell whether a transform is random in training. Whether `Resize` is depends on the images."
    return isinstance(f, RandTransform) and not isinstance(f, Resize) and f.split_idx != 1 and f.p > 0


def _differs(dl: TfmdDL) -> bool:
    "Draw some items twice, and tell whether anything of them differs."
    n = min(_LOOKED_AT, len(dl.dataset), dl.bs)
    places = [i * len(dl.dataset) // n for i in range(n)]
    draws = []
    dl.before_iter()  # tells the transforms that they train
    for seed in (0, 1):
        with no_random(seed), torch.no_grad():
            batch = dl.do_batch([dl.do_item(i) for i in places])
            batch = dl.after_batch(batch if dl.device is None else to_device(batch, dl.device))
            draws.append([x.as_subclass(Tensor) for x in _tensors(batch)])
    return any(a.shape != b.shape or not ((a == b) | ((a != a) & (b != b))).all() for a, b in zip(*draws))


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from _tensors(part)
