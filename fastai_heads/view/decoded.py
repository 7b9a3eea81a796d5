"""What the heads say of each item, decoded as far as it has the form of its target."""

from collections.abc import Sequence

from fastai.data.core import TfmdDL
from torch import Tensor

from fastai_heads.data.decode import decode_targets
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.training.bound import BoundHead

__all__ = ["decode_heads"]


def decode_heads(
    dl: TfmdDL,  # over fastai `Datasets` with all the targets
    inputs: tuple[Tensor, ...],  # (B, …) each, as in a batch
    heads: Sequence[BoundHead],  # those that decode a target
    decoded: Sequence[Tensor],  # (B, …) each, one for each of the heads
    max_n: int = 9,  # how many items
) -> list[tuple]:  # per item its decoded inputs, then a `HeadTuple` of values
    """Undo what made the targets, head by head. Values that do not have the form of the target, such as a mean with its
    variance, are given as they are."""
    values = dict(zip((head.name for head in heads), decoded, strict=True))
    formed = [head for head in heads if head.task.in_form(values[head.name])]
    places = [head.target.index for head in formed]
    items = decode_targets(dl, inputs, [values[head.name] for head in formed], places, max_n)
    found = []
    for i, item in enumerate(items):
        said = dict(zip((head.name for head in formed), item[len(inputs) :]))
        plain = {name: value[i].as_subclass(Tensor).cpu() for name, value in values.items() if name not in said}
        found.append((*item[: len(inputs)], HeadTuple(((said | plain)[name] for name in values), tuple(values))))
    return found
