"""Boxes with labels as one target: any number per image, none too, beside any other targets."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fastai.data.block import TransformBlock
from fastai.data.core import TfmdLists
from fastai.data.transforms import CategoryMap
from fastai.torch_core import TensorBase
from fastai.vision.core import PointScaler, TensorBBox
from fasttransform.transform import ItemTransform
from matplotlib.axes import Axes
from torch import Tensor

from fastai_heads.data.box_items import parse_boxes, row_name
from fastai_heads.data.kinds import TellsKind
from fastai_heads.data.missing import IGNORE_CATEGORY
from fastai_heads.data.places import check_in_image, clip_boxes, image_size
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.values import check_value

__all__ = [
    "NO_BOX",
    "DetectionBlock",
    "JoinBoxes",
    "LabeledBoxes",
    "MakeBoxes",
    "TensorDetections",
    "pad_detections",
    "same_count",
    "tidy",
    "to_pixels",
]

NO_BOX = -1  # the label of a row that is padding


class TensorDetections(TensorBase):
    """Boxes with labels in a batch, (B, N, 5) or, predicted, (B, N, 6): x1, y1, x2, y2 from −1 to 1 over the image, the
    class's index (−1: padding, no box), the score. An item whose boxes are not known is NaN throughout."""


class BoxLabels(TensorBase):
    "The classes of an item's boxes, (N,), until they are joined to the boxes."


class LabeledBoxes(TensorBBox):
    "What a detection decodes to: boxes (N, 4) in pixels, with `labels` (a class each) and, if predicted, `scores`."

    labels: tuple[Any, ...] = ()
    scores: tuple[float, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        "What stands at each box: its class, and its score if it is predicted."
        if self.scores is None:
            return tuple(map(str, self.labels))
        return tuple(f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores))

    def show(self, ctx: Axes | None = None, **kwargs: Any) -> Axes | None:
        "fastai's frames, and the texts."
        ctx = super().show(ctx=ctx, **kwargs)
        for (x, y, _, _), text in zip(self.view(-1, 4).tolist(), self.texts):
            ctx.text(x, y, text, color="white", fontsize=8, va="bottom")
        return ctx


def _classes(vocab: Any) -> list[Any]:
    "List the classes of a vocabulary. Refuse what is no list of them, and one that is there twice."
    found = [] if isinstance(vocab, str) or not isinstance(vocab, Iterable) else list(vocab)
    fits = bool(found) and len(set(map(str, found))) == len(found)
    check_value("vocab", "DetectionBlock", vocab, fits, "a list of classes, each once, such as ['cat', 'dog']")
    return found


