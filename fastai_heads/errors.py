"""Every refusal of a user's input, and how a wrong name is answered."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["HeadsError", "HeadsWarning", "did_you_mean"]


class HeadsError(ValueError):
    "A user's input that cannot be used: names the parameter, what was expected, what was found, the nearest right answer."


class HeadsWarning(UserWarning):
    "Something the user should know that does not stop the work."


def did_you_mean(
    name: object,  # what the user wrote
    options: Iterable[str],  # what would have been right
    n: int = 3,  # how many matches at most
) -> str:  # ' Did you mean …?' or, where nothing is near, ''
    "The closest right answers, as the end of an error's sentence."
    found = get_close_matches(str(name), [str(o) for o in options], n=n, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""
