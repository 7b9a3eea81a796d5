"""A digest of data and transforms: equal where they give equal items."""

import hashlib
from collections.abc import Mapping, Set
from functools import partial
from inspect import signature
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.core import TfmdDL
from fastai.vision.augment import RandTransform
from PIL import Image
from torch import Tensor, nn

from fastai_heads.data.labels import opens_image, source_of

__all__ = ["Digest", "digest_loader"]

_PLAIN = (str, bytes, int, float, complex, bool, type(None))


class Digest:
    "Gathers values into one digest. Files count by name, time and size; functions by their code; objects by state."

    def __init__(self):
        self._hash, self._seen = hashlib.blake2b(digest_size=16), {}

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
            self._array(value.detach().as_subclass(Tensor).cpu().contiguous().flatten().view(_BYTES).numpy(), value.shape)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._array(np.ascontiguousarray(value), value.shape)
        elif isinstance(value, Image.Image):
            self._array(np.asarray(value), value.size)
        elif self._first_time(value):
            self._whole(value)
        return self

    def add_file(self, path: Path) -> None:
        "Add a file's name, and if it is there its time and size."
        self._note(str(path))
        if path.is_file():
            found = path.stat()
            self._note(f"{found.st_mtime_ns} {found.st_size}")

    def _note(self, text: str) -> None:
        self._hash.update(text.encode("utf-8", "surrogatepass") + b"\0")

    def _array(self, array: np.ndarray, shape: Any) -> None:
        self._note(f"{array.dtype} {tuple(shape)}")
        self._hash.update(array.tobytes())

    def _first_time(self, value: Any) -> bool:
        "Tell whether an object is new. One that was met already counts by its turn, which also ends circles."
        if id(value) in self._seen:
            self._note(f"#{self._seen[id(value)][0]}")
            return False
        self._seen[id(value)] = (len(self._seen), value)  # kept, so that no other object gets its id
        return True

    def _whole(self, value: Any) -> None:
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            self.add(list(value.columns) if isinstance(value, pd.DataFrame) else str(value.name))
            self.add(value.to_numpy(dtype=object).tolist())
        elif isinstance(value, Mapping):
            for key, found in value.items():
                self.add(key).add(found)
        elif isinstance(value, Set):
            self.add(sorted(map(repr, value)))
        elif isinstance(value, FunctionType):
            self.add(value.__code__).add(value.__defaults__).add([c.cell_contents for c in value.__closure__ or ()])
        elif isinstance(value, CodeType):
            self.add(value.co_code).add(value.co_names).add(value.co_consts)
        elif isinstance(value, MethodType):
            self.add(value.__func__).add(value.__self__)
        elif isinstance(value, partial):
            self.add(value.func).add(value.args).add(value.keywords)
        elif isinstance(value, type | BuiltinFunctionType):
            self._note(f"{value.__module__}.{value.__qualname__}")
            self.add([f for f in vars(value).values() if isinstance(f, FunctionType)] if _is_own(value) else None)
        elif isinstance(value, nn.Module):
            self.add(str(value)).add(value.state_dict())
        elif hasattr(value, "__iter__") and hasattr(value, "__len__"):
            for found in value:
                self.add(found)
        else:
            self.add(type(value)).add(_state(value))


_BYTES = __import__("torch").uint8


def _is_own(value: Any) -> bool:
    "Tell whether a class is a user's, whose code may change while the libraries stay."
    return isinstance(value, type) and value.__module__.partition(".")[0] in ("__main__", "__mp_main__")


def _state(value: Any) -> dict[str, Any]:
    "Give what an object was made with. What a random transform drew last is not of it."
    state = dict(getattr(value, "__dict__", {}))
    if isinstance(value, RandTransform):
        made_with = {name for cls in type(value).__mro__ for name in signature(cls.__init__).parameters}
        state = {name: found for name, found in state.items() if name in made_with}
    return state


def digest_loader(
    digest: Digest,
    dl: TfmdDL,  # over fastai `Datasets`
) -> None:
    "Add a loader's items, with the files that they name, and its transforms."
    for place, tl in enumerate(dl.dataset.tls):
        digest.add(tl.items).add(list(tl.tfms.fs))
        if place < dl.dataset.n_inp or opens_image(tl):
            for i in range(len(tl)):
                source = source_of(tl, i)
                if isinstance(source, str | Path):
                    digest.add_file(Path(source))
    for pipeline in (dl.after_item, dl.before_batch, dl.after_batch):
        digest.add(list(pipeline.fs))