class MakeBoxes(TellsKind, ItemTransform):
    """(boxes, labels) to a pair of tensors: `TensorBBox` (n, 4) in pixels and classes (n,); a row of padding where
    there is no box. Knows the vocabulary, and of every item with boxes which row it came from, for messages."""

    def __init__(
        self,
        vocab: Iterable[Any] | None = None,  # the classes; None: those of the training set, sorted
        clip: bool = False,  # what stands out of the image is cut off; False: refused
    ):
        super().__init__()
        self.clip = clip
        self.vocab = None if vocab is None else CategoryMap(_classes(vocab), sort=False)
        self._rows: dict[tuple, str] = {}

    def target_kind(self) -> tuple[str, int | None, tuple | None]:
        return "detection", len(self.vocab), tuple(self.vocab)

    def __getstate__(self) -> dict[str, Any]:
        "Without the rows: an exported learner has other data."
        return {**self.__dict__, "_rows": {}}

    def setup(
        self,
        items: TfmdLists | None = None,  # the items, read by the getter
        train_setup: bool = False,  # from the training items alone
    ) -> None:
        "Check every item and learn the vocabulary. Not `setups`, whose caller swallows every `AttributeError`."
        if items is None:
            return
        pairs = [self._check(items, i) for i in range(len(items))]
        if self.vocab is None:
            train = items.splits[0] if getattr(items, "splits", None) and train_setup else range(len(pairs))
            self.vocab = CategoryMap([label for i in train for label in pairs[i][1]], sort=True)
        for i, (_, labels) in enumerate(pairs):
            unknown = [label for label in labels if label not in self.vocab.o2i]
            if unknown and items.split_idx is None and self._in_training(items, i):
                raise HeadsError(f"{row_name(items, i)}: {self._unknown(unknown[0])}")

    @staticmethod
    def _in_training(items: TfmdLists, i: int) -> bool:
        splits = getattr(items, "splits", None)
        return not splits or isinstance(splits[0], slice) or i in splits[0]  # a slice: nobody has split them

    def _check(self, items: TfmdLists, i: int) -> tuple[list, list]:
        name = row_name(items, i)
        try:
            boxes, labels = parse_boxes(items[i])
        except HeadsError as error:
            raise error.within(name) from None
        self._rows.setdefault(_key(boxes), name)
        return boxes, labels

    def _unknown(self, label: Any) -> str:
        known = list(self.vocab)
        return f"label {label!r} of a box is not in the vocabulary {known}.{did_you_mean(str(label), map(str, known))}"

    def row(
        self,
        boxes: Tensor,  # (n, 4) in pixels, as encoded
    ) -> str:
        "Name the row that has these boxes, for messages. Where it is not known, the name is ''."
        name = self._rows.get(_key(boxes.tolist()), "")
        return f"{name}: " if name else ""

    def encodes(self, o):
        boxes, labels = parse_boxes(o)
        unknown = [label for label in labels if label not in self.vocab.o2i]
        if unknown:
            raise HeadsError(self._unknown(unknown[0]))
        codes = [self.vocab.o2i[label] for label in labels] or [NO_BOX]
        pixels = torch.tensor(boxes or [[0.0] * 4], dtype=torch.float32)
        found = TensorBBox(pixels)
        found.clips = self.clip
        return found, BoxLabels(torch.tensor(codes, dtype=torch.int64))

    def decodes(self, o: TensorDetections):
        plain = o.as_subclass(Tensor)
        kept = plain[plain[:, 4] >= 0]
        boxes = LabeledBoxes(kept[:, :4])
        boxes.labels = tuple(self.vocab[int(code)] for code in kept[:, 4])
        boxes.scores = tuple(kept[:, 5].tolist()) if plain.shape[1] > 5 else None
        return boxes


