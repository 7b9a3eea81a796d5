"""Places in a network's run: which tensor of which call of which module, and how a head sees it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

__all__ = ["Cells", "Enough", "Item", "Place", "Tokens", "View", "catch", "leaves", "sight"]

Item = tuple[object, ...]
"Where a tensor stands in what a module gives: () the thing itself, (0,) the first of a tuple, ('logits',) of a dict."
MOST_PREFIX = 16
"Tokens, at most, that may stand before those of an image's cells."


class Enough(Exception):
    "Ends a forward pass at the furthest place."


@dataclass(frozen=True)
class Tokens:
    "A sequence (B, N, C) as a map: the cells of the image after some tokens more."

    prefix: int  # tokens before those of the cells
    batch_first: bool = True  # or (N, B, C)

    def __call__(self, x: Tensor, image: torch.Size) -> Tensor:
        "Return the map (B, C, H, W)."
        x = x if self.batch_first else x.transpose(0, 1)
        height, width = _grid(x.shape[1] - self.prefix, image)
        cells = x[:, self.prefix :]
        return cells.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Cells:
    "A flattened map (B, C·H·W) as it was before."

    shape: tuple[int, int, int]  # channels, height, width

    def __call__(self, x: Tensor, image: torch.Size) -> Tensor:
        "Return the map (B, C, H, W)."
        return x.reshape(x.shape[0], *self.shape)


def channels_last(x: Tensor, image: torch.Size) -> Tensor:
    "Turn a map (B, H, W, C) into (B, C, H, W)."
    return x.permute(0, 3, 1, 2).contiguous()


View = Callable[[Tensor, torch.Size], Tensor]


@dataclass(frozen=True)
class Place:
    "One tensor in a network's run."

    path: str  # of a module, '' for the network itself
    call: int = 0  # which of its calls
    before: bool = False  # what it is given; else what it gives
    item: Item = ()  # where the tensor stands in that
    view: View | None = None  # how a head sees it; None: as it is

    def __str__(self) -> str:
        call = f"#{self.call}" if self.call else ""
        return f"{'input of ' if self.before else ''}{self.path or 'the output'}{call}"

    def seen(self, x: Tensor, image: torch.Size) -> Tensor:
        "Return the tensor as a head sees it."
        return self.view(x, image) if self.view else x


def leaves(value: object, item: Item = ()) -> Iterator[tuple[Item, Tensor]]:
    "Yield every tensor in what a module gives or is given, with its place in it."
    if isinstance(value, Tensor):
        yield item, value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from leaves(v, (*item, k))
    elif isinstance(value, tuple | list):
        for i, v in enumerate(value):
            yield from leaves(v, (*item, i))
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves(getattr(value, f.name), (*item, f.name))


@contextmanager
def catch(
    net: nn.Module,
    places: Mapping[str, Place],  # by a name
    take: Callable[[str, Tensor], None],  # is given the name and the tensor, when the run is there
) -> Iterator[None]:
    "Call `take` at each of the places that a run inside comes to."
    by_module: dict[str, dict[str, Place]] = {}
    for name, place in places.items():
        by_module.setdefault(place.path, {})[name] = place
    handles = []
    for path, here in by_module.items():
        handles += _watch(net.get_submodule(path), here, take)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, places: Mapping[str, Place], take: Callable[[str, Tensor], None]) -> list:
    "Hook the places of one module and count its calls."
    calls = [-1]

    def look(value: object, before: bool) -> None:
        wanted = [(n, p) for n, p in places.items() if p.before == before and p.call == calls[0]]
        found = dict(leaves(value)) if wanted else {}
        for name, place in wanted:
            take(name, found[place.item])

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls[0] += 1
        look((args, kwargs), True)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(lambda module, args, out: look(out, False)),
    ]


def sight(
    x: Tensor,  # of a batch of square images
    image: torch.Size,  # shape of that batch
) -> tuple[bool, View | None]:  # whether it can be seen as a map, and how
    "Tell whether a tensor is a map with more than one cell: a map, one with its channels last, or tokens of its cells."
    if not x.is_floating_point() or x.ndim not in (3, 4) or image[0] not in x.shape[:2]:
        return False, None
    if x.ndim == 4:
        if x.shape[1] == x.shape[2] != x.shape[3] and x.shape[1] > 1:
            return x.shape[0] == image[0], channels_last
        return x.shape[0] == image[0] and min(x.shape[-2:]) > 1, None
    batch_first = x.shape[0] == image[0]
    n = x.shape[1] if batch_first else x.shape[0]
    prefix = next((p for p in range(min(n, MOST_PREFIX)) if _is_grid(n - p, image)), None)
    return prefix is not None, None if prefix is None else Tokens(prefix, batch_first)


def _is_grid(n: int, image: torch.Size) -> bool:
    side = math.isqrt(n)
    return side > 1 and side * side == n and image[-1] % side == 0


def _grid(n: int, image: torch.Size) -> tuple[int, int]:
    "Find rows and columns of n cells in the proportion of the image."
    height = max(1, round(math.sqrt(n * image[-2] / image[-1])))
    while n % height:
        height -= 1
    return height, n // height
