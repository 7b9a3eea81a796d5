"""One run of an unknown network on random images, and all that was seen at its modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fastai_heads.archs.places import Cells, Place, View, leaves, sight
from fastai_heads.archs.probe import fits
from fastai_heads.errors import MISFITS, HeadsError, first_line
from fastai_heads.modes import evaluate

__all__ = ["Event", "Seen", "run_once"]

SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384)
"Sides of the image that are tried first, in this order."
OTHER_SIDES = (*range(16, 513, 8), *range(16, 513))
"Sides that are tried, on paper, for a network that takes none of those."


@dataclass(frozen=True)
class Event:
    "A tensor that a module was given, or gave."

    time: int  # its turn in the run
    place: Place
    value: Tensor
    key: tuple[int, int, int] | None  # where its numbers lie, how many, and how often they were changed
    module: nn.Module | None

    @property
    def trained(self) -> bool:
        "Tell whether the module has parameters of its own."
        return self.module is not None and any(True for _ in self.module.parameters(recurse=False))

    @property
    def weighted(self) -> bool:
        "Tell whether the module has weights of its own, more than a number for each channel."
        return self.module is not None and any(p.ndim > 1 for p in self.module.parameters(recurse=False))


@dataclass
class Seen:
    "What one run showed."

    image: Tensor  # the batch
    out: object = None  # what the network gave
    events: list[Event] = field(default_factory=list)  # in time
    calls: dict[str, int] = field(default_factory=dict)  # how often each module ran

    @property
    def side(self) -> int:
        "Return the side of the image."
        return self.image.shape[-1]

    def sight(self, x: Tensor) -> tuple[bool, View | None]:
        "Tell whether a tensor is a map, and how it is seen as one."
        return sight(x, self.image.shape)

    def shape(self, event: Event) -> torch.Size:
        "Return the shape of the map that a head sees."
        return event.place.seen(event.value, self.image.shape).shape

    def note(self, module: nn.Module, path: str, value: object, before: bool) -> None:
        "Add what a module was given, or gave, if it is one tensor."
        found = list(leaves(value))
        if len(found) != 1 or not path:
            return
        item, x = found[0]
        place = Place(path, self.calls[path] - 1, before, item)
        is_map, view = self.sight(x)
        if is_map:
            place = replace(place, view=view)
        self.events.append(Event(len(self.events), place, x, _key(x), module))

    def answers(self) -> tuple[tuple[object, ...], ...]:
        "Find where in its output the network's answers stand: what no module of it reads, or all."
        read = {e.key for e in self.events if e.place.before}
        every = list(leaves(self.out))
        return tuple(item for item, x in every if _key(x) not in read) or tuple(item for item, _ in every)

    def maker(self, x: Tensor) -> Event | None:
        "Find the outermost module whose output, and all of it, a tensor is."
        made = [e for e in self.events if not e.place.before and e.key == _key(x) and e.value.shape == x.shape]
        return next((e for e in reversed(made) if self.calls[e.place.path] == 1), None)

    def named_maps(self) -> Iterator[Event]:
        "Yield the maps that are the output of a module which runs once, in time."
        for e in self.events:
            if not e.place.before and self.calls[e.place.path] == 1 and self.sight(e.value)[0]:
                yield e

    def distinct_maps(self) -> list[Event]:
        """Return every map once, the last first: at the outermost module that gives it, or else at the first that is
        given it. A flattened one is seen as it was before."""
        found: dict[tuple, Event] = {}
        start = next((e.time for e in self.events if e.trained), 0)  # what comes before is the image
        for e in self.events[start + 1 :]:
            is_map, _ = self.sight(e.value)
            if is_map and (e.key not in found or not e.place.before):
                found[e.key] = e
            elif e.place.before and e.value.ndim == 2 and (cells := self._unflattened(e.value)):
                found.setdefault(e.key, replace(e, place=replace(e.place, view=cells)))
        return sorted(found.values(), key=lambda e: -e.time)

    def _unflattened(self, x: Tensor) -> Cells | None:
        base = x._base
        if base is None or base.ndim != 4 or base.numel() != x.numel() or not self.sight(base)[0]:
            return None
        return Cells(tuple(base.shape[1:])) if base.is_contiguous() and base.shape[0] == x.shape[0] else None


def _key(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.numel(), x._version


def run_once(
    net: nn.Module,
    n_in: int,  # channels of the image
    name: str,  # for messages
) -> Seen:
    "Run the network on a batch of a size that it takes, and listen to every module."
    if any(isinstance(m, nn.Conv3d) for m in net.modules()):
        raise HeadsError(
            f"`arch`: {name} has convolutions in three dimensions: it takes clips, and a body takes images."
        )
    scripted = [path or name for path, m in net.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise HeadsError(
            f"`arch`: {scripted[0]} is scripted, and scripted code cannot be listened to or cut. "
            "Give the network that it was scripted from; `torch.compile`d ones are taken as they are."
        )
    p = next(net.parameters(), torch.empty(0))
    failures = []
    for side in (*SIDES, *_on_paper(net, n_in)):
        x = torch.rand(2, n_in, side, side, generator=torch.Generator().manual_seed(0)).to(p.device, p.dtype)
        try:
            with evaluate(net), _listening(net, x) as seen:
                seen.out = net(x)
            return seen
        except MISFITS as e:
            failures.append(f"{side}: {first_line(e)}")
    raise HeadsError(
        f"`arch`: {name} takes no batch of images (2, {n_in}, side, side). Sides tried: {'; '.join(failures[:3])}."
    )


def _on_paper(net: nn.Module, n_in: int) -> Iterator[int]:
    "Find the first further side that the network takes without numbers."
    found = next((side for side in dict.fromkeys(OTHER_SIDES) if fits(net, (2, n_in, side, side))), None)
    yield from () if found is None else (found,)


@contextmanager
def _listening(net: nn.Module, x: Tensor) -> Iterator[Seen]:
    seen = Seen(x)

    def enter(path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.calls[path] = seen.calls.get(path, 0) + 1
            seen.note(module, path, (args, kwargs), True)

        return hook

    def leave(path: str):
        return lambda module, args, out: seen.note(module, path, out, False)

    handles = []
    for path, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(path)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
