"""A few training items, drawn once: what the network is measured on and tried with."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastai.data.core import DataLoaders, TfmdDL
from fastai.torch_core import apply, no_random, to_device
from torch import Tensor

from fastai_heads.data.box_items import row_name
from fastai_heads.data.labels import MISREAD
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, first_line

__all__ = ["Sample", "draw_sample"]

_FEWER, _LARGE = 2, 200_000  # how many items are enough where one has more numbers than that
_LOOKED_AT = 50  # items in which a label is looked for where it may be missing


@dataclass(frozen=True)
class Sample:
    "Training items as one batch, before its batch transforms."

    loader: TfmdDL  # drawn from
    items: tuple[Any, ...]  # (B, …) each: inputs, then targets
    n_inp: int  # how many of them are inputs

    def batch(
        self,
        n: int | None = None,  # how many items; None: all
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:  # inputs and targets, on the device of the loader, as plain tensors
        "Give inputs and targets as fastai's loop does, after the batch transforms that the loader has now."
        dl = self.loader
        batch = tuple(apply(lambda part: part[:n].clone() if isinstance(part, Tensor) else part, self.items))
        with no_random(), torch.no_grad(), warnings.catch_warnings(action="ignore"):  # they come again in training
            try:
                batch = dl.after_batch(batch if dl.device is None else to_device(batch, dl.device))
            except HeadsError:
                raise
            except MISREAD as error:
                raise _failed(dl, 0, error) from error
        plain = tuple(part.as_subclass(Tensor) if isinstance(part, Tensor) else part for part in batch)
        return plain[: self.n_inp], plain[self.n_inp :]

    def inputs(
        self,
        n: int | None = 1,  # how many items; None: all
        device: torch.device | str = "cpu",
    ) -> tuple[Any, ...]:
        "Give the inputs alone."
        return to_device(self.batch(n)[0], device)


def draw_sample(
    dls: DataLoaders,  # with a training set of one item at least
    targets: Sequence[Target] = (),  # for those whose labels may be missing a labelled item is looked for
    n: int = 3,  # how many items; fewer where they are large
) -> Sample:
    "Draw training items from all over the training set, the first among them. The random state stays as it was."
    dl = dls.train
    with no_random(), torch.no_grad():
        first = _draw(dl, 0)
        size = sum(part.numel() for part in first[: dls.n_inp] if isinstance(part, Tensor))
        places = _places(dl, targets, min(n, _FEWER) if size > _LARGE else n)
        try:
            items = dl.do_batch([first, *(_draw(dl, i) for i in places[1:])])
        except HeadsError:
            raise
        except Exception as error:  # transforms and collation may be the user's
            what = f"items {', '.join(map(str, places))} make no batch"
            raise HeadsError(f"`dls.train`: {what}: {first_line(error)}.") from error
    return Sample(dl, tuple(items), dls.n_inp)


def _draw(dl: TfmdDL, i: int) -> Any:
    try:
        return dl.do_item(i)
    except HeadsError:
        raise
    except MISREAD as error:
        raise _failed(dl, i, error) from error


def _failed(dl: TfmdDL, i: int, error: Exception) -> HeadsError:
    name = row_name(dl.dataset.tls[0], i)
    return HeadsError(f"{name}: its transforms fail: {type(error).__name__}: {error}", parameter="dls")


def _places(dl: TfmdDL, targets: Sequence[Target], n: int) -> list[int]:
    "Choose items from all over the set, among them a labelled one for every target whose label may be missing."
    ds = dl.dataset
    places = [i * len(ds) // n for i in range(n)]
    for target in (target for target in targets if target.partial):
        labels = ds.tls[ds.n_inp + target.index]
        near = range(min(len(ds), _LOOKED_AT))
        there = [i for i in (*places, *near) if not _is_blank(labels[i])]
        places += [] if not there or there[0] in places else there[:1]
    return places


def _is_blank(label: Any) -> bool:
    "Tell whether an encoded label is that of an item without one."
    if not isinstance(label, Tensor):
        return False
    values = label.as_subclass(Tensor)
    return bool((values.isnan() if values.is_floating_point() else values == -100).all())
