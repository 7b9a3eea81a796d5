"""fastai's `BBoxBlock` and `BBoxLblBlock`: two blocks, of which a learner here makes one target beside any others."""

from collections.abc import Iterator
from typing import Any

import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL, TfmdLists
from fastai.data.transforms import MultiCategorize, OneHotEncode
from fastai.vision.core import BBoxLabeler, TensorBBox, TensorMultiCategory
from fastai.vision.data import bb_pad
from fasttransform import Pipeline, Transform
from fasttransform.transform import ItemTransform

from fastai_heads.data.detection_block import BoxesInImage, JoinBoxes, MakeBoxes, pad_detections, tidy
from fastai_heads.data.missing import is_missing
from fastai_heads.data.partial import Partial
from fastai_heads.errors import HeadsError

__all__ = ["HALF_PAIRS", "ReadPair", "join_boxes", "pad_boxes"]

HALF_PAIRS = {
    "boxes": " A `BBoxBlock` has its `BBoxLblBlock` right behind it; for one box without a label there is `BoxBlock`.",
    "box_labels": " These are labels without boxes: a `BBoxLblBlock` stands right behind its `BBoxBlock`.",
}
"What is missing of two blocks of which one stands alone, by the kind of its target."
_NA = "#na#"  # the class that fastai adds to stand for no box


def pad_boxes(
    samples: list,  # tuples in which boxes (n, 4) and their labels (n,) stand side by side, each n its own
) -> list:  # the same with one n, at least 1; added rows are boxes of nothing with label 0, fastai's '#na#'
    """Pad boxes, as a `before_batch`, for fastai's `BBoxBlock` and `BBoxLblBlock` beside any other blocks. Its own
    `bb_pad` takes an image, boxes and labels and nothing else: `block.dataloaders(items, before_batch=pad_boxes)`.

    `multihead_learner` makes one target of the two blocks, with one `DetectionHead`. Boxes are clipped to the image,
    and what has no area left goes."""
    samples = [list(sample) for sample in samples]
    for place in _pairs(samples[0]):
        kept = [tidy(sample[place], sample[place + 1]) for sample in samples]
        most = max(1, *(len(labels) for _, labels in kept))
        for sample, (boxes, labels) in zip(samples, kept):
            more = most - len(labels)
            sample[place] = TensorBBox(torch.cat([boxes.clamp(-1, 1), boxes.new_zeros(more, 4)]))
            sample[place + 1] = TensorMultiCategory(torch.cat([labels.long(), labels.new_zeros(more).long()]))
    return [tuple(sample) for sample in samples]


def _pairs(sample: list[Any]) -> list[int]:
    "Find where boxes stand before their labels."
    return [i for i, o in enumerate(sample[:-1]) if isinstance(o, TensorBBox) and _is_labels(sample[i + 1])]


def _is_labels(o: Any) -> bool:
    return isinstance(o, TensorMultiCategory) and (not o.is_floating_point() or not len(o))  # none: fastai makes floats


class ReadPair(ItemTransform):
    "What the getters of the two blocks give for an item, as one: (boxes, labels)."

    def __init__(
        self,
        boxes: Pipeline,  # the getter of `BBoxBlock`
        labels: Pipeline,  # the getter of `BBoxLblBlock`
    ):
        super().__init__()
        self.boxes, self.labels = boxes, labels

    def encodes(self, o):
        boxes, labels = self.boxes(o), self.labels(o)
        if is_missing(boxes) or is_missing(labels):
            raise HeadsError(
                "`BBoxBlock` and `BBoxLblBlock` need boxes and labels of every image, empty lists where there is no "
                f"object, found {boxes!r} and {labels!r}. `PartialBlock(DetectionBlock())` takes missing ones."
            )
        return boxes, labels


