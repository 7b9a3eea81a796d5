"""The gradient of every loss by itself, as rows over the same variables: made, multiplied, and added up."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from fastai.torch_core import TensorBase
from torch import Tensor

__all__ = ["Row", "add_rows", "as_matrix", "combine", "gramian", "loss_gradients", "split_like"]

Row = list[Tensor | None]
"One loss's gradient, a tensor for every variable; None where the loss does not reach it."

_CHUNK = {"cpu": 1 << 15}
"Numbers of every row that are side by side at once, by device: on a processor what its cache holds."
_LARGE_CHUNK = 1 << 22
"On other devices: few products, of a memory that is small beside one gradient's."


def loss_gradients(
    losses: Mapping[str, Tensor],  # head → its loss, a scalar with a graph
    scales: Mapping[str, Tensor | float],  # head → what its gradient is multiplied by
    variables: Sequence[Tensor],  # what is differentiated for
    keep: bool = False,  # keep the graph after the last loss, too
) -> dict[str, Row]:  # head → its row
    "Go back once for each loss through one graph: heads that share a body share its forward pass."
    rows: dict[str, Row] = {}
    for n, (name, loss) in enumerate(losses.items(), 1):
        scale = torch.as_tensor(scales[name], dtype=loss.dtype, device=loss.device)
        rows[name] = _gradient(loss, scale, variables, keep or n < len(losses))
    return rows


def _gradient(loss: Tensor, scale: Tensor, variables: Sequence[Tensor], keep: bool) -> Row:
    if not variables or not loss.requires_grad:
        return [None] * len(variables)
    grads = torch.autograd.grad(loss, variables, scale.view_as(loss), retain_graph=keep, allow_unused=True)
    return [grad.as_subclass(Tensor) if isinstance(grad, TensorBase) else grad for grad in grads]


def add_rows(
    before: Row | None,  # of earlier batches
    row: Row,  # of this one
) -> Row:
    "Add two rows of one loss, as gradients of several batches accumulate. Neither row is written to."
    if before is None:
        return row
    return [b if a is None else a if b is None else a + b for a, b in zip(before, row)]


def gramian(
    rows: Sequence[Row],  # K of them, over the same variables
) -> Tensor:  # (K, K) the products of every two rows, in float32 or float64
    "Multiply every two rows, piece by piece: no matrix of all rows is made."
    like = next((grad for row in rows for grad in row if grad is not None), torch.zeros(()))
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=like.device)
    for grads in zip(*rows):
        there = [k for k, grad in enumerate(grads) if grad is not None]
        if there:
            at = torch.tensor(there, device=like.device)
            total[at[:, None], at] += _products([grads[k].reshape(-1) for k in there])
    return total.to(_whole(like.dtype))


def _products(flat: Sequence[Tensor]) -> Tensor:
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    chunk = _CHUNK.get(flat[0].device.type, _LARGE_CHUNK)
    for start in range(0, flat[0].numel(), chunk):
        part = torch.stack([grad[start : start + chunk] for grad in flat])
        part = part.to(_whole(part.dtype))
        total += part @ part.T
    return total


def _whole(dtype: torch.dtype) -> torch.dtype:
    "Give float32 for half precision. float64 stays what it is."
    return torch.float64 if dtype == torch.float64 else torch.float32


def combine(
    rows: Sequence[Row],  # K of them, over the same variables
    weights: Iterable[float],  # K
    used_up: bool = False,  # the rows are not needed any more: the sum may take their memory
) -> Row:
    "Add rows by weight, in new tensors unless `used_up`. Where no row reaches, the sum is None."
    owners = _memories(rows) if used_up else Counter()
    total: Row = [None] * (len(rows[0]) if rows else 0)
    for row, weight in zip(rows, weights):
        there = [i for i, grad in enumerate(row) if grad is not None]
        more = [i for i in there if total[i] is not None]
        for i in set(there).difference(more):
            total[i] = row[i].mul_(weight) if _is_alone(row[i], owners) else row[i] * weight
        if more:
            torch._foreach_add_([total[i] for i in more], [row[i] for i in more], alpha=weight)
    return total


def _memories(rows: Sequence[Row]) -> Counter:
    "Count the gradients in each piece of memory: autograd may give one tensor for several variables."
    return Counter(grad.untyped_storage().data_ptr() for row in rows for grad in row if grad is not None)


def _is_alone(grad: Tensor, owners: Counter) -> bool:
    "Tell whether a gradient has its memory for itself, and all of it. fastai's `zero_grad` cannot have views."
    storage = grad.untyped_storage()
    return (
        not grad._is_view()
        and owners[storage.data_ptr()] == 1
        and storage.nbytes() == grad.numel() * grad.element_size()
    )


def as_matrix(
    rows: Sequence[Row],  # K of them, over the same variables
    variables: Sequence[Tensor],  # the variables, for the shapes where a row does not reach
) -> Tensor:  # (K, n) in float32 or float64
    "Put rows into one matrix, for what needs every number of it."
    flat = [[_numbers(grad, var) for grad, var in zip(row, variables)] for row in rows]
    return torch.stack([torch.cat(parts) for parts in flat])


def _numbers(grad: Tensor | None, variable: Tensor) -> Tensor:
    dtype = _whole(variable.dtype)
    return variable.new_zeros(variable.numel(), dtype=dtype) if grad is None else grad.reshape(-1).to(dtype)


def split_like(
    vector: Tensor,  # (n,)
    variables: Sequence[Tensor],  # n numbers in all
) -> Row:
    "Split a vector over all variables into one tensor for each. None is a view of another's memory."
    parts = vector.split([v.numel() for v in variables])
    return [part.view_as(v).to(v.dtype, copy=True) for part, v in zip(parts, variables)]
