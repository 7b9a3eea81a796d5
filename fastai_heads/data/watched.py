"""Items that are checked as they are read: what no look at the labels can see is raised by row and file."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from fastai.data.core import Datasets, TfmdDL, TfmdLists
from fastai.vision.core import PILBase, PointScaler, TensorBBox, TensorPoint
from fastcore.foundation import is_indexer
from fasttransform.transform import ItemTransform
from torch import Tensor

from fastai_heads.data.box_items import row_name
from fastai_heads.data.detection_block import is_pair
from fastai_heads.data.files import Headers
from fastai_heads.data.labels import MISREAD, opens_image, source_of
from fastai_heads.data.places import check_in_image, check_points_in_image
from fastai_heads.errors import HeadsError

__all__ = ["SameSizes", "WatchedDatasets", "scaler_of", "watch"]


class WatchedDatasets(Datasets):
    "fastai's `Datasets`, whose items say which row they are where they cannot be read, or leave their image."

    split = ""  # which set it is, for messages
    points = False  # whether points are x, y in pixels of the image as it is read

    def __getitem__(self, it: Any) -> Any:
        if not is_indexer(it):
            return super().__getitem__(it)
        item = tuple(self._named(tl, it, partial(tl.__getitem__, it)) for tl in self.tls)
        image = next((o for o in item[: self.n_inp] if isinstance(o, PILBase)), None)
        if image is not None:
            for tl, o in zip(self.tls[self.n_inp :], item[self.n_inp :]):
                self._named(tl, it, partial(self._check_place, o, image.size))
        return item

    def _named(self, tl: TfmdLists, i: int, read: Callable[[], Any]) -> Any:
        "Read a part of an item; an error says which row and file it is."
        try:
            return read()
        except (HeadsError, *MISREAD) as error:
            name = f"{row_name(tl, i)} of the {self.split} set"
            kind = "" if isinstance(error, HeadsError) else f"it cannot be read: {type(error).__name__}: "
            raise HeadsError(f"{name}: {kind}{error}") from error

    def _check_place(self, o: Any, size: tuple[int, int]) -> None:
        if is_pair(o):
            boxes, labels = o
            if not getattr(boxes, "clips", False):
                check_in_image(boxes.as_subclass(Tensor)[labels.as_subclass(Tensor) >= 0], size, "DetectionBlock")
        elif isinstance(o, TensorBBox):
            if not getattr(o, "clips", False):
                check_in_image(o, size, "BoxBlock")
        elif self.points and isinstance(o, TensorPoint):
            check_points_in_image(o, size)


class SameSizes(ItemTransform):
    "Before a batch is made: refuses samples that do not fit together, with two of their files."

    order = 1000  # what pads has padded

    def __init__(
        self,
        ds: Datasets,  # where the files are looked for; not kept in a copy
        names: Sequence[str],  # of inputs and targets
    ):
        super().__init__()
        self.ds, self.n_inp, self.names = ds, ds.n_inp, tuple(names)

    def __getstate__(self) -> dict[str, Any]:
        "Leave out the data: an exported learner has other data."
        return {**self.__dict__, "ds": None}

    def encodes(self, x: list):
        for place, shapes in enumerate(_shapes(x)):
            if len(set(shapes)) > 1:
                raise HeadsError(self._said(place, sorted(set(shapes), key=shapes.index)[:2]))
        return x

    def _said(self, place: int, shapes: Sequence[tuple[int, ...]]) -> str:
        if place >= self.n_inp:
            return (
                f"target {self.names[place]!r} has two shapes in one batch, {shapes[0]} and {shapes[1]}: give every "
                "row as many numbers, and masks the size of their images."
            )
        sizes = [(shape[-1], shape[-2]) for shape in shapes]
        known = self.ds is not None and opens_image(self.ds.tls[place])
        files = " and ".join(_files_of(self.ds, place, sizes)) if known else ""
        both = " and ".join(f"{w}×{h}" for w, h in sizes)
        side = min(min(size) for size in sizes)
        return (
            f"the images of one batch have two sizes, {both} pixels{f' ({files})' if files else ''}: bring them to "
            f"one, `item_tfms=Resize({side})` in the DataBlock."
        )


def _shapes(samples: Sequence[Sequence[Any]]) -> Iterator[list[tuple[int, ...]]]:
    "Give per place the shapes of the tensors there."
    for values in zip(*samples):
        yield [tuple(v.shape) for v in values if isinstance(v, Tensor)]


def _files_of(ds: Datasets, place: int, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    "Find a file of each size."
    headers, wanted = Headers(), list(sizes)
    tl = ds.tls[place]
    for i in range(len(tl)):
        found = headers.of(source_of(tl, i))
        if found is not None and found.size in wanted:
            wanted.remove(found.size)
            yield f"{row_name(tl, i)}"
        if not wanted:
            return


def watch(
    dl: TfmdDL,  # over fastai `Datasets`; changed in place
    split: str,  # which set it is, for messages
    names: Sequence[str],  # of inputs and targets
) -> None:
    "Let a loader name the rows of what it cannot read or batch."
    if type(dl.dataset) is Datasets:
        dl.dataset = WatchedDatasets(tls=dl.dataset.tls, n_inp=dl.dataset.n_inp)
        scaler = scaler_of(dl)
        dl.dataset.split = split
        dl.dataset.points = scaler is not None and scaler.do_scale and not scaler.y_first
    if not any(isinstance(f, SameSizes) for f in dl.before_batch.fs):
        dl.before_batch.add(SameSizes(dl.dataset, names))


def scaler_of(
    dl: TfmdDL,  # a loader
) -> PointScaler | None:
    "Find the transform that brings points to -1 … 1."
    return next((f for f in dl.after_item.fs if isinstance(f, PointScaler)), None)
