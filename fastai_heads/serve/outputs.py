"""The tensors of each kind of answer, as the Open Inference Protocol names and shapes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["head_outputs", "write_outputs"]

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"Name of a tensor → its datatype and shape; −1 where it depends on the request."


def head_outputs(
    name: str,  # of a head
    head: Mapping[str, Any],  # as a manifest describes it
) -> Shapes:
    "Name the tensors of a head. The first bears the head's own name."
    vocab = head.get("vocab") or ()
    return {
        "label": lambda: {name: ("FP32", (-1,)), f"{name}_label": ("BYTES", (-1,))},
        "tags": lambda: {name: ("FP32", (-1, len(vocab) or -1)), f"{name}_labels": ("BYTES", (-1,))},
        "mask": lambda: {name: ("UINT8", (-1, -1, -1))},
        "detections": lambda: {
            name: ("FP32", (-1, -1, 4)),
            f"{name}_scores": ("FP32", (-1, -1)),
            f"{name}_labels": ("BYTES", (-1, -1)),
            f"{name}_count": ("INT64", (-1,)),
        },
    }.get(head["answer"], lambda: {name: ("FP32", (-1, -1))})()


def write_outputs(
    name: str,  # of a head
    head: Mapping[str, Any],  # as a manifest describes it
    answers: Sequence[Any],  # of the head, one an item
) -> dict[str, dict[str, Any]]:  # name → tensor
    "Write the tensors of a head. Of items with fewer detections the rest is zeros, and of empty labels."
    arrays = _WRITERS.get(head["answer"], _write_numbers)(name, answers)
    kinds = head_outputs(name, head)
    return {
        one: {"name": one, "datatype": kinds[one][0], "shape": list(array.shape), "data": array.reshape(-1).tolist()}
        for one, array in arrays.items()
    }


def _write_label(name: str, answers: Sequence[Any]) -> dict[str, np.ndarray]:
    labels = np.array([str(a.label) for a in answers], dtype=object)
    return {name: np.array([a.probability for a in answers], np.float32), f"{name}_label": labels}


def _write_tags(name: str, answers: Sequence[Any]) -> dict[str, np.ndarray]:
    labels = np.array([", ".join(map(str, a.labels)) for a in answers], dtype=object)
    return {name: np.array([list(a.probabilities.values()) for a in answers], np.float32), f"{name}_labels": labels}


def _write_numbers(name: str, answers: Sequence[Any]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(a, np.float32).reshape(-1) for a in answers])}


def _write_mask(name: str, answers: Sequence[Any]) -> dict[str, np.ndarray]:
    "Stack masks; those of smaller images are filled up with 255, which is no code."
    shape = np.max([a.codes.shape for a in answers], axis=0)
    out = np.full((len(answers), *shape), 255, np.uint8)
    for mask, answer in zip(out, answers):
        mask[tuple(slice(n) for n in answer.codes.shape)] = answer.codes
    return {name: out}


def _write_detections(name: str, answers: Sequence[Any]) -> dict[str, np.ndarray]:
    counts = [len(a.boxes) for a in answers]
    most = max(counts)
    boxes, scores = np.zeros((len(counts), most, 4), np.float32), np.zeros((len(counts), most), np.float32)
    labels = np.full((len(counts), most), "", dtype=object)
    for i, (answer, n) in enumerate(zip(answers, counts)):
        boxes[i, :n], scores[i, :n], labels[i, :n] = answer.boxes, answer.scores, [str(one) for one in answer.labels]
    return {name: boxes, f"{name}_scores": scores, f"{name}_labels": labels, f"{name}_count": np.array(counts)}


_WRITERS: dict[str, Callable[[str, Sequence[Any]], dict[str, np.ndarray]]] = {
    "label": _write_label,
    "tags": _write_tags,
    "mask": _write_mask,
    "detections": _write_detections,
}
"What an answer is called in a manifest, and what writes it. Any other is numbers."
