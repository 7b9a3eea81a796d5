"""The names that a head may have, and a name for a column."""

import keyword
import re
from collections.abc import Collection, Iterable
from unicodedata import normalize

from torch import nn

from fastai_heads.errors import HeadsError, unknown

__all__ = ["check_name", "names_in", "usable_name"]

# names that already mean something in `preds.<name>`, `learn.heads.<name>` and a module
_TAKEN = frozenset(dir(tuple)) | frozenset(dir(dict)) | frozenset(dir(nn.Module()))
_TAKEN |= {"names", "asdict", "pairs", "deciding", "_place", "_by_name"}


def usable_name(
    raw: object,  # a column, or any text
    others: Collection[str] = (),  # names in use already
) -> str:  # an identifier that hides nothing
    "Make a head's name of a column's: 'eye colour' → 'eye_colour', 'count' → 'count_', a second 'age' → 'age_2'."
    text = re.sub(r"\W+", "_", normalize("NFKC", str(raw)))  # as Python reads names; 'cm²' becomes 'cm2'
    name = "".join(c for c in text if f"_{c}".isidentifier()).strip("_") or "target"
    name = name if name.isidentifier() else f"_{name}"
    if name in _TAKEN or keyword.iskeyword(name):
        name += "_"
    numbered = (f"{name}_{n}" for n in range(2, len(others) + 3))
    return name if name not in others else next(n for n in numbered if n not in others)


def check_name(
    name: object,  # the user's name for a head
    what: str = "heads",  # the parameter that holds it
) -> str:  # the name
    "Refuse a name that is no identifier, and a name that is taken: heads are reached by attribute."
    if isinstance(name, str) and name.isidentifier() and name not in _TAKEN and not keyword.iskeyword(name):
        return name
    why = "is not an identifier" if not (isinstance(name, str) and name.isidentifier()) else "is taken"
    near = f" Did you mean {usable_name(name)!r}?" if name is None or isinstance(name, str | int | float) else ""
    raise HeadsError(f"`{what}`: the name {_in_short(name)} {why}: heads are reached as `preds.<name>`.{near}")


def names_in(
    value: object,  # what the user wrote: names, or one name
    what: str,  # the parameter
    options: Collection[str],  # the names that there are
    kind: str,  # what they are names of, as in 'head'
) -> tuple[str, ...]:
    "Return the names in a list; one name is a list of one. Refuse what is no name of these."
    if not isinstance(value, str | Iterable):
        raise HeadsError(f"`{what}` is a list of names among {', '.join(options)}, found {_in_short(value)}.")
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        if name not in options:
            raise HeadsError(f"`{what}`: {unknown(kind, name, options)}")
    return names


def _in_short(value: object) -> str:
    "Write a value for a message, or the type of what is large."
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__
