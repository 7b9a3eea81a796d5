"""The Open Inference Protocol, version 2, over a `Predictor`: what Triton, KServe and others speak too.

Source: the protocol's specification, https://github.com/kserve/open-inference-protocol (REST), and Triton's extension
"classification". Besides its tensors an input may come as BYTES: an image as its file in base64, a text, a row as a
text of JSON; an empty one is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from fastai_heads.errors import did_you_mean
from fastai_heads.export.predictor import Predictor, ReadItem
from fastai_heads.serve.body import parse_json
from fastai_heads.serve.limits import Refused
from fastai_heads.serve.reading import ItemReader
from fastai_heads.serve.tensors import (
    DTYPES,
    Shapes,
    list_inputs,
    list_outputs,
    take_part,
    write_classes,
    write_head,
)

__all__ = ["InferRequest", "Protocol", "describe_server"]

VERSION = "1"  # of the model, as there is one


@dataclass(frozen=True)
class InferRequest:
    "What a client asked."

    items: list[ReadItem]
    heads: tuple[str, ...]  # those that the outputs need
    outputs: dict[str, int]  # names of tensors → of how many classes the names are given; 0: numbers
    id: str | None


def describe_server() -> dict[str, Any]:
    "Write the server's metadata."
    return {"name": "fastai_heads", "version": version("fastai_heads"), "extensions": ["classification"]}


class Protocol:
    "Reads the protocol's requests, and writes its answers."

    def __init__(
        self,
        predictor: Predictor,
        name: str,  # of the model
        heads: tuple[str, ...],  # those that are served
        reader: ItemReader,
    ):
        self.predictor, self.name, self.reader = predictor, name, reader
        self.inputs = list_inputs(predictor)
        self.outputs = list_outputs(predictor, heads)
        self.head_of = {tensor: head for head, tensors in self.outputs.items() for tensor in tensors}

    def describe(self) -> dict[str, Any]:
        "Write the model's metadata."
        outputs = [tensor for tensors in self.outputs.values() for tensor in _describe(tensors)]
        tensors = {"inputs": _describe(self.inputs), "outputs": outputs}
        return {"name": self.name, "versions": [VERSION], "platform": "fastai_heads", **tensors}

    def read(
        self,
        content: bytes,  # of the request
    ) -> InferRequest:
        "Read a request. `outputs` chooses tensors, and with them the heads that are computed."
        body = parse_json(content, self.reader.limits)
        if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
            raise Refused(400, "`inputs` is a list of tensors")
        tensors = self._read_tensors(body["inputs"])
        sizes = {len(values) for values in tensors.values()}
        if len(sizes) != 1:
            raise Refused(400, "`inputs` holds tensors of different numbers of items" if sizes else "`inputs` is empty")
        self.reader.check_count(min(sizes))
        outputs = self._read_outputs(body.get("outputs"))
        heads = tuple(head for head, names in self.outputs.items() if names.keys() & outputs.keys())
        items = [self._item(tensors, i) for i in range(min(sizes))]
        told = body.get("id")
        return InferRequest(items, heads, outputs, told if isinstance(told, str) else None)

    def _read_tensors(self, given: list[Any]) -> dict[str, Any]:
        "Read the inputs by name: arrays, and lists of texts."
        tensors: dict[str, Any] = {}
        for tensor in given:
            if not isinstance(tensor, dict) or not {"name", "shape", "datatype", "data"} <= tensor.keys():
                raise Refused(400, "an input is an object with name, shape, datatype and data")
            name, known = tensor["name"], [*self.inputs, *self.predictor.readers]
            if not isinstance(name, str) or name not in known:
                raise Refused(400, f"there is no input {str(name)[:80]!r}.{did_you_mean(str(name)[:80], known)}")
            if name in tensors:
                raise Refused(400, f"input {name!r} is there twice")
            if not _is_shape(tensor["shape"]):
                raise Refused(400, f"`shape` of {name!r} is a list of whole numbers of at least 0")
            if tensor["datatype"] == "BYTES" and name in self.predictor.readers:
                tensors[name] = _read_texts(name, tensor["shape"], tensor["data"])
            else:
                tensors[name] = self._read_array(name, tensor)
        return tensors

    def _read_array(self, name: str, tensor: Mapping[str, Any]) -> np.ndarray:
        "Read numbers of the datatype and shape that the network reads."
        datatype, wanted = self.inputs.get(name, ("BYTES", (-1,)))
        shape = tuple(tensor["shape"])
        if tensor["datatype"] != datatype:
            raise Refused(400, f"`datatype` of {name!r} is {datatype}, found {str(tensor['datatype'])[:80]!r}")
        if len(shape) != len(wanted) or any(w not in (-1, n) for n, w in zip(shape, wanted)):
            raise Refused(400, f"`shape` of {name!r} is {list(wanted)}, found {list(shape)}")
        if not isinstance(tensor["data"], list):
            raise Refused(400, f"`data` of {name!r} is a list")
        try:
            array = np.asarray(tensor["data"])
            exact = array.astype(DTYPES[datatype])
            same = array.dtype.kind in "biuf" and (datatype.startswith("FP") or np.array_equal(array, exact))
        except (ValueError, TypeError, OverflowError, RuntimeWarning):
            same = False
        if not same:
            raise Refused(400, f"`data` of {name!r} holds values that are no {datatype}")
        if array.size != math.prod(shape):
            raise Refused(400, f"`data` of {name!r} has {array.size} values, and its shape {math.prod(shape)}")
        return exact.reshape(shape)

    def _item(self, tensors: Mapping[str, Any], i: int) -> ReadItem:
        "Put together what one item has of the tensors."
        return self.reader.join(self._part(name, tensors, i) for name in self.predictor.readers)

    def _part(self, name: str, tensors: Mapping[str, Any], i: int) -> tuple[Any, Any]:
        reader, given = self.predictor.readers[name], tensors.get(name)
        arrays = [array for array in reader.arrays if array in self.inputs]
        if not isinstance(given, list) and tensors.keys() & set(arrays):
            missing = [array for array in arrays if array not in tensors]
            if missing:
                raise Refused(400, f"input {missing[0]!r} is not there, and {reader.name!r} needs it")
            return take_part(reader, tensors, i, self.reader.limits)
        value = given[i] if isinstance(given, list) and given[i] else None
        if value is not None and reader.said["kind"] == "row":
            value = parse_json(value.encode(errors="replace"), self.reader.limits)
        return self.reader.part(reader, value, f"item {i}")

    def _read_outputs(self, outputs: Any) -> dict[str, int]:
        "Read which tensors are asked for; None: all."
        if outputs is None or outputs == []:
            return dict.fromkeys(self.head_of, 0)
        if not isinstance(outputs, list) or not all(isinstance(o, dict) for o in outputs):
            raise Refused(400, "`outputs` is a list of objects with a name")
        found: dict[str, int] = {}
        for output in outputs:
            name, parameters = output.get("name"), output.get("parameters") or {}
            if not isinstance(name, str) or name not in self.head_of:
                near = did_you_mean(str(name)[:80], list(self.head_of))
                raise Refused(400, f"there is no output {str(name)[:80]!r}.{near}")
            k = parameters.get("classification", 0) if isinstance(parameters, dict) else None
            named = self._answer(name)["answer"] in ("label", "tags") and name == self.head_of[name]
            if type(k) is not int or k < 0 or (k and not named):
                raise Refused(400, f"`classification` of output {name!r} is a whole number, of a class or of tags")
            found[name] = k
        return found

    def _answer(self, tensor: str) -> Mapping[str, Any]:
        return self.predictor.manifest["answers"][self.head_of[tensor]]

    def write(
        self,
        asked: InferRequest,
        found: Sequence[Mapping[str, np.ndarray]],  # of each item: head → what the network says
    ) -> dict[str, Any]:
        "Write the answer: the tensors that were asked for, in that order."
        tensors: dict[str, np.ndarray] = {}
        for head in asked.heads:
            if len({one[head].shape for one in found}) > 1:
                raise Refused(422, f"head {head!r} answers images of several sizes: send those of one size together")
            answer = self.predictor.manifest["answers"][head]["answer"]
            tensors |= write_head(head, answer, np.stack([one[head] for one in found]))
        outputs = [self._write_tensor(name, tensors[name], k) for name, k in asked.outputs.items()]
        body = {"model_name": self.name, "model_version": VERSION, "outputs": outputs}
        return body | ({"id": asked.id} if asked.id is not None else {})

    def _write_tensor(self, name: str, array: np.ndarray, k: int) -> dict[str, Any]:
        datatype = self.outputs[self.head_of[name]][name][0]
        if k:
            vocab = self._answer(name)["vocab"] or range(array.shape[-1])
            array, datatype = write_classes(array, vocab, k), "BYTES"
        return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}


def _describe(tensors: Shapes) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": list(shape)} for name, (kind, shape) in tensors.items()]


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)


def _read_texts(name: str, shape: list[int], data: Any) -> list[str]:
    if not isinstance(data, list) or not all(isinstance(value, str) for value in data):
        raise Refused(400, f"`data` of {name!r} is a list of texts")
    if shape != [len(data)] and shape != [len(data), 1]:
        raise Refused(400, f"`data` of {name!r} has {len(data)} texts, and its shape is {shape}")
    return data
