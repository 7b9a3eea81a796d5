"""What a head says of an item, in the user's terms. No module that this one imports imports torch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastai_heads.errors import HeadsError
from fastai_heads.export.images import View

__all__ = ["Detections", "Label", "Mask", "Tags", "as_plain", "decode"]


class Label(NamedTuple):
    "One class of a vocabulary."

    label: Any  # the class
    probability: float


class Tags(NamedTuple):
    "The labels that apply, and the probability of each label of the vocabulary."

    labels: tuple[Any, ...]
    probabilities: dict[Any, float]


class Detections(NamedTuple):
    "Boxes after suppression, the best first."

    boxes: np.ndarray  # (n, 4) x1, y1, x2, y2 in pixels of the image as given
    labels: tuple[Any, ...]
    scores: tuple[float, ...]


class Mask(NamedTuple):
    "A code for every pixel of the image as given."

    codes: np.ndarray  # (H, W), or (n_out, H, W) of 0 and 1; 255 where a transform cut the pixel off
    vocab: tuple[Any, ...] | None  # the meaning of each code


UNSEEN = 255  # the code of a pixel that no network has seen


def decode(
    head: Mapping[str, Any],  # as a manifest describes it
    value: np.ndarray,  # (…) of one item: the activated output; of a mask its codes
    view: View | None,  # where the network's pixels lie in the image as given; None: there is no image
) -> Any:
    "Say what a head says of one item."
    return _DECODERS.get(head["answer"], lambda _head, value, _view: value)(head, value, view)


def _label(head: Mapping[str, Any], value: np.ndarray, _view: View | None) -> Label:
    code = int(value.argmax(-1))
    return Label(_name(head, code), float(value[code]))


def _name(head: Mapping[str, Any], code: int) -> Any:
    return code if head["vocab"] is None else head["vocab"][code]


def _tags(head: Mapping[str, Any], value: np.ndarray, _view: View | None) -> Tags:
    names = [_name(head, i) for i in range(len(value))]
    there = value > np.float32(head["threshold"])
    return Tags(tuple(n for n, yes in zip(names, there) if yes), dict(zip(names, map(float, value))))


def _numbers(_head: Mapping[str, Any], value: np.ndarray, _view: View | None) -> float | tuple[float, ...]:
    numbers = tuple(map(float, value.reshape(-1)))
    return numbers[0] if len(numbers) == 1 else numbers


def _points(_head: Mapping[str, Any], value: np.ndarray, view: View | None) -> np.ndarray:
    return value if view is None else view.pixels(value)


def _box(_head: Mapping[str, Any], value: np.ndarray, view: View | None) -> np.ndarray:
    return value.reshape(4) if view is None else view.pixels(value.reshape(4))


def _mask(head: Mapping[str, Any], value: np.ndarray, view: View | None) -> Mask:
    codes = value if view is None else view.mask(value, UNSEEN)
    return Mask(codes, None if head["vocab"] is None else tuple(head["vocab"]))


def _detections(head: Mapping[str, Any], value: np.ndarray, view: View | None) -> Detections:
    kept = value[(value[:, 4] >= 0) & (value[:, 5] >= np.float32(head["decode_score"]))]
    boxes = kept[:, :4] if view is None else view.pixels(kept[:, :4])
    return Detections(boxes, tuple(_name(head, int(c)) for c in kept[:, 4]), tuple(map(float, kept[:, 5])))


_DECODERS = {
    "label": _label,
    "tags": _tags,
    "numbers": _numbers,
    "points": _points,
    "box": _box,
    "mask": _mask,
    "detections": _detections,
}
"What an answer is called in a manifest, and what makes it. Any other is given as it is."

ANSWERS = (*_DECODERS, "plain")


def as_plain(
    answer: Any,  # of a head, or a `HeadTuple` of them
) -> Any:
    "Turn an answer into what JSON can hold: dicts, lists, numbers and texts."
    if hasattr(answer, "asdict"):
        return {name: as_plain(value) for name, value in answer.asdict().items()}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        return {name: as_plain(value) for name, value in answer._asdict().items()}
    if isinstance(answer, Mapping):
        return {str(name): as_plain(value) for name, value in answer.items()}
    if isinstance(answer, np.ndarray | np.generic):
        return answer.tolist()
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return [as_plain(value) for value in answer]
    if answer is None or isinstance(answer, str | int | float | bool):
        return answer
    raise HeadsError(f"an answer of type {type(answer).__name__} cannot be said in JSON.")
