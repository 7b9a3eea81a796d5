"""What a manifest says, taken by name and checked. No module that this one imports imports torch."""

from collections.abc import Mapping
from typing import Any

from fastai_heads.errors import HeadsError

__all__ = ["take"]

_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    list: "a list",
    dict: "a dict",
}


def take(
    said: Any,  # a dict of a manifest
    name: str,  # of what is taken
    kind: type,  # what it is to be: `str`, `int`, `float`, `bool`, `list` or `dict`
    where: str = "manifest",  # for messages
    most: int | None = None,  # the largest whole number
    **default: Any,  # `default=`: what stands for one that is not there
) -> Any:
    "Take a value of a manifest. Refuses one of another type, and one that is missing or too large."
    if not isinstance(said, Mapping):
        raise HeadsError(f"{where} is a dict, found {type(said).__name__}.")
    if name not in said and "default" in default:
        return default["default"]
    value = said.get(name)
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        found = "nothing" if name not in said else f"{type(value).__name__}: {str(value)[:80]!r}"
        raise HeadsError(f"{where}: `{name}` is {_KINDS[kind]}, found {found}.")
    if most is not None and not 0 <= value <= most:
        raise HeadsError(f"{where}: `{name}` is from 0 to {most}, found {value}.")
    return value