def _key(boxes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    "Boxes as what a dictionary can find, in the precision of the tensors."
    return tuple(round(float(v), 3) for box in boxes for v in box)


class BoxesInImage(ItemTransform):
    "First of the item transforms: refuses or clips boxes outside their image. Last to decode: detections in pixels."

    order = -1

    def __init__(
        self,
        make: MakeBoxes,  # of the same block
    ):
        super().__init__()
        self.make = make

    def encodes(self, x: list):
        return [self._within(o, image_size(x, "DetectionBlock")) if is_pair(o) else o for o in x]

    def _within(self, pair: tuple[Tensor, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        boxes, labels = pair
        if getattr(boxes, "clips", False):
            return TensorBBox(clip_boxes(boxes.as_subclass(Tensor), size)), labels
        pixels = boxes.as_subclass(Tensor)[labels.as_subclass(Tensor) >= 0]
        check_in_image(pixels, size, "DetectionBlock", self.make.row(pixels))
        return pair

    def decodes(self, x: list):
        return [_in_pixels(o, image_size(x, "DetectionBlock")) if isinstance(o, TensorDetections) else o for o in x]


def is_pair(
    o: Any,  # an element of an item or of a batch
) -> bool:
    "Tell whether it is boxes and their labels that are not joined yet."
    return isinstance(o, tuple | list) and len(o) == 2 and isinstance(o[1], BoxLabels)


def _in_pixels(o: TensorDetections, size: tuple[int, int]) -> TensorDetections:
    plain = o.as_subclass(Tensor).clone()
    plain[:, :4] = to_pixels(plain[:, :4], size[1], size[0])
    return TensorDetections(plain)


def to_pixels(
    boxes: Tensor,  # (…, 4) from −1 to 1
    height: int,  # of the image
    width: int,  # of the image
) -> Tensor:  # (…, 4) in pixels
    "Boxes in the unit of the image."
    return (boxes + 1) * boxes.new_tensor([width, height, width, height]) / 2


def pad_detections(samples: list):
    "Pad every item of a `DetectionBlock` to as many rows, one at least. Clipped boxes without area go."
    samples = [tuple(_tidy(o) if is_pair(o) else o for o in sample) for sample in samples]
    for place, o in enumerate(samples[0]):
        if is_pair(o):
            most = max(1, *(len(sample[place][1]) for sample in samples))
            samples = [(*s[:place], _pad(s[place], most), *s[place + 1 :]) for s in samples]
    return samples


def _tidy(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    boxes, labels = tidy(*pair)
    return TensorBBox(boxes), BoxLabels(labels)


def tidy(
    boxes: Tensor,  # (n, 4) of one item, from −1 to 1
    labels: Tensor,  # (n,)
) -> tuple[Tensor, Tensor]:  # plain tensors, as many rows or fewer
    """Give the boxes that are left after the item's transforms, their corners in order (fastai's flip of an item swaps
    them)."""
    boxes, labels = boxes.as_subclass(Tensor).view(-1, 4), labels.as_subclass(Tensor)
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    kept = (labels != NO_BOX) & ~_without_area(boxes.clamp(-1, 1))
    return boxes[kept], labels[kept]


def _without_area(boxes: Tensor) -> Tensor:
    "Boxes of nothing; a missing one (NaN) is not."
    return ((boxes[..., 2:] - boxes[..., :2]) <= 0).any(-1)


def _pad(pair: tuple[Tensor, Tensor], most: int) -> tuple[Tensor, Tensor]:
    boxes, labels = (o.as_subclass(Tensor) for o in pair)
    more = most - len(labels)
    boxes = torch.cat([boxes, boxes.new_zeros(more, 4)])
    return TensorBBox(boxes), BoxLabels(torch.cat([labels, labels.new_full((more,), NO_BOX)]))


class JoinBoxes(ItemTransform):
    "Last of the batch transforms: boxes, moved with their images, are clipped and joined to their labels."

    order = 200

    def encodes(self, x: list):
        return [_join(*o) if is_pair(o) else o for o in x]


def _join(boxes: Tensor, labels: Tensor) -> TensorDetections:
    "(B, N, 4) and (B, N) to (B, N, 5)."
    boxes, labels = boxes.as_subclass(Tensor).clamp(-1, 1), labels.as_subclass(Tensor)
    none = (labels == NO_BOX) | _without_area(boxes)
    boxes = boxes.masked_fill(none[..., None], 0)
    found = torch.cat([boxes, labels.masked_fill(none, NO_BOX)[..., None].to(boxes.dtype)], -1)
    missing = (labels == IGNORE_CATEGORY).any(1)
    return TensorDetections(found.masked_fill(missing[:, None, None], torch.nan))


def same_count(
    batches: Sequence[Tensor],  # (B, N, 5) each, N from batch to batch another
) -> list[Tensor]:  # the same with one N
    "Batches of boxes padded, so that they can be joined."
    most = max(b.shape[1] for b in batches)
    return [_with_rows(b, most) for b in batches]


def _with_rows(batch: Tensor, most: int) -> Tensor:
    blank = batch.new_zeros(len(batch), most - batch.shape[1], batch.shape[2])
    blank[..., 4] = NO_BOX
    missing = batch.isnan().flatten(1).all(1)
    return torch.cat([batch, blank.masked_fill(missing[:, None, None], torch.nan)], 1)


def DetectionBlock(
    vocab: Iterable[Any] | None = None,  # the classes, in the order of their indices; None: of the training set, sorted
    clip: bool = False,  # cut off what stands out of the image; False: such a box is refused
) -> TransformBlock:
    """Make a `TransformBlock` for boxes with labels: one target, beside any others, its item `(boxes, labels)`.

    Boxes are x1, y1, x2, y2 in pixels of the image as it is on disk, any number of them, none too. They move with
    the image and are clipped to it; what augmentation moves out is no box any more. A batch holds them as
    `TensorDetections` (B, N, 5), padded. Boxes without area, out of order, without labels, or outside the image are
    refused by a `HeadsError` that names the row. `clip=True` cuts off what stands out of the image."""
    if not isinstance(clip, bool):
        raise HeadsError(f"`clip` of DetectionBlock is True or False, found {clip!r}.")
    make = MakeBoxes(vocab, clip)
    return TransformBlock(
        type_tfms=make,
        item_tfms=[BoxesInImage(make), PointScaler()],
        batch_tfms=[JoinBoxes()],
        dls_kwargs={"before_batch": pad_detections},
    )
