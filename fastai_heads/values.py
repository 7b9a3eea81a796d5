"""What a user's value may be, and the refusal of one that is not."""

from math import isfinite
from numbers import Integral, Real

from fastai_heads.errors import HeadsError

__all__ = ["check_value", "is_device", "is_number", "is_whole"]


def is_number(
    value: object,  # what the user wrote
    least: float = float("-inf"),  # the smallest that will do
    below: float = float("inf"),  # the first that is too large
) -> bool:
    "Tell whether it is a finite number, and in range. True and False are none."
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) and least <= value < below


def is_whole(
    value: object,  # what the user wrote
    least: int = 1,  # the smallest that will do
) -> bool:
    "Tell whether it is a whole number, and large enough."
    return isinstance(value, Integral) and is_number(value, least=least)


def is_device(
    value: object,  # what the user wrote
) -> bool:
    "Tell whether it names a device of torch that is there."
    import torch  # here, as an ONNX file is served without it

    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError):
        return False
    return value is not None


def check_value(
    field: str,  # its name
    owner: str,  # what it is a field or a parameter of
    value: object,  # what the user wrote
    fits: bool,  # whether that can be used
    expected: str,  # what can, as the end of the sentence '`field` of owner is …'
) -> None:
    "Refuse a value: which field, what was expected, what was found."
    if not fits:
        raise HeadsError(f"`{field}` of {owner} is {expected}, found {value!r}.")
