"""The tensors of a network as the Open Inference Protocol has them: those of its ONNX file, by the same names.

A client of this service is so a client of Triton over `export_triton`'s files. There a tensor has a size besides the
batch, and so it has here: the index of a class is (B, 1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastai_heads.export.example import draw_batch
from fastai_heads.export.images import View
from fastai_heads.export.inputs import InputReader
from fastai_heads.export.onnx_session import output_names
from fastai_heads.export.predictor import Predictor
from fastai_heads.serve.limits import Limits, Refused

__all__ = ["DTYPES", "Shapes", "list_inputs", "list_outputs", "take_part", "write_classes", "write_head"]

DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"Name of a tensor → its datatype and shape; −1 where it depends on the request."


def list_inputs(
    predictor: Predictor,
) -> Shapes:
    "List the tensors that the network reads."
    return {name: shape for reader in predictor.readers.values() for name, shape in _tensors_of(reader).items()}


def _tensors_of(reader: InputReader) -> Shapes:
    said = reader.said
    if said["kind"] == "row":
        sizes = len(said["codes"]), len(said["conts"])
        return {n: (t, (-1, size)) for n, t, size in zip(reader.arrays, ("INT64", "FP32"), sizes)}
    if said["kind"] == "text":
        return {reader.name: ("INT64", (-1, -1))}
    size = said["shape"][:2] if said["resized"] else (-1, -1)
    return {reader.name: ("UINT8", (-1, *size, said["shape"][2]))}


def take_part(
    reader: InputReader,
    tensors: Mapping[str, np.ndarray],  # of a request, by name
    i: int,  # the item
    limits: Limits,
) -> tuple[Any, View | None]:  # what stands in a batch, and where the pixels of an image lie
    "Take what one item has of an input. Refuses values that the network has no row for."
    arrays = [tensors[name][i] for name in _tensors_of(reader)]
    if reader.said["kind"] == "image":
        height, width = arrays[0].shape[:2]
        most = limits.pixels if reader.said["resized"] else min(limits.pixels, limits.unresized)
        if not 0 < height * width <= most:
            raise Refused(413, f"{reader.name!r} has {width} × {height} pixels; 1 to {most:,} are taken")
        return arrays[0], View((width, height), (width, height))
    if reader.said["kind"] == "row":
        classes = [len(reader.said["classes"][column]) for column in reader.said["codes"]]
        if not all(0 <= code <= n for code, n in zip(arrays[0], classes)) or not np.isfinite(arrays[1]).all():
            raise Refused(422, f"{reader.name!r}: codes are from 0 to {classes}, and numbers finite")
        return tuple(arrays), None
    most = reader.tokenizer[1]
    if not 0 < len(arrays[0]) <= limits.text or not ((arrays[0] >= 0) & (arrays[0] < most)).all():
        raise Refused(422, f"{reader.name!r}: a text has 1 to {limits.text:,} ids, from 0 to {most - 1}")
    return arrays[0], None


def list_outputs(
    predictor: Predictor,
    heads: tuple[str, ...],  # those that are served
) -> dict[str, Shapes]:  # head → its tensors
    "Try the network on two items, and list the tensors of each head."
    found = predictor.network.run(draw_batch(predictor.manifest["inputs"], 2), heads)
    resized = all(said.get("resized", True) for said in predictor.manifest["inputs"])
    outputs: dict[str, Shapes] = {}
    for head in heads:
        answer = predictor.manifest["answers"][head]["answer"]
        varies = not resized and answer in ("mask", "plain")
        outputs[head] = {
            name: (_NAMES[array.dtype], (-1, *(-1 if varies else n for n in array.shape[1:])))
            for name, array in write_head(head, answer, found[head]).items()
        }
    return outputs


def write_head(
    head: str,  # its name
    answer: str,  # what its answer is called
    value: np.ndarray,  # (B, …) what the network says
) -> dict[str, np.ndarray]:  # name → tensor
    "Give the tensors of a head."
    names = output_names(head, answer)
    if answer == "label":
        tensors = (value, value.argmax(-1))
    elif answer == "detections":
        tensors = (value[..., :4], value[..., 5], value[..., 4].astype(np.int64))
    else:
        tensors = (value,)
    return {name: one[:, None] if one.ndim == 1 else one for name, one in zip(names, tensors)}


def write_classes(
    value: np.ndarray,  # (B, n) probabilities
    vocab: Sequence[Any],
    k: int,  # how many, the best first
) -> np.ndarray:  # (B, k) of texts, 'probability:code:label', as Triton's classification extension writes them
    "Name the best classes."
    best = np.argsort(-value, axis=-1, kind="stable")[:, :k]
    rows = [[f"{row[code]:f}:{code}:{vocab[code]}" for code in codes] for row, codes in zip(value, best)]
    return np.array(rows, dtype=object).reshape(best.shape)
