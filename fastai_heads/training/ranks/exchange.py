"""What several processes that train together tell each other; in one process every function gives what it was
given."""

from collections.abc import Sequence
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["from_first_rank", "gather_tensors", "mean_over_ranks", "sum_over_ranks", "train_together", "world"]

_BUCKET = 1 << 23
"Numbers that are sent at once."


_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)
"Whether this process is in a learner's `distrib_ctx`; torch's group of processes outlives it."


def train_together(
    on: bool,  # from now on, or no longer
) -> None:
    "Note what `distrib_ctx` says. Outside of it every process trains for itself, and waits for no other."
    _TOGETHER.set(on)


def world() -> int:
    "Count the processes that train together."
    return dist.get_world_size() if _TOGETHER.get() and dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(
    tensor: Tensor,  # of one shape on all ranks
) -> Tensor:  # a new one, alike on all ranks
    "Add up a tensor over all ranks."
    if world() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(
    tensors: Sequence[Tensor],  # of the same shapes on all ranks, written in place
) -> None:
    "Average every tensor over all ranks. They are sent in few large pieces."
    if world() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat)
        flat /= world()
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket])):
            tensor.copy_(part.view_as(tensor))


def from_first_rank(
    tensor: Tensor,  # of one shape on all ranks
) -> Tensor:  # alike on all ranks
    "Take what the first rank has, for example numbers that were drawn at random."
    if world() == 1:
        return tensor
    tensor = tensor.contiguous().clone()
    dist.broadcast(tensor, 0)
    return tensor


def gather_tensors(
    tensor: Tensor,  # without a graph, of the same type and number of axes on every rank, of any shape
) -> list[Tensor]:  # one per rank, in order
    "Give every rank's tensor to every rank."
    if world() == 1:
        return [tensor]
    plain = tensor.as_subclass(Tensor).contiguous()
    shapes = [
        tuple(s.tolist()) for s in _gather_alike(torch.tensor(plain.shape, dtype=torch.long, device=plain.device))
    ]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = plain.new_zeros(max(sizes))
    flat[: plain.numel()] = plain.view(-1)
    sent = flat.byte() if flat.dtype == torch.bool else flat
    parts = [part[:n].view(shape).to(plain.dtype) for part, n, shape in zip(_gather_alike(sent), sizes, shapes)]
    return [part.as_subclass(type(tensor)) for part in parts]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    "Group tensors of one type in lists of some million numbers."
    found: list[list[Tensor]] = []
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        size = _BUCKET
        for tensor in (t for t in tensors if t.dtype == dtype):
            if size >= _BUCKET:
                found.append([])
                size = 0
            found[-1].append(tensor)
            size += tensor.numel()
    return found


def _gather_alike(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor)
    return parts