def join_boxes(
    dls: DataLoaders,  # over fastai `Datasets`
) -> DataLoaders:  # one target where `BBoxBlock` and `BBoxLblBlock` stood; `dls` itself where there is no such pair
    """Give the data with boxes and their labels as one target, as `DetectionBlock` makes it. Bad boxes are
    `HeadsError`s."""
    train = getattr(dls, "train_ds", None)
    if not isinstance(train, Datasets) or not len(train):
        return dls
    places = list(_block_pairs(train))
    if not places:
        return dls
    loaders, pairs = list(dls.loaders), [_join_lists([dl.dataset for dl in dls.loaders], i) for i in places]
    loaders = [_join(dl, places, [p[n] for p in pairs]) for n, dl in enumerate(loaders)]
    return DataLoaders(*loaders, path=dls.path, device=dls.device)


def _block_pairs(ds: Datasets) -> Iterator[int]:
    "Find the places of `BBoxBlock`s that have their `BBoxLblBlock` behind them."
    for i, (boxes, labels) in enumerate(zip(ds.tls, ds.tls[1:])):
        if i < ds.n_inp or not (_makes_boxes(boxes) and _makes_labels(labels)):
            continue
        if any(isinstance(f, Partial) for tl in (boxes, labels) for f in tl.tfms.fs):
            raise HeadsError(
                "`PartialBlock` takes no `BBoxBlock` or `BBoxLblBlock`, of which one would be missing without the "
                "other: `PartialBlock(DetectionBlock())` takes images whose boxes are not known."
            )
        yield i


def _makes_labels(tl: TfmdLists) -> bool:
    kinds = [type(f) for f in _all(tl)]
    return MultiCategorize in kinds and OneHotEncode not in kinds


def _all(tl: TfmdLists) -> Iterator[Transform]:
    for f in tl.tfms.fs:
        yield from f.tfms.fs if isinstance(f, Partial) else [f]


def _makes_boxes(tl: TfmdLists) -> bool:
    return any(f.name == TensorBBox.create.__qualname__ for f in _all(tl))


def _is_padding(f: Transform) -> bool:
    return f.name in (pad_boxes.__name__, bb_pad.__name__)


def _join_lists(sets: list[Datasets], place: int) -> list[TfmdLists]:
    "For every part of the data the two blocks' items as one target, all checked."
    boxes, labels = sets[0].tls[place], sets[0].tls[place + 1]
    maker = next(f for f in labels.tfms.fs if isinstance(f, MultiCategorize))
    read = ReadPair(Pipeline(list(boxes.tfms.fs[:-1])), Pipeline([f for f in labels.tfms.fs if f is not maker]))
    make = MakeBoxes([v for v in maker.vocab if v != _NA])
    found: list[TfmdLists] = []
    for ds in sets:
        make.setup(TfmdLists(ds.tls[place].items, [read], do_setup=False))
        found.append(_list_like(ds.tls[place], [read, make]))
    return found


def _list_like(tl: TfmdLists, tfms: list[Transform]) -> TfmdLists:
    "List the same items through other transforms."
    types = [tl.types[0], *[tuple] * len(tfms)] if tl.types else None
    return TfmdLists(tl.items, tfms, do_setup=False, split_idx=tl.split_idx, types=types)


def _join(dl: TfmdDL, places: list[int], pairs: list[TfmdLists]) -> TfmdDL:
    "Make a loader whose items hold each pair as one target."
    ds, at = dl.dataset, dict(zip(places, pairs))
    second = {place + 1 for place in places}
    tls = [at.get(i, tl) for i, tl in enumerate(ds.tls) if i not in second]
    in_image = [BoxesInImage(next(f for f in tl.tfms.fs if isinstance(f, MakeBoxes))) for tl in pairs]
    found = dl.new(
        Datasets(tls=tls, n_inp=ds.n_inp),
        after_item=[*(f for f in dl.after_item.fs if not isinstance(f, BBoxLabeler)), *in_image],
        before_batch=[pad_detections, *(f for f in dl.before_batch.fs if not _is_padding(f))],
        after_batch=[*dl.after_batch.fs, JoinBoxes()],
    )
    found._one_pass()
    found._n_inp = ds.n_inp
    return found
