"""The inputs of a bundle: from what a user holds to the arrays of a batch.

No module that this one imports imports torch, save for a text that fastai's own tokenizer splits."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.export.images import View, open_image, see_image

__all__ = ["InputReader", "make_reader"]

_LARGEST = float(np.finfo(np.float64).max)


class InputReader:
    "One input, as a manifest describes it: reads one item, and joins items to the arrays of a batch."

    arrays: tuple[str, ...]  # what the arrays are called

    def __init__(self, said: Mapping[str, Any]):
        self.said, self.name, self.partial = said, said["name"], said.get("partial", False)

    def read(self, given: Any) -> tuple[Any, View | None]:
        "Read an item: what stands in a batch for it, and of an image where its pixels lie in the one as given."
        raise NotImplementedError

    def join(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        "Join items to arrays, by name."
        raise NotImplementedError

    def take(self, row: Any) -> Any:
        "Take this input out of a row that holds it under its own name, or under its column's."
        for key in (self.name, *self.said.get("columns", ())):
            if key in row:
                return row[key]
        if self.partial:
            return None
        keys = [self.name, *self.said.get("columns", ())]
        there = list(map(str, row.keys()))
        raise HeadsError(
            f"input {self.name!r}: the row has no {' or '.join(map(repr, dict.fromkeys(keys)))}."
            f"{did_you_mean(self.name, there)} It has {', '.join(there)}."
        )

    def refuse_missing(self) -> HeadsError:
        "Make the error for an input that is missing and may not be."
        return HeadsError(f"input {self.name!r} is missing, and no item of the training set lacked it.")


class ImageReader(InputReader):
    "An image: (B, H, W, C) of uint8. A missing one is told by `<name>_missing`, (B,) of bool."

    def __init__(self, said: Mapping[str, Any]):
        super().__init__(said)
        self.arrays = (self.name, f"{self.name}_missing") if self.partial else (self.name,)

    def read(self, given: Any) -> tuple[Any, View | None]:
        "Open the image, and do what the item transforms do to it."
        if _is_missing(given):
            if not self.partial:
                raise self.refuse_missing()
            return None, None
        return see_image(open_image(given, self.said["mode"], self.name), self.said["steps"])

    def join(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        "Stack images of one size."
        there = [item for item in items if item is not None]
        sizes = {item.shape for item in there}
        if len(sizes) > 1:
            found = " and ".join(f"{w}×{h}" for h, w, _ in sorted(sizes)[:2])
            raise HeadsError(
                f"input {self.name!r}: images of one batch have one size, found {found}; the training data was not "
                "resized. Pass images of one size, or one at a time."
            )
        blank = np.zeros(next(iter(sizes), tuple(self.said["shape"])), dtype=np.uint8)
        stacked = np.stack([blank if item is None else item for item in items])
        found = {self.name: stacked}
        return found | {f"{self.name}_missing": np.array([i is None for i in items])} if self.partial else found


class RowReader(InputReader):
    "A row of a table: (B, n_cat) of int64 and (B, n_cont) of float32."

    def __init__(self, said: Mapping[str, Any]):
        super().__init__(said)
        self.arrays = (f"{self.name}_categories", f"{self.name}_numbers")

    @cached_property
    def codes(self) -> dict[str, dict[Any, int]]:
        "The code of every category, by column."
        return {column: {v: i + 1 for i, v in enumerate(known)} for column, known in self.said["classes"].items()}

    def take(self, row: Any) -> Any:
        "Take a row that stands under this input's name, or all of it."
        inner = row.get(self.name)
        return inner if isinstance(inner, Mapping) or hasattr(inner, "keys") else row

    def read(self, given: Any) -> tuple[Any, None]:
        "Encode a row as the fitted procs do."
        columns = [*self.said["cats"], *self.said["conts"]]
        if self.partial and (given is None or all(_is_missing(given.get(c)) for c in columns)):
            n_cat = len(self.said["codes"])
            return (np.full(n_cat, -1, np.int64), np.full(len(self.said["conts"]), np.nan, np.float32)), None
        if not hasattr(given, "keys"):
            raise HeadsError(
                f"input {self.name!r}: a row of a table is a dict or a pandas Series, found {type(given).__name__}."
            )
        for column in columns:
            if column not in given:
                there = list(map(str, given.keys()))
                raise HeadsError(
                    f"input {self.name!r}: there is no column {column!r} in the row.{did_you_mean(column, there)} "
                    f"There is {', '.join(there)}."
                )
        gaps = {c for c in self.said["conts"] if _is_missing(given[c])}
        cats = [self._code(column, given, gaps) for column in self.said["codes"]]
        conts = [self._number(column, given[column]) for column in self.said["conts"]]
        return (np.array(cats, np.int64), np.array(conts, np.float64).astype(np.float32)), None

    def _code(self, column: str, row: Any, gaps: set[str]) -> int:
        "Give the code of a category; 0 for one that training did not have."
        filled = self.said["codes"][column]
        value = row[column] if filled is None else filled in gaps
        if _is_missing(value):
            return 0
        value = value.item() if isinstance(value, np.generic) else value
        kind, found = self.said["kinds"].get(column), "text" if isinstance(value, str) else "numbers"
        if kind in ("text", "numbers") and kind != found:
            raise HeadsError(
                f"column {column!r} held {kind} in training and holds {found} here, such as {value!r}: make them the "
                "same type."
            )
        try:
            return self.codes[column].get(value, 0)
        except TypeError:
            raise HeadsError(f"column {column!r} is to hold one category, found {value!r}.") from None

    def _number(self, column: str, value: Any) -> float:
        "Fill and standardise a number."
        if _is_missing(value):
            value = self.said["fill"].get(column)
            if value is None:
                raise HeadsError(
                    f"column {column!r} has no number, and had no gap in training: fill it, or train with "
                    "`fill_new_gaps=True` in the TabularBlock."
                )
        if not isinstance(value, int | float | np.number | np.bool_) or abs(value) > _LARGEST:
            raise HeadsError(f"column {column!r} is to hold finite numbers, found {value!r} ({type(value).__name__}).")
        mean, deviation = self.said["stats"].get(column, (0.0, 1.0))
        return (float(value) - mean) / deviation

    def join(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        "Stack rows."
        cats, conts = zip(*items)
        shapes = (len(items), len(self.said["codes"])), (len(items), len(self.said["conts"]))
        return {n: np.stack(part).reshape(shape) for n, part, shape in zip(self.arrays, (cats, conts), shapes)}


class TextReader(InputReader):
    "A text: (B, L) of ids, filled up at the end."

    def __init__(self, said: Mapping[str, Any]):
        super().__init__(said)
        self.arrays = (self.name,)

    @cached_property
    def tokenizer(self) -> tuple[Callable[[str], Sequence[int]], int]:
        "What makes ids of a text, and how many ids there are."
        return _TOKENIZERS[self.said["tokenizer"]["name"]](self.said["tokenizer"])

    def read(self, given: Any) -> tuple[Any, None]:
        "Split a text, and number its tokens."
        if _is_missing(given) or (isinstance(given, str) and not given.strip()):
            if not self.partial:
                raise self.refuse_missing()
            return np.zeros(0, np.int64), None
        if not isinstance(given, str):
            raise HeadsError(f"input {self.name!r}: a text is a str, found {given!r} ({type(given).__name__}).")
        try:
            given.encode()
        except UnicodeEncodeError as error:
            raise HeadsError(
                f"input {self.name!r}: the text holds half a character, {error.object[error.start]!a}."
            ) from None
        ids = np.array(self.tokenizer[0](given), np.int64)
        if not len(ids):
            raise HeadsError(f"input {self.name!r}: the text {given!r} has no token.")
        return ids, None

    def join(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        "Fill texts up to the longest, at their ends."
        longest = max(1, *(len(ids) for ids in items)) if len(items) > 1 else max(1, len(items[0]))
        out = np.full((len(items), longest), self.said["pad_idx"], np.int64)
        for row, ids in zip(out, items):
            row[: len(ids)] = ids
        return {self.name: out}


def _hf_tokenizer(said: Mapping[str, Any]) -> tuple[Callable[[str], Sequence[int]], int]:
    "Make a tokenizer of the package `tokenizers` from its own text form."
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise HeadsError("this bundle reads texts by `tokenizers`: pip install fastai_heads[text]") from error
    try:
        tokenizer = Tokenizer.from_str(said["text"])
    except Exception as error:  # the package raises a plain Exception
        raise HeadsError(f"the tokenizer of the bundle cannot be read: {error}.") from error
    return lambda text: tokenizer.encode(text).ids, tokenizer.get_vocab_size()


def _fastai_tokenizer(said: Mapping[str, Any]) -> tuple[Callable[[str], Sequence[int]], int]:
    "Make fastai's tokenizer, with its own rules. It needs torch, as fastai does."
    from fastai.text import core as text_core

    split = {"spacy": lambda: text_core.SpacyTokenizer(said["lang"]), "base": text_core.BaseTokenizer}[said["split"]]()
    rules = [getattr(text_core, name) for name in said["rules"]]
    tokenize = text_core.Tokenizer(split, rules=rules)
    numbers = {token: i for i, token in enumerate(said["vocab"]) if token != "xxfake"}
    return lambda text: [numbers.get(token, 0) for token in tokenize(text)], len(said["vocab"])


_TOKENIZERS = {"tokenizers": _hf_tokenizer, "fastai": _fastai_tokenizer}
_READERS = {"image": ImageReader, "row": RowReader, "text": TextReader}


def make_reader(
    said: Mapping[str, Any],  # an input, as a manifest describes it
) -> InputReader:
    "Make what reads an input."
    return _READERS[said["kind"]](said)


def _is_missing(value: Any) -> bool:
    "Tell whether a value says that there is none: None, NaN, pandas' `NA` and `NaT`."
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))
