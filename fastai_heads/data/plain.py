"""A plain PyTorch `Dataset` of (image, y, y, …) in fastai's loaders, its targets as the user's heads name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.load import DataLoader
from fastai.torch_core import TensorBase, default_device, no_random
from fastcore.foundation import is_indexer
from fasttransform.transform import ItemTransform
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import IterableDataset

from fastai_heads.data.kinds import TellsKind
from fastai_heads.data.missing import IGNORE_CATEGORY
from fastai_heads.errors import HeadsError

__all__ = ["PlainDatasets", "PlainPart", "Stated", "from_plain"]

_IMAGE = "image"
_FIRST = 16  # items that are looked at before training


@dataclass(frozen=True)
class Stated:
    "What the user's head says of a target."

    kind: str  # as of a `Target`
    n_out: int | None = None  # numbers per image
    void: int | None = None  # a mask's value for a pixel without a label


class PlainItems:
    "The items of a `Dataset`, as fastai's lists hold them: a list of them would read them all."

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @property
    def iloc(self) -> "PlainItems":
        "Give itself: fastai indexes what has this, and does not copy it."
        return self

    def __getitem__(self, i: int) -> Any:
        try:
            return self.source[int(i)]
        except IndexError as error:
            raise HeadsError(f"`dls`: item {i} of the Dataset cannot be read: {error}") from error


class PlainImage(TensorBase):
    "An image of a plain `Dataset`, which nobody knows how to draw."

    def show(self, ctx: Axes | None = None, **kwargs: Any) -> Axes:
        "Refuse to be drawn."
        raise HeadsError(
            "images of a plain PyTorch Dataset cannot be shown: how they were made of pixels is not known. "
            "`show_batch`, `show_results` and decoded names need a DataBlock; "
            "`learn.get_preds()` and `learn.predict(tensor)` work."
        )


class PlainPart(TellsKind, ItemTransform):
    "One element of an item, as the tensor that a body or a head takes."

    def __init__(
        self,
        place: int,  # in the item
        name: str,  # of the input or the target
        stated: Stated,  # what it is
    ):
        super().__init__()
        self.place, self.part, self.stated = place, name, stated

    def target_kind(self) -> tuple[str, int | None, tuple | None]:
        return self.stated.kind, self.stated.n_out, None

    def encodes(self, o):
        value = o[self.place] if isinstance(o, tuple | list) else o
        return as_image(value) if self.stated.kind == _IMAGE else as_target(value, self.part, self.stated)

    def decodes(self, o: Tensor):
        if self.stated.kind == _IMAGE:
            return PlainImage(o)
        return o.item() if o.numel() == 1 and self.stated.kind in ("category", "regression") else o


def as_image(
    value: Any,  # what an item holds first
) -> Tensor:  # (C, H, W) float32
    "Give an image as a tensor of floats; anything else is refused."
    image = torch.as_tensor(value) if isinstance(value, Tensor | np.ndarray) else None
    if image is None or image.ndim != 3 or not image.is_floating_point():
        found = type(value).__name__ if image is None else f"{tuple(image.shape)} of {image.dtype}"
        raise HeadsError(
            f"`dls` holds a plain Dataset, whose images are tensors (C, H, W) of floats, in `predict` too; found "
            f"{found}. `torchvision.transforms.ToTensor()` makes them of pictures; paths and item transforms need "
            "a DataBlock."
        )
    return image.float()


def as_target(
    value: Any,  # one label
    name: str,  # the target's
    stated: Stated,  # what its head says
) -> Tensor:  # as the head's loss takes it
    "Give a label as a tensor of the right type and shape; one that its head cannot take is refused."
    try:
        target = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HeadsError(
            f"target {name!r} is a number or a tensor of a plain Dataset, found {value!r}: {error}"
        ) from None
    if stated.kind == "category":
        return _class_of(target, name, stated.n_out)
    if stated.kind == "mask":
        return target.long()
    if stated.kind == "unknown":
        return target.float() if target.dtype == torch.float64 else target
    numbers = target.float()
    shape = _SHAPES[stated.kind](stated.n_out)
    if numbers.numel() != stated.n_out or numbers.isinf().any():
        raise HeadsError(f"target {name!r} needs {stated.n_out} finite number(s) (`n_out`), found {value!r}.")
    return numbers.reshape(shape)


_SHAPES = {
    "regression": lambda n: () if n == 1 else (n,),
    "multilabel": lambda n: (n,),
    "point": lambda n: (n // 2, 2),
    "box": lambda n: (1, n),
}
"The shape of a label of `n_out` numbers, as fastai's blocks make it."


def _class_of(target: Tensor, name: str, n_out: int) -> Tensor:
    whole = target.numel() == 1 and not target.is_floating_point()
    if not whole or not (0 <= int(target) < n_out or int(target) == IGNORE_CATEGORY):
        raise HeadsError(
            f"target {name!r} is a class from 0 to {n_out - 1} (`n_out={n_out}`), or {IGNORE_CATEGORY} for no label; "
            f"found {target.tolist()!r}."
        )
    return target.reshape(()).long()


class PlainDatasets(Datasets):
    "A plain `Dataset` as fastai's `Datasets`: an item is read once for all its parts."

    def __getitem__(self, it: Any) -> Any:
        items = self.tls[0].items
        if not isinstance(items, PlainItems) or not is_indexer(it):
            return super().__getitem__(it)
        item = items[it]
        try:
            return tuple(tl.tfms(item) for tl in self.tls)
        except HeadsError as error:
            raise error.within(f"item {it}") from None


def from_plain(
    dls: DataLoaders,  # over fastai `Datasets`, or over a plain PyTorch `Dataset`
    stated: Mapping[str, Stated],  # name → what its head says of it, in the order of the targets
) -> DataLoaders:  # over `Datasets`; `dls` itself where it is already, or where it is neither
    "Name the targets of a plain `Dataset` of (image, y, …) by the heads. What is not told is asked for."
    if not isinstance(dls, DataLoaders) or not len(dls.loaders) or not _is_plain(dls.loaders[0]):
        return dls
    _check_loaders(dls)
    with no_random():
        item = dls.train_ds[0]
    _check_item(item, stated)
    parts = [PlainPart(0, _IMAGE, Stated(_IMAGE)), *(PlainPart(i, n, s) for i, (n, s) in enumerate(stated.items(), 1))]
    loaders = [_typed(dl, parts) for dl in dls.loaders]
    for dl in loaders:
        with no_random():
            for i in range(min(_FIRST, len(dl.dataset))):
                dl.dataset[i]
    device = getattr(dls, "device", None) or default_device()
    return DataLoaders(*loaders, path=dls.path, device=device)


def _is_plain(dl: Any) -> bool:
    "Tell whether a loader's data is none of fastai's."
    ds = getattr(dl, "dataset", None)
    is_torch = isinstance(dl, torch.utils.data.DataLoader)
    return is_torch or isinstance(ds, torch.utils.data.Dataset) or _is_sequence(ds)


def _is_sequence(ds: Any) -> bool:
    own = isinstance(ds, Datasets | TfmdLists) or hasattr(ds, "iloc") or hasattr(ds, "procs")
    return not own and ds is not None and hasattr(ds, "__getitem__") and hasattr(ds, "__len__")


def _check_loaders(dls: DataLoaders) -> None:
    "Refuse loaders that are not fastai's, and data that has no places."
    for dl in dls.loaders:
        if not isinstance(dl, DataLoader):
            raise HeadsError(
                f"`dls` holds a {type(dl).__module__}.{type(dl).__name__}; fastai's loaders are needed: "
                "`DataLoaders.from_dsets(train_ds, valid_ds, bs=64)` makes them of the same Datasets."
            )
        if isinstance(dl.dataset, IterableDataset):
            raise HeadsError(
                f"`dls` holds the {type(dl.dataset).__name__} of an IterableDataset, which has no item by number: "
                "give a Dataset with `__getitem__` and `__len__`."
            )


def _check_item(item: Any, stated: Mapping[str, Stated]) -> None:
    "Refuse an item that is no tuple of image and targets, and heads that do not say how many and what."
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise HeadsError(
            f"`dls` holds a plain Dataset, whose items are tuples (image, target, …), found {type(item).__name__}."
        )
    n = len(item) - 1
    if len(stated) != n:
        raise HeadsError(
            f"`dls` holds a plain Dataset of {n} target(s), of which nothing else is known: name every one in order by "
            f"its head, {_example(item)}; found {', '.join(stated) or 'none'}."
        )
    for name, what in stated.items():
        if what.n_out is None and what.kind != "unknown":
            raise HeadsError(
                f"`n_out` of `heads[{name!r}]` is needed, as a plain Dataset does not tell: `n_out=10` for ten "
                "classes, `n_out=1` for one number."
            )


def _example(item: tuple | list) -> str:
    "Propose heads that would fit, told from the types of an item's labels."
    heads = ", ".join(f"'y{i}': {_guess(label)}" for i, label in enumerate(item[1:], 1))
    return f"`heads={{{heads}}}`"


def _guess(label: Any) -> str:
    numbers = torch.as_tensor(label) if isinstance(label, Tensor | np.ndarray | np.generic | int | float) else None
    if numbers is None:
        return "CustomHead(module, loss=…)"
    if numbers.is_floating_point():
        return f"RegressionHead(n_out={prod(numbers.shape)})"
    return "ClassificationHead(n_out=10)" if numbers.ndim == 0 else "SegmentationHead(n_out=2)"


def _typed(dl: DataLoader, parts: list[PlainPart]) -> TfmdDL:
    "Make a loader of the same items, with named targets."
    items = PlainItems(dl.dataset)
    tls = [TfmdLists(items, [part], do_setup=False, types=[object, object]) for part in parts]
    return DataLoader.new(dl, PlainDatasets(tls=tls, n_inp=1), cls=TfmdDL)
