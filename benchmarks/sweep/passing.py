"""What passes through a network: every operation of a run, listened to below its modules.

A cut is judged by it without the library's own code. A tap is right if its value stands, bit for bit, in a run of the
network as its zoo built it. Nothing is lost behind it if that value, put in its place in the run of another batch,
makes the network answer as it did for the first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.sweep.original import outputs

__all__ = ["Place", "answer", "find", "follows", "in_another_order"]

NARROW = 8
"Fewer columns of a vector are not taken for a part of it."
Run = Callable[[Tensor], object]
"A network, or a function that runs it."


@dataclass(frozen=True)
class Place:
    "Where a tap's value, or a part of it, stands in a run."

    turn: int  # number of the operation that gave it
    view: Callable[[Tensor], Tensor]  # finds it in what the operation gave
    part: Tensor  # what stands there
    columns: tuple[int, int]  # of the tap's value, from and to
    whole: Tensor | None = None  # all that the operation gave, where other tokens stand beside the map


def answer(net: Run, x: Tensor) -> list[Tensor]:
    "Run the network without gradients; it draws the same random numbers each time."
    torch.manual_seed(0)
    with torch.no_grad():
        return outputs(net(x.clone()))


def find(
    net: Run,  # as its zoo built it
    x: Tensor,
    taps: Mapping[str, Tensor],  # of the body, for the same batch
) -> tuple[list[Tensor], dict[str, list[Place]]]:  # what the network gives, and where each tap stands in its run
    "Find the operations that give a tap's value, bit for bit."
    found: dict[str, list[Place]] = {tap: [] for tap in taps}

    def look(turn: int, given: Tensor) -> None:
        for tap, value in taps.items():
            for view, part, columns in _layouts(given, value):
                if torch.equal(view(given), part):
                    whole = given.clone() if given.numel() > part.numel() else None
                    found[tap].append(Place(turn, view, part, columns, whole))
                    break

    with _Operations(look):
        out = answer(net, x)
    return out, found


def in_another_order(
    net: Run,  # as its zoo built it
    x: Tensor,
    taps: Mapping[str, Tensor],
) -> set[str]:  # those maps whose cells some operation gave in another order
    "Find maps that are put in order for whoever reads them: the network itself works on its cells by windows."
    cells = {tap: _sorted(value.flatten(2)) for tap, value in taps.items() if value.ndim == 4}
    found: set[str] = set()

    def look(turn: int, given: Tensor) -> None:
        for tap, value in cells.items():
            if tap not in found and given.numel() == value.numel() and given.shape[-1] == value.shape[1]:
                mine = given.reshape(value.shape[0], -1, value.shape[1]).transpose(1, 2)
                if torch.equal(_sorted(mine), value):
                    found.add(tap)

    with _Operations(look):
        answer(net, x)
    return found


def _sorted(channels: Tensor) -> Tensor:
    return channels.sort(2).values


def follows(
    net: Run,
    other: Tensor,  # another batch
    places: Sequence[Place],  # of a tap in the run of the first
    whole: bool = False,  # with the tokens that stand beside it
) -> list[Tensor]:
    "Run the other batch with the first one's values in their places, and return what the network gives."
    at = {place.turn: place for place in places}

    def put(turn: int, given: Tensor) -> None:
        if turn in at and whole and at[turn].whole is not None:
            given.copy_(at[turn].whole)
        elif turn in at:
            at[turn].view(given).copy_(at[turn].part)

    with _Operations(put):
        return answer(net, other)


def _layouts(given: Tensor, value: Tensor) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, tuple[int, int]]]:
    "Give the ways in which what an operation gave may hold a tap's value."
    width = value.shape[1]
    if given.ndim < 2 or given.shape[0] != value.shape[0]:
        return
    if given.shape == value.shape:
        yield _same, value, (0, width)
    if value.ndim == 4:
        yield from ((view, value, (0, width)) for view in _maps(given.shape, *value.shape[1:]))
    elif given.ndim > 2 and given.numel() == value.numel() and given.is_contiguous():
        yield lambda t: t.view(value.shape), value, (0, width)
    elif given.ndim == 3 and given.shape[2] == width:
        yield _first_token, value, (0, width)
    elif given.ndim == 2 and NARROW <= given.shape[1] < width:
        starts = (value[:, : width - given.shape[1] + 1] == given[:, :1]).all(0).nonzero().flatten().tolist()
        for start in starts:
            end = start + given.shape[1]
            yield _same, value[:, start:end], (start, end)


def _same(given: Tensor) -> Tensor:
    return given


def _first_token(given: Tensor) -> Tensor:
    return given[:, 0]


def _maps(shape: torch.Size, channels: int, height: int, width: int) -> Iterator[Callable[[Tensor], Tensor]]:
    "Give the layouts of a map: channels last, in tokens with others before or after them, or flat."
    cells = height * width
    if shape[1:] == (height, width, channels):
        yield lambda t: t.permute(0, 3, 1, 2)
    if len(shape) == 3 and shape[2] == channels and shape[1] >= cells:
        yield lambda t: t[:, t.shape[1] - cells :].transpose(1, 2).unflatten(2, (height, width))
        yield lambda t: t[:, :cells].transpose(1, 2).unflatten(2, (height, width))
    if shape[1:] == (channels, cells):
        yield lambda t: t.unflatten(2, (height, width))


class _Operations(TorchDispatchMode):
    "Calls a function with the number of every operation and each tensor that it gave."

    def __init__(self, tell: Callable[[int, Tensor], None]):
        super().__init__()
        self.tell, self.turn = tell, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for given in outputs(out):
            self.turn += 1
            self.tell(self.turn, given)
        return out
