"""A head's output, loss and decoding on a few real items, each refused with the field that has to change."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastai_heads.data.kinds import Answer
from fastai_heads.errors import HeadsError, first_line
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.tasks.reduction import loss_modules, loss_name
from fastai_heads.tasks.regression import RegressionTask
from fastai_heads.tasks.task import Task, has_shape
from fastai_heads.training.bound import BoundHead

__all__ = ["check_decoding", "check_loss", "check_output"]

_ROWS = 5  # items on which a loss of the user's is tried; more where an axis is as long


# what the module gives


def check_output(
    name: str,  # of the head
    spec: HeadSpec,  # fitted
    task: Task,  # what it predicts
    pred: Any,  # what its module gave
    n: int,  # for so many items
) -> None:
    "Refuse an output that is no tensor of one row per item, or not of the shape that the target needs."
    field = "module" if spec.brings_module else "build"
    start = f"`heads[{name!r}]`: `{field}` of {spec.label} gives "
    wanted = f"({n}, {_wanted(task)})"
    if not isinstance(pred, Tensor):
        held = f" of {len(pred)}" if isinstance(pred, tuple | list | dict) else ""
        raise HeadsError(
            f"{start}a {type(pred).__name__}{held}, expected one tensor, {wanted}: a head is one prediction. Give one "
            "of them, or `torch.cat` them and pass a `loss=` that takes them apart."
        )
    whole = pred.ndim > 0 and len(pred) == n
    if not whole or not pred.is_floating_point():
        raise HeadsError(
            f"{start}{_told(pred)} for {n} images, expected numbers with a gradient, one row per image, {wanted}."
        )
    shape = task.output_shape
    own = shape is None and spec.loss is not None and spec.n_out is not None and spec.brings_module
    fits = has_shape(pred, shape) if shape is not None else not own or (pred.shape[1:] or (1,))[0] == spec.n_out
    if not fits:
        raise HeadsError(f"{start}{_told(pred)}, expected {wanted} for target {task.target.name!r}{_cure(task, pred)}")


def _wanted(task: Task) -> str:
    "Say the shape of an item's output in words."
    shape = task.output_shape
    if shape is None:
        return "…" if task.n_out is None else f"{task.n_out}, …"
    return ", ".join(side if size is None else str(size) for size, side in zip(shape, ("", "H", "W")))


def _cure(task: Task, pred: Tensor) -> str:
    "Say the nearest right output."
    target, shape = task.target, task.output_shape
    if shape is None:
        return f": pass `n_out={pred.shape[1] if pred.ndim > 1 else 1}`, or let the module give {task.n_out}."
    about = f" ({target.kind} of {len(target.vocab)})" if target.vocab else f" ({target.kind})"
    if pred.ndim > len(shape) + 1:
        fix = f"Pool the map before its end: `nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(…, {task.n_out})`"
    elif len(shape) == 1:
        fix = f"End it with `nn.Linear(…, {task.n_out})`"
    else:
        fix = f"End it with a map of {task.n_out} channels, such as `nn.Conv2d(…, {task.n_out}, 1)`"
    return f"{about}. {fix}; with a loss of your own, `loss=…`, it may give anything."


# the loss


def check_loss(
    head: BoundHead,
    pred: Tensor,  # (B, …) its prediction
    targ: Tensor,  # (B, …) its target
) -> None:
    """Refuse a loss that cannot be taken, is no finite number with a gradient, compares items with the targets of
    others, or is not least where the prediction is right."""
    mask = head.labelled(targ)
    if not mask.any():
        return
    pred, targ = pred[mask].detach(), targ[mask]
    with _moved(head.loss_func, pred.device):
        if head.spec.loss is not None:
            pred, targ = _rows(pred, targ)
        _check_value(head, pred, targ)
        if head.spec.loss is None:
            return
        if _pairs_all(head, pred, targ):
            raise _refused(
                head, pred, targ, "compares every prediction with the target of every item, as shapes are broadcast"
            )
        _check_classes(head, pred, targ)
        _check_least(head, pred, targ)


def _check_value(head: BoundHead, pred: Tensor, targ: Tensor) -> None:
    leaf = pred.clone().requires_grad_()
    with torch.enable_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            loss = head.train_loss(leaf, targ)
        except HeadsError as error:
            raise error.within(f"`heads[{head.name!r}]`") from None
        except Exception as error:  # a loss is the user's, and may raise anything
            raise _refused(head, pred, targ, f"cannot be taken: {first_line(error)}") from error
    broadcast = any(str(w.message).startswith("Using a target size") for w in said)
    if broadcast and head.task.output_shape is not None and head.spec.loss is not None:
        raise _refused(head, pred, targ, "broadcasts two shapes that are not the same")
    if not isinstance(loss, Tensor) or loss.ndim:
        found = _told(loss) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise _refused(head, pred, targ, f"gives {found}, expected one number, a tensor (): take its `.mean()`")
    if not loss.isfinite():
        raise _refused(head, pred, targ, f"is {loss.item()} on the first items; {_range(pred, targ)}")
    grad = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    if grad is None:
        raise _refused(head, pred, targ, "has no gradient to the prediction, so that nothing would be trained")
    if not grad.isfinite().all():
        raise _refused(head, pred, targ, f"has a gradient that is not finite on the first items; {_range(pred, targ)}")


def _pairs_all(head: BoundHead, pred: Tensor, targ: Tensor) -> bool:
    """Tell whether each prediction meets the target of every item. Then the loss does not change when targets change
    places, and is the mean of what it is with each of the targets for all items. Where predictions lie on one side of
    all the targets an absolute error does the same, so that they are spread out further and further."""
    order = torch.Generator().manual_seed(0)
    columns = [torch.linspace(-1, 1, len(pred))[torch.randperm(len(pred), generator=order)] for _ in pred[0].flatten()]
    spread = torch.stack(columns, 1).view(pred.shape).to(pred)
    found = False
    for power in range(-1, 7 if pred.ndim < 3 else 1):
        verdict = _meets_all(head, pred + 10.0**power * (1 + pred.abs()) * spread, targ)
        if verdict is False:
            return False
        found = found or bool(verdict)
    return found


def _meets_all(head: BoundHead, pred: Tensor, targ: Tensor) -> bool | None:
    "Tell the same for these predictions; None where they do not tell."
    sides = [targ, targ.roll(1, 0), *(t[None].expand_as(targ) for t in targ)]
    values = [_value(head, pred, side) for side in sides]
    if any(value is None for value in values):
        return None
    own, moved, *each = values
    close = 1e-5 * max(map(abs, each))
    if max(each) - min(each) <= 100 * close:
        return None
    one_to_one = pred.numel() == targ.numel() and pred.shape != targ.shape  # as `(B, 1)` and `(B,)`
    return abs(own - moved) <= close and (one_to_one or abs(own - sum(each) / len(each)) <= close)


def _check_classes(head: BoundHead, pred: Tensor, targ: Tensor) -> None:
    "Refuse more logits than classes where the loss takes each of them for a class."
    n, several = head.target.n_out, pred.ndim > 1 and pred.shape[1]
    if head.task.answers is not Answer.CLASS or n is None or not several or several <= n:
        return
    if _value(head, pred, torch.full_like(targ, several - 1)) is not None:
        raise HeadsError(
            f"`heads[{head.name!r}]`: `module` of {head.spec.label} gives {_told(pred)}, and its loss takes each of "
            f"the {several} numbers for a class; target {head.target.name!r} has {n}. End it with `nn.Linear(…, {n})`."
        )


def _check_least(head: BoundHead, pred: Tensor, targ: Tensor) -> None:
    "Refuse a loss that is smaller for a wrong prediction than for the right one, or falls without end."
    task, numbers = head.task, head.task.answers is Answer.NUMBERS and targ.numel() == pred.numel()
    if task.output_shape is None:
        return
    if numbers and not (isinstance(task, RegressionTask) and _is_activated(head, pred)):
        right = targ.reshape(pred.shape).to(pred.dtype)
        step = (right - right.mean(0)).abs().mean(0) + 0.1 * (right == right[0]).all()
        wrong = [right + step, right - step]
        hint = "it takes something else than the number itself"
    elif task.answers is Answer.CLASS:
        right = 8.0 * F.one_hot(targ.long().view(-1).clamp(min=0), pred.shape[1]).to(pred.dtype)
        wrong = [right.roll(1, 1), -right]
        hint = "it takes something else than logits"
        far, farther = (_value(head, right * scale, targ) for scale in (10, 1000))
        if far is not None and farther is not None and farther < min(far, 0) - 100:
            raise _refused(head, pred, targ, f"falls without end for surer predictions: {hint}")
    else:
        return
    least, *others = (_value(head, side, targ) for side in (right, *wrong))
    if least is None and numbers:
        raise _refused(head, pred, targ, f"is no finite number where the prediction is right: {hint}")
    if least is not None and any(other is not None and other < least - 1e-4 * (1 + abs(least)) for other in others):
        raise _refused(head, pred, targ, f"is smaller for a wrong prediction than for the right one: {hint}")


def _is_activated(head: BoundHead, pred: Tensor) -> bool:
    "Tell whether the numbers are what an activation makes of the output, as with fastai's losses on logits."
    return not torch.equal(head.activation(pred), pred)


def _value(head: BoundHead, pred: Tensor, targ: Tensor) -> float | None:
    "Return the loss of made-up predictions; None where it cannot take these."
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(head.train_loss(pred, targ))
    except Exception:  # they may lie where the user's loss is not defined, which says nothing of it
        return None
    return value if value == value and abs(value) != float("inf") else None


def _rows(pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor]:
    "Repeat the items until no axis is as long as the batch, which would hide that shapes are broadcast."
    sides = {*pred.shape[1:], *targ.shape[1:]}
    n = next(n for n in range(max(_ROWS, len(targ)), 10**6) if n not in sides)
    rows = torch.arange(n, device=pred.device) % len(targ)
    return pred[rows], targ[rows]


def _refused(head: BoundHead, pred: Tensor, targ: Tensor, what: str) -> HeadsError:
    "Make the error for a loss: what it does, of which shapes, and the nearest that fits."
    spec, kind = head.spec, head.target.kind
    fit = head.task.near_loss
    own = spec.loss is not None and spec.brings_module
    fits = spec.loss is not None and fit and (not own or spec.n_out == head.target.n_out)
    advice = f" Nearest: `loss={fit}`, or leave `loss` out." if fits else ""
    if own:
        advice += " A loss of your own in CustomHead gets prediction and target as they are."
    return HeadsError(
        f"`heads[{head.name!r}]`: `loss` of {spec.label}, {loss_name(head.loss_func)}, {what}. It gets predictions "
        f"{_told(pred)} and targets {_told(targ)} (of kind {kind}).{advice}"
    )


# decoding


def check_decoding(
    head: BoundHead,
    pred: Tensor,  # (B, …) its prediction
) -> None:
    "Refuse an activation or a decoding that fails, or does not give one row per item."
    if head.task.by_batch:
        return
    field = "decode" if getattr(head.spec, "decode", None) is not None else "loss"
    try:
        with torch.no_grad(), _moved(head.loss_func, pred.device):
            decoded = head.decode(head.activation(pred))
    except Exception as error:  # it may be the user's
        raise HeadsError(
            f"`heads[{head.name!r}]`: `{field}` of {head.spec.label} cannot decode predictions {_told(pred)}: "
            f"{first_line(error)}."
        ) from error
    if not isinstance(decoded, Tensor) or not decoded.ndim or len(decoded) != len(pred):
        found = _told(decoded) if isinstance(decoded, Tensor) else f"a {type(decoded).__name__}"
        raise HeadsError(
            f"`heads[{head.name!r}]`: `{field}` of {head.spec.label} decodes {_told(pred)} to {found}, expected a "
            f"tensor with a row for each of the {len(pred)} images; several values are `torch.stack([…], 1)`."
        )


@contextmanager
def _moved(loss_func: Callable, device: torch.device) -> Iterator[None]:
    "Move the tensors inside a loss to a device, and afterwards back."
    homes = [
        (module, next((t.device for t in (*module.parameters(), *module.buffers())), device))
        for module in loss_modules(loss_func)
    ]
    for module, _ in homes:
        module.to(device)
    try:
        yield
    finally:
        for module, home in homes:
            module.to(home)


def _range(pred: Tensor, targ: Tensor) -> str:
    "Say from where to where predictions and targets go."
    ends = [f"{part.min().item():.4g} to {part.max().item():.4g}" for part in (pred, targ)]
    return f"predictions go from {ends[0]}, targets from {ends[1]}"


def _told(tensor: Tensor) -> str:
    "Shape and type, in short."
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
