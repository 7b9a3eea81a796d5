"""Every refusal of a user's input, and how a wrong name is answered."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

__all__ = [
    "MISFITS",
    "FileError",
    "FixedError",
    "HeadsError",
    "HeadsWarning",
    "did_you_mean",
    "first_line",
    "refuse_change",
    "unknown",
    "writing",
]

MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ZeroDivisionError)
"What the code of a network raises for an input that it cannot take, or where it misses something."


_START = re.compile(r"""(?:`heads\[(?P<q>['"])(?P<head>.*?)(?P=q)\]`: )?(?:`(?:learn\.)?(?P<parameter>\w+))?""")
"How a message begins that is about a parameter: `` `tap=7`: … ``, `` `heads['age']`: `tap=7`: … ``."


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"Where an object lies in memory, as its `repr` has it. It tells a reader nothing."


class HeadsError(ValueError):
    """Input that cannot be used: which parameter, what was expected, what was found, the nearest right answer.

    A message begins with the parameter or the method in backticks. `parameter` and `head` are read from there, unless
    they are given. Whoever catches the error asks its attributes, and never looks into its text."""

    def __init__(
        self,
        message: str = "",
        *,
        parameter: str | None = None,  # what the user passed, a field of a spec, or the method that was called
        head: str | None = None,  # the head that it is about
        tap: object = None,  # the tap that it is about, as it was asked for
    ):
        message = _ADDRESS.sub("", message)
        super().__init__(message)
        start = _START.match(message)
        self.head = head or start["head"]
        self.parameter = parameter or start["parameter"] or ("heads" if start["head"] else None)
        self.tap = tap

    def within(
        self,
        place: str,  # as in "`heads['age']`"
        hint: str = "",  # follows the message
    ) -> "HeadsError":
        "Make the same error, whose message says first where it was found."
        return HeadsError(f"{place}: {self}{hint}", parameter=self.parameter, head=self.head, tap=self.tap)


class FixedError(HeadsError, FrozenInstanceError):
    "A field of a record that is fixed once it is made; dataclasses' own error for it, too."


class FileError(HeadsError, OSError):
    "A file that cannot be written, with its path; the system's own error for it, too."


class HeadsWarning(UserWarning):
    "Something the user should know that does not stop the work."


@contextmanager
def writing(
    path: Path,  # of the file or folder
    kinds: tuple[type[Exception], ...] = (OSError, RuntimeError),  # that mean it; torch's writer raises the second
) -> Iterator[None]:
    "Name the file in whatever is raised while it is written: a full disk, a folder that is gone or may not be written."
    try:
        yield
    except HeadsError:
        raise
    except kinds as error:
        raise FileError(f"{path} cannot be written: {first_line(error)}.") from error


def refuse_change(
    record: object,  # a frozen dataclass
    name: str,  # of the attribute that is set
    value: object,  # what it is set to
) -> NoReturn:
    "Refuse to set a field of what is fixed once it is made, with the way to have it, or a name that is no field."
    kind, fields = type(record).__name__, [n for n, f in record.__dataclass_fields__.items() if f.init]
    if name not in fields:
        raise FixedError(f"`{name}` is no field of {kind}.{did_you_mean(name, fields)}")
    raise FixedError(
        f"`{name}` of {kind} is fixed once it is made: make another, `{kind}({name}={value!r}, …)`, or of this one "
        f"`dataclasses.replace(…, {name}={value!r})`.",
    )


def unknown(
    what: str,  # the kind of thing, as in 'head'
    name: object,  # what the user wrote
    options: Iterable[str],  # what there is
) -> HeadsError:  # to be raised
    "Make the error for a name that is not there: what there is, and the closest match."
    options = list(options)
    message = f"there is no {what} {name!r}. There is {', '.join(options)}.{did_you_mean(name, options)}"
    return HeadsError(message, head=str(name) if what == "head" else None)


def did_you_mean(
    name: object,  # what the user wrote
    options: Iterable[str],  # what would have been right
    n: int = 3,  # how many matches at most
) -> str:  # ' Did you mean …?' or, where nothing is near, ''
    "Name the closest right answers, as the end of an error's sentence."
    options = [str(o) for o in options]
    found = get_close_matches(str(name), options, n=n, cutoff=0.5)
    if not found:  # in other letters, as 'uw' for 'UW'
        by_fold = {option.casefold(): option for option in options}
        found = [by_fold[fold] for fold in get_close_matches(str(name).casefold(), by_fold, n=n, cutoff=0.5)]
    return f" Did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


def first_line(
    error: Exception,
) -> str:
    "Tell what an error says, in short and without a full stop."
    text = str(error).strip().split("\n")[0].strip()
    return (text or type(error).__name__).rstrip(".")
