"""The kinds of target: what is said of an item, and who tells a kind."""

from enum import Enum

__all__ = ["ANSWERS", "Answer", "TellsKind"]


class Answer(Enum):
    "What is said of an item. Each of fastai's metrics, and each method of the interpretation, is for some of these."

    CLASS = "one class of a vocabulary"
    TAGS = "several labels, each by itself"
    NUMBERS = "numbers"
    CODES = "a code for every pixel"


ANSWERS = {
    "category": Answer.CLASS,
    "multilabel": Answer.TAGS,
    "mask": Answer.CODES,
    **dict.fromkeys(("regression", "point", "box"), Answer.NUMBERS),
}
"What is said of an item, by the kind of target. A kind that is not here has none of fastai's metrics."


class TellsKind:
    "A transform that makes a target and knows its kind. A block of one's own begins with one."

    def target_kind(self) -> tuple[str, int | None, tuple | None]:  # kind, `n_out`, vocabulary, as of a `Target`
        "Tell the kind of the target, how many numbers describe it, and its classes."
        raise NotImplementedError
