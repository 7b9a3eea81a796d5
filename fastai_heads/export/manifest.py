"""What a manifest may say of inputs and of answers. No module that this one imports imports torch."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from fastai_heads.errors import HeadsError
from fastai_heads.export.answers import ANSWERS
from fastai_heads.export.given import take
from fastai_heads.export.images import PAD_MODES, STEPS
from fastai_heads.values import is_number, is_whole

__all__ = ["check_answers", "check_inputs"]

MAX_SIDE = 1 << 16  # pixels of an image's side

Fits = Callable[[Any], bool]


def check_inputs(
    inputs: list[Any],  # of a manifest
) -> None:
    "Refuse inputs that no manifest of ours describes so, by the field."
    if not inputs:
        raise HeadsError("manifest: `inputs` names no input.")
    for said in inputs:
        name, kind = take(said, "name", str, "an input of the manifest"), take(said, "kind", str, "an input")
        if kind not in _KINDS:
            raise HeadsError(f"manifest: input {name!r} is of kind {kind!r}; there is {', '.join(_KINDS)}.")
        _check(said, _KINDS[kind] | _EVERY, f"manifest: input {name!r}")
        if kind == "image" and not _normalises(said):
            raise HeadsError(f"manifest: input {name!r}: `mean` and `std` are of one length, that of the channels.")
    names = [said["name"] for said in inputs]
    if len(set(names)) < len(names):
        raise HeadsError(f"manifest: two inputs have one name: {', '.join(names)}.")


def check_answers(
    answers: Mapping[str, Any],  # of a manifest, by head
) -> None:
    "Refuse answers that cannot be read, by the field."
    if not answers:
        raise HeadsError("manifest: `answers` names no head.")
    for name, said in answers.items():
        where = f"manifest: answer of {name!r}"
        answer = take(said, "answer", str, where)
        _check(said, {"answer": (_one_of(*ANSWERS), f"one of {', '.join(ANSWERS)}"), "vocab": _VOCAB}, where)
        _check(said, _NEEDS.get(answer, {}), where)


def _check(said: Mapping[str, Any], rules: Mapping[str, tuple[Fits, str]], where: str) -> None:
    for field, (fits, expected) in rules.items():
        if not fits(said.get(field)) or (field not in said and field not in _EVERY):
            found = f"{said[field]!r:.80}" if field in said else "nothing"
            raise HeadsError(f"{where}: `{field}` is {expected}, found {found}.")


# what a value may be


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _one_of(*values: Any) -> Fits:
    return lambda value: any(value == v and type(value) is type(v) for v in values)


def _list(fits: Fits, n: int | None = None) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value)) and n in (None, len(value))


def _dict(fits: Fits) -> Fits:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _side(value: Any) -> bool:
    return is_whole(value) and value <= MAX_SIDE


def _share(value: Any) -> bool:
    return is_number(value, least=0) and value <= 1


def _deviation(value: Any) -> bool:
    return is_number(value) and value > 0


def _statistics(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_number(value[0]) and _deviation(value[1])


def _normalises(said: Mapping[str, Any]) -> bool:
    "Tell whether an image's statistics are there together, or neither is."
    lengths = {None if said[name] is None else len(said[name]) for name in ("mean", "std")}
    return len(lengths) == 1 and lengths <= {None, 1, said["shape"][2]}


def _step(value: Any) -> bool:
    "Tell whether it is a transform of an image with the arguments that it takes."
    if not isinstance(value, dict) or value.get("name") not in STEPS:
        return False
    given = {k: v for k, v in value.items() if k != "name"}
    try:
        signature(STEPS[value["name"]]).bind(None, None, **given)
    except TypeError:
        return False
    return all(k in _ARGUMENTS and _ARGUMENTS[k](v) for k, v in given.items())


def _tokenizer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.get("name") == "tokenizers":
        return _text(value.get("text"))
    lists = all(_list(_text)(value.get(k)) for k in ("rules", "vocab"))
    return (
        value.get("name") == "fastai" and value.get("split") in ("spacy", "base") and lists and _text(value.get("lang"))
    )


_ARGUMENTS: dict[str, Fits] = {
    "size": _list(_side, 2),
    "method": _one_of("squish", "pad", "crop"),
    "pad_mode": _one_of(*PAD_MODES),
    "resample": _one_of(*range(6)),
    "val_xtra": lambda value: is_number(value, least=0) and value <= 10,
}
"Of the transforms of an image."

_EVERY: dict[str, tuple[Fits, str]] = {
    "partial": (_one_of(None, True, False), "True or False"),
    "columns": (_or_none(_list(_text)), "a list of texts"),
}
_KINDS: dict[str, dict[str, tuple[Fits, str]]] = {
    "image": {
        "mode": (_one_of("RGB", "L"), "'RGB' or 'L'"),
        "steps": (_list(_step), f"a list of transforms ({', '.join(STEPS)}) with what they take"),
        "shape": (_list(_side, 3), f"height, width and channels, each from 1 to {MAX_SIDE}"),
        "div": (_or_none(_deviation), "a number above 0, or null"),
        "mean": (_or_none(_list(is_number)), "a list of numbers, or null"),
        "std": (_or_none(_list(_deviation)), "a list of numbers above 0, or null"),
    },
    "row": {
        "cats": (_list(_text), "a list of columns"),
        "conts": (_list(_text), "a list of columns"),
        "codes": (_dict(_or_none(_text)), "a dict of columns"),
        "classes": (_dict(_list(_plain)), "a dict of column to its categories"),
        "kinds": (_dict(_text), "a dict of column to 'text' or 'numbers'"),
        "fill": (_dict(is_number), "a dict of column to a number"),
        "stats": (_dict(_statistics), "a dict of column to its mean and a deviation above 0"),
    },
    "text": {
        "pad_idx": (lambda value: is_whole(value, least=0), "a whole number of at least 0"),
        "tokenizer": (_tokenizer, "what makes tokens: of `tokenizers`, or fastai's"),
    },
}
"Kind of an input → field → what it may be."

_VOCAB = (_or_none(_list(_plain)), "a list of classes, or null")
_NEEDS: dict[str, dict[str, tuple[Fits, str]]] = {
    "tags": {"threshold": (_share, "a number from 0 to 1")},
    "detections": {"decode_score": (_share, "a number from 0 to 1")},
}
"What an answer is not read without."
