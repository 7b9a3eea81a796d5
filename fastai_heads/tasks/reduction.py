"""What a loss gives for each item, which numbers of a target count in it, and what its value is a mean of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from fastai.losses import BaseLoss
from torch import Tensor, nn

from fastai_heads.errors import HeadsError

__all__ = [
    "counted",
    "loss_modules",
    "loss_name",
    "loss_over",
    "mean_of_counted",
    "measured_count",
    "one_by_one",
    "own_reduction",
    "unreduced",
    "without_gaps",
    "zero_of",
]


def unreduced(
    loss_func: Callable,  # (pred, target) → a scalar
) -> Callable:  # (pred, target) → one value per number, or per item
    """Return a loss with `reduction='none'`, whichever way it takes it. The loss is afterwards as it was before."""
    if not hasattr(loss_func, "reduction"):
        return partial(loss_func, reduction="none") if _takes_reduction(loss_func) else partial(one_by_one, loss_func)

    def not_reduced(pred: Tensor, targ: Tensor) -> Tensor:
        with _kept(loss_func):
            loss_func.reduction = "none"
            return loss_func(pred, targ)

    return not_reduced


def one_by_one(
    loss_func: Callable,  # (pred, target) → a scalar
    pred: Tensor,  # (B, …)
    targ: Tensor,  # (B, …)
) -> Tensor:  # (B,)
    "Take a loss that always gives a scalar of every item by itself."
    return torch.stack([loss_func(p[None], t[None]) for p, t in zip(pred, targ)])


def own_reduction(
    loss_func: Callable,  # a loss of fastai, of torch or of the user
) -> str:  # 'mean' where it does not say
    "Tell how a loss makes one number of many."
    said = _attribute(loss_func, "reduction")
    return said if isinstance(said, str) else "mean"


def counted(
    loss_func: Callable,  # of the head; its `ignore_index`, where it has one, counts nowhere
    targ: Tensor,  # (B, …) a target
) -> Tensor:  # bool, of the target's shape
    "Tell which numbers, tags or pixels of a target count in a loss: not NaN, and not `ignore_index`."
    plain = targ.as_subclass(Tensor)
    if plain.is_floating_point():
        return ~plain.isnan()
    ignored = _attribute(loss_func, "ignore_index")
    return torch.ones_like(plain, dtype=torch.bool) if ignored is None else plain != ignored


def without_gaps(
    targ: Tensor,  # (B, …) a target
    known: Tensor,  # of the same shape, from `counted`
) -> Tensor:
    "Put a zero where a number is missing: a NaN, even if it is left out later, makes the gradient NaN."
    return targ.masked_fill(~known, 0) if targ.is_floating_point() else targ


def mean_of_counted(
    values: Tensor,  # (B, …) a loss that is not reduced
    targ: Tensor,  # (B, …) its target
    known: Tensor,  # of the target's shape, from `counted`
) -> Tensor:  # (B,) NaN for an item of which nothing counts
    "Average a loss over each item's own numbers, those that count."
    values, known = _by_item(values, targ, known)
    return values.mean(1) if known.all() else values.sum(1) / known.sum(1)


def loss_over(
    loss_func: Callable,  # (pred, target) → a scalar
    pred: Tensor,  # (B, C)
    targ: Tensor,  # (B, C), NaN where a tag is missing
    known: Tensor,  # (B, C) bool, from `counted`, not everywhere True
) -> Tensor:  # a scalar
    """Reduce a loss over the tags that are there. A loss without `reduction` is given these alone, (N,); if it
    cannot take them, `HeadsError`."""
    if hasattr(loss_func, "reduction") or _takes_reduction(loss_func):
        values = unreduced(loss_func)(pred, without_gaps(targ, known)).view(targ.shape)[known]
        return values.sum() if own_reduction(loss_func) == "sum" else values.mean()
    try:
        return loss_func(pred[known], targ[known])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise HeadsError(
            f"`loss`: some tags of an image are missing, and the loss cannot leave them out: {error} Give it a "
            "parameter `reduction`, with 'none' for one value per tag."
        ) from None


def measured_count(
    items: Callable[[Callable], Tensor],  # gives the items' losses by a loss, as the task takes it
    loss_func: Callable,  # of the task
    targ: Tensor,  # (B, …) labelled items' targets
    loss: Tensor,  # a scalar, the loss of the batch
) -> Tensor:  # a scalar
    """Measure what the value of a loss is a mean of: its numbers, its pixels, the sum of their weights.

    The sum of what is not reduced over what is reduced tells it of any loss. A loss that cannot be unreduced is taken
    for a mean over the numbers that count."""
    known = counted(loss_func, targ)
    if not (hasattr(loss_func, "reduction") or _takes_reduction(loss_func)):
        return known.sum()
    heard = _Heard(loss_func)
    try:
        items(heard)
    except HeadsError:  # it gives one number whatever it is asked
        return known.sum()
    if heard.values is None or heard.values.ndim == 0:
        return known.sum()
    values, known = _by_item(heard.values.double(), targ, known)
    whole, total, near = known.sum(), values.sum(), 1e-5 * values.abs().sum()
    found = total / loss.double()
    if loss.isnan() and total == 0:  # weights of zero throughout
        return torch.zeros_like(whole)
    if (total - loss.double() * whole).abs() <= near or not (found.isfinite() and found > 0):
        return whole
    return found


def loss_modules(
    loss_func: Callable,  # a fastai or torch loss, or one that wraps another as `.loss_func`
) -> list[nn.Module]:  # outermost first
    "Return the modules inside a loss, whose tensors must stand on the predictions' device."
    found = [loss_func] if isinstance(loss_func, nn.Module) else []
    inner = loss_func.func if isinstance(loss_func, BaseLoss) else getattr(loss_func, "loss_func", None)
    return found + (loss_modules(inner) if inner is not None else [])


def zero_of(
    pred: Tensor,  # (B, …) a prediction
) -> Tensor:  # a scalar
    "Return a zero that keeps the graph: every parameter gets a gradient (of zero) also where nothing is labelled."
    return pred.flatten()[:0].sum()


class _Heard:
    "A loss that is not reduced, and what it gave."

    def __init__(self, loss_func: Callable):
        self.inner, self.values, self.known = loss_func, None, None
        self.ignore_index = _attribute(loss_func, "ignore_index")

    def __call__(self, pred: Tensor, targ: Tensor, reduction: str = "none") -> Tensor:
        self.values = unreduced(self.inner)(pred, targ)
        return self.values


def _by_item(values: Tensor, targ: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (B, n), the values 0 where nothing counts: a loss with an `ignore_index` has seen to that, and fastai's
    have the pixels in an order of their own. A value of several numbers counts if one of them does."""
    values, known = values.reshape(len(known), -1), known.reshape(len(known), -1)
    if known.shape != values.shape:
        known = known.any(1, keepdim=True).expand_as(values)
    return (values.masked_fill(~known, 0) if targ.is_floating_point() else values), known


