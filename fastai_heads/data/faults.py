"""What can be wrong with a label before it is encoded: one check for each kind of target, over all rows at once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from fastai.data.transforms import Categorize, EncodedMultiCategorize, MultiCategorize
from fastcore.foundation import L

from fastai_heads.data.labels import Labels, step_of
from fastai_heads.data.missing import is_missing, missing_share
from fastai_heads.data.parse import parse_box, parse_many, parse_numbers
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["check_labels", "detections_of", "numbers_of"]

_BLOCKS = {
    "regression": "RegressionBlock",
    "point": "PointBlock",
    "multilabel": "MultiCategoryBlock",
    "box": "BoxBlock",
}
_SHOWN = 8  # classes that a message lists


def check_labels(
    labels: Labels,  # of one target and one split
    target: Target,  # whose they are
) -> np.ndarray | None:  # (N, n) the labels as numbers, NaN for a missing one; None where they are none
    "Refuse the first label that the target's block cannot take, or that would poison its head."
    check = _CHECKS.get(target.kind)
    return check(labels, target) if check is not None and len(labels.values) else None


def check_classes(labels: Labels, target: Target) -> None:
    "Refuse a class that the vocabulary does not have, such as one that only the validation set has."
    step = step_of(labels.tl, Categorize)
    if step.add_na:
        return
    bad: dict[Hashable, bool] = {}
    for i, label in enumerate(labels.values):
        if label not in bad:
            bad[label] = label not in step.vocab.o2i and not (target.partial and is_missing(label))
        if bad[label]:
            raise labels.error(i, _unknown_class(label, list(step.vocab), "CategoryBlock"))


def check_tags(labels: Labels, target: Target) -> None:
    "Refuse a tag that the vocabulary does not have; of encoded tags what is no number from 0 to 1."
    step = step_of(labels.tl, MultiCategorize)
    if step_of(labels.tl, EncodedMultiCategorize) is not None:
        check_encoded_tags(labels, target)
    elif step is not None and not step.add_na:
        known = set(step.vocab)
        for i, tags in enumerate(labels.values):
            if tags is None or not known.issuperset(tags):
                if target.partial and is_missing(tags):
                    continue
                unknown = [tag for tag in tags or [None] if tag not in known]
                raise labels.error(i, _unknown_class(unknown[0], list(step.vocab), "MultiCategoryBlock"))


def _unknown_class(label: Any, vocab: list[Any], block: str) -> str:
    if is_missing(label):
        return f"there is no label. `PartialBlock({block})` takes rows without one."
    listed = ", ".join(map(repr, vocab[:_SHOWN])) + (", …" if len(vocab) > _SHOWN else "")
    every = [*vocab, label] if len(vocab) < _SHOWN else "[…]"
    return (
        f"{label!r} is not among the {len(vocab)} classes of the training set or of `vocab=` ({listed})."
        f"{did_you_mean(label, vocab)} Name all classes, `{block}(vocab={every})`, or drop the row."
    )


def check_encoded_tags(labels: Labels, target: Target) -> None:
    "Refuse encoded tags that are not as many numbers from 0 to 1 as there are tags."
    numbers = numbers_of(labels, target)
    count = len(target.vocab or ())
    if numbers.shape[1] != count:
        raise labels.error(0, f"{numbers.shape[1]} tags are encoded, and `vocab=` names {count}.")
    if not target.partial:
        _refuse(labels, target, numbers, np.isnan(numbers), "is missing")
    with np.errstate(invalid="ignore"):
        _refuse(labels, target, numbers, (numbers < 0) | (numbers > 1), "is none from 0 to 1")


def check_numbers(labels: Labels, target: Target) -> np.ndarray:
    "Refuse numbers that are text, of another count than in other rows, or not finite."
    numbers = numbers_of(labels, target)
    gaps = np.isnan(numbers)
    whole = gaps.all(1, keepdims=True) if target.partial else np.zeros((len(numbers), 1), dtype=bool)
    _refuse(labels, target, numbers, ~np.isfinite(numbers) & ~whole, "is not finite")
    return numbers


def check_points(labels: Labels, target: Target) -> np.ndarray:
    "Refuse points that are not pairs of finite numbers, as many in every row."
    numbers = check_numbers(labels, target)
    if numbers.shape[1] % 2:
        said = f"{numbers.shape[1]} numbers are no points: `PointBlock` takes x and y of each, in pixels."
        raise labels.error(0, said)
    return numbers


def _refuse(labels: Labels, target: Target, numbers: np.ndarray, bad: np.ndarray, why: str) -> None:
    "Refuse the first row in which a number is bad."
    rows = np.flatnonzero(bad.any(1))
    if not len(rows):
        return
    i = int(rows[0])
    found = numbers[i].tolist()
    block = _BLOCKS[target.kind]
    missing = np.isnan(numbers[i][bad[i]]).any()
    fix = f"`PartialBlock({block})` takes rows without a label, all of whose numbers are missing" if missing else ""
    more = f" (and {len(rows) - 1} rows more)" if len(rows) > 1 else ""
    said = f"{found[int(np.argmax(bad[i]))]} in {found if len(found) > 1 else 'its cell'} {why}{more}."
    raise labels.error(i, f"{said} {fix or 'Correct the cell'}, or drop the row.")


def numbers_of(
    labels: Labels,  # of a target of numbers, points or encoded tags
    target: Target,  # whose they are
) -> np.ndarray:  # (N, n) float64; a missing label is NaN
    "Turn labels into a table of numbers. The first row that holds none, or another count of them, is refused."
    table = _table(labels.values)
    if table is not None and table.dtype.kind in "biuf":
        return table.reshape(len(table), -1).astype(float)
    rows = [_row(labels, target, i, _plain(v)) for i, v in enumerate(labels.values)]
    count = next((len(row) for row in rows if row), 1)
    for i, row in enumerate(rows):
        if row and len(row) != count:
            raise labels.error(i, f"{len(row)} number(s) {row}, where the first row has {count}.")
    return np.array([row or [np.nan] * count for row in rows], dtype=float)


def _table(values: Sequence[Any] | np.ndarray) -> np.ndarray | None:
    "Give all values as one array; None where their shapes differ."
    simple = isinstance(values, np.ndarray) or set(map(type, values)) <= {int, float, bool, list, tuple, np.ndarray}
    try:
        return np.array(values if simple else [_plain(v) for v in values])
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    "Give a label as numbers and lists."
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, L | list | tuple) else value


def _row(labels: Labels, target: Target, i: int, value: Any) -> list[float]:
    "Give the numbers of one label; none where it is missing."
    if target.partial and missing_share(value) == 1:
        return []
    flat = np.array(value, dtype=object).reshape(-1).tolist()
    text = next((v for v in flat if isinstance(v, str)), None)
    if text is not None and not (target.partial and target.kind == "regression"):
        raise labels.error(i, _text_for_numbers(text, target, labels.columns))
    try:
        return [n for v in flat for n in (parse_numbers(v) if isinstance(v, str) else [_number(v)])]
    except (HeadsError, TypeError, ValueError) as error:
        raise labels.error(i, f"{value!r} is no number: {error}") from None


def _number(value: Any) -> float:
    return np.nan if is_missing(value) else float(value)


def _text_for_numbers(text: str, target: Target, columns: Sequence[str | int]) -> str:
    return f"it holds the text {text!r}, and `{_BLOCKS[target.kind]}` takes numbers: {_numbers_from(text, columns)}."


def _numbers_from(text: str, columns: Sequence[str | int]) -> str:
    "Say how text in columns becomes numbers."
    if not columns:
        return "let its getter give `float(text)`"
    if len(columns) == 1 and len(parse_numbers(text)) > 1:
        return f"read it by `NumbersReader({columns[0]!r})`"
    return f"`df[{list(columns)!r}] = df[{list(columns)!r}].apply(pd.to_numeric)` makes numbers of it"


def check_boxes(labels: Labels, target: Target) -> np.ndarray:
    "Refuse what is no box with an area, and give the others as a table (N, 4)."
    quick = parse_many(labels.values)
    table = _table(labels.values) if quick is None else quick
    if table is not None and table.dtype.kind in "biuf" and table[0].size == 4:
        numbers = table.reshape(-1, 4).astype(float)
        if np.isfinite(numbers).all() and (numbers[:, 2:] > numbers[:, :2]).all():
            return numbers
    return np.array([_box(labels, target, i, v) for i, v in enumerate(labels.values)], dtype=float)


def _box(labels: Labels, target: Target, i: int, value: Any) -> list[float]:
    if target.partial and is_missing(value):
        return [np.nan] * 4
    try:
        return parse_box(value)
    except HeadsError as error:
        raise labels.error(i, str(error)) from None


def detections_of(
    labels: Labels,  # of a target of boxes with labels, each checked when the data was made
) -> tuple[np.ndarray, np.ndarray]:  # (n, 4) all boxes, and (n,) the row of each
    "Gather the boxes of all rows."
    rows: list[int] = []
    boxes: list[Sequence[float]] = []
    for i, value in enumerate(labels.values):
        found = [] if is_missing(value) else list(value[0])
        boxes += [_box_of(box) for box in found]
        rows += [i] * len(found)
    return np.array(boxes, dtype=float).reshape(-1, 4), np.array(rows, dtype=int)


def _box_of(box: Any) -> Sequence[float]:
    plain = _plain(box)
    return plain if isinstance(plain, list) and len(plain) == 4 and not isinstance(plain[0], list) else parse_box(box)


_CHECKS: dict[str, Callable[[Labels, Target], np.ndarray | None]] = {
    "category": check_classes,
    "multilabel": check_tags,
    "regression": check_numbers,
    "point": check_points,
    "box": check_boxes,
}
