"""The Open Inference Protocol, version 2, over a `Predictor`: what Triton, KServe and others speak too.

Source: the protocol's specification, https://github.com/kserve/open-inference-protocol (REST)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastai_heads.errors import did_you_mean
from fastai_heads.export.predictor import Predictor
from fastai_heads.serve.limits import Limits, Refused
from fastai_heads.serve.outputs import head_outputs, write_outputs
from fastai_heads.serve.reading import choose_heads, list_columns, list_inputs, read_value

__all__ = ["InferRequest", "describe_model", "describe_server", "read_infer", "write_infer"]

_DTYPES = {
    "BOOL": np.bool_,
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP32": np.float32,
    "FP64": np.float64,
}


@dataclasses.dataclass(frozen=True)
class InferRequest:
    "What a client asked."

    items: list[Any]  # as a `Predictor` takes them
    heads: tuple[str, ...]  # those that the outputs need
    outputs: tuple[str, ...]  # names of tensors
    id: str | None


def describe_server() -> dict[str, Any]:
    "Write the server's metadata."
    from fastai_heads import __version__

    return {"name": "fastai_heads", "version": __version__, "extensions": []}


def describe_model(
    predictor: Predictor,
    name: str,
    heads: Sequence[str],  # those that are served
) -> dict[str, Any]:
    "Write the model's metadata: a tensor of each input or column, and those of every head."
    inputs = [{"name": n, "datatype": t, "shape": list(shape)} for n, (t, shape) in _inputs(predictor).items()]
    outputs = [
        {"name": n, "datatype": t, "shape": list(shape)}
        for head in heads
        for n, (t, shape) in head_outputs(head, _answers(predictor)[head]).items()
    ]
    return {"name": name, "versions": ["1"], "platform": "fastai_heads", "inputs": inputs, "outputs": outputs}


def _inputs(predictor: Predictor) -> dict[str, tuple[str, tuple[int, ...]]]:
    """List the tensors that a request holds: an image as a file in base64 (or as UINT8 pixels, (N, height, width, 3)), a
    text as a string, each column of a row."""
    found = {}
    for said in predictor.manifest["inputs"]:
        if said["kind"] == "row":
            prefix = f"{said['name']}." if len(predictor.inputs) > 1 else ""
            columns = list_columns(said)
            found |= {f"{prefix}{c}": ("FP64" if number else "BYTES", (-1,)) for c, number in columns.items()}
        else:
            found[said["name"]] = ("BYTES", (-1,))
    return found


def _answers(predictor: Predictor) -> dict[str, Mapping[str, Any]]:
    "Give what a manifest says of each head's answer."
    return predictor.manifest["answers"]


def read_infer(
    body: Any,  # of the request
    predictor: Predictor,
    heads: Sequence[str],  # those that are served
    limits: Limits,
) -> InferRequest:
    "Read a request. `outputs` chooses tensors, and with them the heads that are computed."
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
        raise Refused(400, "`inputs` is a list of tensors")
    columns: dict[str, list[Any]] = {}
    known = _inputs(predictor)
    for tensor in body["inputs"]:
        name, values = _read_tensor(tensor, known, limits)
        if name in columns:
            raise Refused(400, f"input {name!r} is there twice")
        columns[name] = values
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise Refused(400, "`inputs` holds tensors of different numbers of items" if lengths else "`inputs` is empty")
    (n,) = lengths
    if not 0 < n <= limits.items:
        raise Refused(413 if n else 400, f"a request holds 1 to {limits.items} items, found {n}")
    kinds = list_inputs(predictor)
    items = [_make_item({k: v[i] for k, v in columns.items()}, kinds, limits, f"item {i}") for i in range(n)]
    outputs = _read_outputs(body.get("outputs"), predictor, heads)
    wanted = [head for head in heads if any(out in outputs for out in head_outputs(head, _answers(predictor)[head]))]
    told = body.get("id")
    return InferRequest(items, choose_heads(wanted, heads), outputs, told if isinstance(told, str) else None)


def _read_tensor(tensor: Any, known: Mapping[str, Any], limits: Limits) -> tuple[str, list[Any]]:
    "Read one input tensor: its name and a value for each item."
    if not isinstance(tensor, dict) or not {"name", "shape", "datatype", "data"} <= tensor.keys():
        raise Refused(400, "an input is an object with name, shape, datatype and data")
    name, kind, shape, data = (tensor[key] for key in ("name", "datatype", "shape", "data"))
    if not isinstance(name, str) or name not in known:
        raise Refused(400, f"there is no input {str(name)[:80]!r}.{did_you_mean(str(name)[:80], list(known))}")
    if not _is_shape(shape):
        raise Refused(400, f"`shape` of {name!r} is a list of whole numbers of at least 0")
    if kind == "BYTES":
        return name, _read_strings(name, shape, data)
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise Refused(400, f"`datatype` of {name!r} is BYTES or one of {', '.join(_DTYPES)}")
    if math.prod(shape) > 3 * limits.pixels:
        raise Refused(413, f"input {name!r} has {math.prod(shape):,} numbers; at most {3 * limits.pixels:,} are taken")
    try:
        array = np.asarray(data, dtype=_DTYPES[kind])
    except (ValueError, TypeError, OverflowError):
        raise Refused(400, f"`data` of {name!r} holds values that are no {kind}") from None
    if array.size != math.prod(shape):
        raise Refused(400, f"`data` of {name!r} has {array.size} values, and its shape {math.prod(shape)}")
    array = array.reshape(shape)
    return name, list(array) if array.ndim > 2 else [v.item() if v.size == 1 else v for v in array]


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, list) and 0 < len(shape) <= 8
    return whole and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in shape)


def _read_strings(name: str, shape: list[int], data: Any) -> list[str]:
    flat = data if isinstance(data, list) else None
    while flat and all(isinstance(one, list) for one in flat):
        flat = [value for one in flat for value in one]
    if flat is None or not all(isinstance(value, str) for value in flat):
        raise Refused(400, f"`data` of {name!r} is a list of strings")
    if len(flat) != math.prod(shape) or shape[0] != len(flat):
        raise Refused(
            400, f"`data` of {name!r} has {len(flat)} strings, and its shape {math.prod(shape)} for {shape[0]} items"
        )
    return flat


def _make_item(values: Mapping[str, Any], kinds: Mapping[str, str], limits: Limits, where: str) -> Any:
    "Put the tensors of one item together as a `Predictor` takes it."
    item: dict[str, Any] = {}
    for name, value in values.items():
        source, _, column = name.partition(".") if len(kinds) > 1 else ("", "", name)
        source = source or next(iter(kinds))
        if kinds[source] == "row":
            item.setdefault(source, {})[column] = value
        elif isinstance(value, np.ndarray):
            item[source] = value
        else:
            item[source] = read_value(value, kinds[source], limits, f"{name} of {where}")
    return item if len(kinds) > 1 else next(iter(item.values()))


def _read_outputs(outputs: Any, predictor: Predictor, heads: Sequence[str]) -> tuple[str, ...]:
    "Read which tensors are asked for; None: all. A head's name asks for its first tensor."
    known = [name for head in heads for name in head_outputs(head, _answers(predictor)[head])]
    if outputs is None or outputs == []:
        return tuple(known)
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise Refused(400, "`outputs` is a list of objects with a name")
    for output in outputs:
        if output["name"] not in known:
            near = did_you_mean(output["name"][:80], known)
            raise Refused(400, f"there is no output {output['name'][:80]!r}.{near}")
    return tuple(output["name"] for output in outputs)


def write_infer(
    asked: InferRequest,
    answers: Sequence[Any],  # a `HeadTuple` an item
    predictor: Predictor,
    name: str,
) -> dict[str, Any]:
    "Write the answer: the tensors that were asked for, in that order."
    tensors = {}
    for head in asked.heads:
        tensors |= write_outputs(head, _answers(predictor)[head], [answer[head] for answer in answers])
    body = {"model_name": name, "model_version": "1", "outputs": [tensors[out] for out in asked.outputs]}
    return body | ({"id": asked.id} if asked.id is not None else {})
