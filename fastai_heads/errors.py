"""Every refusal of a user's input, and how a wrong name is answered."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["HeadsError", "HeadsWarning", "did_you_mean", "unknown"]


class HeadsError(ValueError):
    "Input that cannot be used: which parameter, what was expected, what was found, the nearest right answer."


class HeadsWarning(UserWarning):
    "Something the user should know that does not stop the work."


def unknown(
    what: str,  # the kind of thing, as in 'head'
    name: object,  # what the user wrote
    options: Iterable[str],  # what there is
) -> HeadsError:  # to be raised
    "The error for a name that is not there: what there is, and the closest match."
    options = list(options)
    return HeadsError(f"there is no {what} {name!r}. There is {', '.join(options)}.{did_you_mean(name, options)}")


def did_you_mean(
    name: object,  # what the user wrote
    options: Iterable[str],  # what would have been right
    n: int = 3,  # how many matches at most
) -> str:  # ' Did you mean …?' or, where nothing is near, ''
    "The closest right answers, as the end of an error's sentence."
    options = [str(o) for o in options]
    found = get_close_matches(str(name), options, n=n, cutoff=0.5)
    if not found:  # in other letters, as 'uw' for 'UW'
        by_fold = {option.casefold(): option for option in options}
        found = [by_fold[fold] for fold in get_close_matches(str(name).casefold(), by_fold, n=n, cutoff=0.5)]
    return f" Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""
