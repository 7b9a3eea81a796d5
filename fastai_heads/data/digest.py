"""A digest of data, transforms and networks: equal only where they give equal items and taps."""

import copyreg
import dis
import hashlib
import os
from collections.abc import Iterable, Mapping, Set
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, GenericAlias, MethodType, ModuleType, UnionType
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from fastai.data.core import Datasets, TfmdDL, TfmdLists
from fastai.data.load import DataLoader
from fastai.vision.augment import RandTransform
from PIL import Image
from plum import Function
from torch import Tensor, nn

from fastai_heads.data.labels import read_labels, source_of
from fastai_heads.data.plain import PlainItems

__all__ = ["Digest"]

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LIBRARIES = ("fastai", "fastcore", "fasttransform", "torch", "torchvision", "timm", "numpy", "pandas", "PIL", "plum")
"Packages whose code changes with their version alone."


class Digest:
    """Gathers values into one digest. Files count by name, time and size; functions by their code and the globals that
    they name; objects by their class and state. What cannot be told apart is taken for new each time."""

    def __init__(self):
        self._hash, self._seen = hashlib.blake2b(digest_size=16), {}
        for name in (*_LIBRARIES, "fastai_heads"):
            self._note(_version(name))

    def __str__(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> "Digest":
        "Add a value of any kind."
        self._note(type(value).__qualname__)
        if isinstance(value, _PLAIN):
            self._note(repr(value))
        elif isinstance(value, Path):
            self.add_file(value)
        elif isinstance(value, Tensor):
            plain = value.detach().as_subclass(Tensor).cpu().contiguous()
            self._array(plain.flatten().view(torch.uint8).numpy(), (plain.dtype, plain.shape))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._array(np.ascontiguousarray(value), value.shape)
        elif isinstance(value, Image.Image):
            self._array(np.asarray(value), value.mode)
        elif self._first_time(value):
            self._parts(value)
        return self

    def add_file(self, path: str | Path) -> None:
        "Add a file's name, and if it is there its time and size."
        self._note(str(path))
        if os.path.isfile(path):
            found = os.stat(path)
            self._note(f"{found.st_mtime_ns} {found.st_size}")

    def add_loader(
        self,
        dl: TfmdDL,  # over fastai `Datasets`
    ) -> "Digest":
        "Add a loader's items, the files that they name, and its transforms."
        for place, tl in enumerate(dl.dataset.tls):
            for value in _sources(dl.dataset, place):
                if isinstance(value, str):
                    self.add_file(value)
                else:
                    self.add(value)
            self.add(list(tl.tfms.fs))
        for pipeline in (dl.after_item, dl.before_batch, dl.after_batch):
            self.add(list(pipeline.fs))
        batches = [dl.bs, dl.shuffle, dl.drop_last, getattr(dl, "whole", None)]
        return self.add([dl.dataset.n_inp, dl.dataset.split_idx, *batches])

    def add_network(
        self,
        network: nn.Module,
    ) -> "Digest":
        "Add a network's weights and buffers, its structure and attributes, and the code of what in it is the user's."
        self.add(str(network)).add(dict(network.named_parameters())).add(dict(network.named_buffers()))
        for module in network.modules():
            own = {n: v for n, v in vars(module).items() if not n.startswith("_") and n != "training"}
            self.add(type(module)).add(own)
        return self

    def _note(self, text: str) -> None:
        self._hash.update(text.encode("utf-8", "surrogatepass") + b"\0")

    def _array(self, array: np.ndarray, form: Any) -> None:
        self._note(f"{array.dtype} {form}")
        self._hash.update(array.tobytes())

    def _first_time(self, value: Any) -> bool:
        "Tell whether an object is new. One that was met already counts by its turn, which also ends circles."
        if id(value) in self._seen:
            self._note(f"#{self._seen[id(value)][0]}")
            return False
        self._seen[id(value)] = (len(self._seen), value)  # kept, so that no other object gets its id
        return True

    def _parts(self, value: Any) -> None:
        "Add what a value is made of."
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            self.add(list(value.columns) if isinstance(value, pd.DataFrame) else str(value.name))
            self.add(value.to_numpy(dtype=object).tolist())
        elif isinstance(value, Mapping):
            for key, found in value.items():
                self.add(key).add(found)
        elif isinstance(value, Set):
            self.add(sorted(map(repr, value)))
        elif isinstance(value, FunctionType | CodeType | MethodType | BuiltinFunctionType | partial | type):
            self._code(value)
        elif isinstance(value, Function):
            self.add(sorted((m.implementation for m in value.methods), key=lambda f: f.__qualname__))
        elif isinstance(value, ModuleType | GenericAlias | UnionType):
            self._note(repr(value))
        elif isinstance(value, nn.Module):
            self.add_network(value)
        elif isinstance(value, TfmdLists):  # whose elements are items, read
            self.add(value.items).add(list(value.tfms.fs))
        elif isinstance(value, Datasets):
            self.add(list(value.tls))
        elif isinstance(value, DataLoader):
            self.add(value.dataset)
        elif hasattr(value, "__iter__") and hasattr(value, "__len__"):
            for found in value:
                self.add(found)
        else:
            self.add(type(value)).add(_state(value))

    def _code(self, value: Any) -> None:
        "Add a function or a class. The code of a library changes with its version alone."
        if isinstance(value, partial):
            self.add(value.func).add(value.args).add(value.keywords)
        elif isinstance(value, MethodType):
            self.add(value.__func__).add(value.__self__)
        elif isinstance(value, CodeType):
            self.add(value.co_code).add(value.co_names).add(value.co_consts)
        else:
            self._note(f"{value.__module__}.{value.__qualname__}")
            if (value.__module__ or "").partition(".")[0] in (*_LIBRARIES, "fastai_heads", "builtins"):
                return
            if isinstance(value, type):
                self.add([f for f in vars(value).values() if isinstance(f, FunctionType)])
            elif isinstance(value, FunctionType):
                named = {n: value.__globals__[n] for n in value.__code__.co_names if n in value.__globals__}
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
                self.add(value.__code__).add(value.__defaults__).add(cells).add(named)


def _sources(dataset: Datasets, place: int) -> Iterable[Any]:
    "Give what each item of an input or a target is made of. The items of a plain `Dataset` are read, once."
    tl = dataset.tls[place]
    if isinstance(tl.items, PlainItems):
        return (tl.items[i] for i in range(len(tl) if place == 0 else 0))
    values = read_labels(dataset, place, "", "").values
    return values if len(values) else (source_of(tl, i) for i in range(len(tl)))


def _version(name: str) -> str:
    try:
        return f"{name} {version('pillow' if name == 'PIL' else name)}"
    except PackageNotFoundError:
        return name


def _set_by(method: Any) -> set[str]:
    "List the attributes that a method sets."
    if not isinstance(method, FunctionType):
        return set()
    return {step.argval for step in dis.get_instructions(method) if step.opname == "STORE_ATTR"}


def _state(value: Any) -> Any:
    "Give what an object was made with. What a random transform drew last is not of it."
    if isinstance(value, RandTransform):
        drawn = {name for cls in type(value).__mro__ for name in _set_by(vars(cls).get("before_call"))}
        return {name: found for name, found in vars(value).items() if name not in drawn}
    if hasattr(value, "__dict__"):
        return vars(value)
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return value.__reduce_ex__(4) if reduce is None else reduce(value)
    except TypeError:  # it cannot be told from another one
        return uuid4().hex
