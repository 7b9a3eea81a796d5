"""The names that a head may have, and a name for a column."""

import keyword
import re
from collections.abc import Collection
from unicodedata import normalize

from torch import nn

from fastai_heads.errors import HeadsError

__all__ = ["check_name", "usable_name"]

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
    raise HeadsError(
        f"`{what}`: the name {name!r} {why}: heads are reached as `preds.<name>`. Did you mean {usable_name(name)!r}?"
    )
