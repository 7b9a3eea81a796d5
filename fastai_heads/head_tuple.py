"""A tuple with a value per head, which also answers by name."""

import sys
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from fastai_heads.errors import HeadsError, unknown

__all__ = ["HeadTuple"]

_SHOWN = 16  # most numbers of a tensor that are written out


class HeadTuple(tuple):
    """One value per head, in head order: `preds[0]`, `preds.digit` and `preds['digit']` are the same.

    The answers that a user gets are of this class. Inside fastai's loop predictions are plain tuples. Where fastai
    makes a new tuple by `type(x)([…])`, as in `to_np(preds)`, that is a plain tuple, too."""

    names: tuple[str, ...]  # the heads, in order

    def __new__(cls, values: Iterable[Any], names: Iterable[str] | None = None) -> "HeadTuple | tuple":
        if names is None:
            return tuple(values)
        self = super().__new__(cls, values)
        self.names = tuple(names)
        if len(self.names) != len(self):
            raise HeadsError(f"`names` has {len(self.names)} names for {len(self)} values.")
        return self

    def __getnewargs__(self) -> tuple[tuple, tuple[str, ...]]:
        return tuple(self), self.names

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(self._place(key) if isinstance(key, str) else key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "names":
            raise AttributeError(name)
        try:
            return super().__getitem__(self._place(name))
        except HeadsError as error:
            torch = sys.modules.get("torch")  # answers without it have no tensors
            of_tensors = torch is not None and hasattr(torch.Tensor, name) and self.names
            hint = f" Every head has its own value: `.{self.names[0]}.{name}`." if of_tensors else ""
            raise AttributeError(f"{error}{hint}") from None

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise unknown("head", name, self.names)
        return self.names.index(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def asdict(self) -> dict[str, Any]:
        "Return the same values as a dictionary."
        return dict(zip(self.names, self))

    def pairs(self) -> Iterator[tuple[str, Any]]:
        "Iterate over (name, value), in head order."
        return zip(self.names, self)

    def _repr_html_(self) -> str:
        "Make a table for Jupyter. It holds each value; of a large tensor it holds the shape."
        rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(_say(v))}</td></tr>" for n, v in self.pairs())
        return f"<table>{rows}</table>"

    def __repr__(self) -> str:
        return "(" + ", ".join(f"{name}={value!r}" for name, value in self.pairs()) + ")"


def _say(value: Any) -> str:
    "Write a value as text. Of a large array it says only type and shape."
    if getattr(value, "shape", None) is None or not hasattr(value, "tolist"):
        return str(value)
    kind = f"{type(value).__name__} {' × '.join(map(str, value.shape)) or 'of one number'}, {value.dtype}"
    return f"{_round(value.tolist())} ({kind})" if value.nbytes // value.itemsize <= _SHOWN else kind


def _round(numbers: Any) -> str:
    if isinstance(numbers, list):
        return f"[{', '.join(map(_round, numbers))}]"
    return f"{numbers:.4g}" if isinstance(numbers, float) else str(numbers)