def _takes_reduction(loss_func: Callable) -> bool:
    "Tell whether a function, or the one that it wraps as `.loss_func`, has a parameter `reduction`."
    if hasattr(loss_func, "loss_func"):
        return _takes_reduction(loss_func.loss_func)
    try:
        params = signature(loss_func.forward if isinstance(loss_func, nn.Module) else loss_func).parameters
    except ValueError:  # a builtin that does not say
        return False
    return "reduction" in params or any(p.kind is Parameter.VAR_KEYWORD for p in params.values())


def _inside(loss_func: Callable) -> Iterator[Any]:
    "Yield a loss and those that it wraps, outermost first."
    while loss_func is not None:
        yield loss_func
        wrapped = loss_func.func if isinstance(loss_func, BaseLoss | partial) else None
        loss_func = getattr(loss_func, "loss_func", wrapped)


def _attribute(loss_func: Callable, name: str) -> Any:
    "Return what a loss, one that it wraps, or the keywords of a `partial` say; None where none does."
    for part in _inside(loss_func):
        found = part.keywords.get(name) if isinstance(part, partial) else getattr(part, name, None)
        if found is not None:
            return found
    return None


@contextmanager
def _kept(loss_func: Callable) -> Iterator[None]:
    "Leave no trace of a further look at a loss, which may note what it has seen for `LossMetric`."
    before = [(part, dict(vars(part))) for part in _inside(loss_func) if hasattr(part, "__dict__")]
    try:
        yield
    finally:
        for part, state in before:
            vars(part).clear()
            vars(part).update(state)


def loss_name(
    loss_func: Callable,  # a fastai or torch loss, or a function
) -> str:
    "Return what a loss is called, for people."
    modules = loss_modules(loss_func)
    return type(modules[-1]).__name__ if modules else getattr(loss_func, "__name__", type(loss_func).__name__)
