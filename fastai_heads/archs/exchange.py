"""The proof for a network of unknown code: a value of one batch in the run of another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastai_heads.archs.listening import Event, Seen
from fastai_heads.archs.places import Enough, Item, Place, catch, leaves
from fastai_heads.errors import MISFITS
from fastai_heads.modes import evaluate

__all__ = ["Exchange", "exchanging"]

SIDE = 64
"Side of the image that is tried first: what is proved does not depend on it."


class Exchange:
    "Two batches of images, what the network makes of each, and what stood on the way of the first."

    def __init__(self, net: nn.Module, x: Tensor, answers: tuple[Item, ...], traced_side: int):
        self.net, self.answers = net, answers
        self.x = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
        self.other = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
        self.scaled = self.x.shape[-1] != traced_side
        self.out, there = self._answers(self.run(self.x)), self._answers(self.run(self.other))
        self.varies = any(not torch.equal(a, b) for a, b in zip(self.out, there))
        self.held: dict[Place, Tensor] = {}

    def run(self, x: Tensor) -> object:
        "Run the network; it draws the same random numbers each time."
        torch.manual_seed(0)
        return self.net(x.clone())

    def _answers(self, out: object) -> list[Tensor]:
        found = dict(leaves(out))
        return [found[item].clone() for item in self.answers]

    def hold(self, places: Iterable[Place]) -> None:
        "Keep what stands at the places in the run of the first batch."
        wanted = {str(i): p for i, p in enumerate(places) if p not in self.held}
        if wanted:
            with catch(self.net, wanted, lambda name, value: self.held.setdefault(wanted[name], value.clone())):
                self.run(self.x)

    def equal(self, a: Place, b: Place) -> bool:
        "Tell whether the same value stands at both, bit for bit."
        self.hold((a, b))
        return torch.equal(self.held[a], self.held[b])

    def resized(self, event: Event) -> bool:
        "Tell whether a map has as many cells for images of another size, as after an adaptive pool."
        return self.scaled and self.held[event.place].shape == event.value.shape

    def proves(self, *places: Place) -> bool:
        """Tell whether all of the output passes through the places, which have one value: that of the first batch put
        there in the run of the second gives what the network gave for the first."""
        self.hold(places)
        value = self.held[places[0]]

        def put(name: str, there: Tensor) -> None:
            if name == "0" and torch.equal(there, value):
                raise Enough  # it does not depend on the image
            there.copy_(value)  # whoever has it, reads this now

        try:
            with catch(self.net, {str(i): p for i, p in enumerate(places)}, put):
                got = self._answers(self.run(self.other))
        except (Enough, RuntimeError):  # of torch: several numbers of the value lie in one place
            return False
        return all(torch.equal(a, b) or torch.equal(a, value) for a, b in zip(self.out, got, strict=True))


@contextmanager
def exchanging(net: nn.Module, seen: Seen) -> Iterator[Exchange]:
    "Give an exchange on the smallest image that works. Parameters of zeros are random inside, as they hide paths."
    zeros = [p for p in net.parameters() if not p.any()]
    devices = [seen.image.device] if seen.image.is_cuda else []
    with evaluate(net), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        for p in zeros:
            p.normal_(std=0.1)
        try:
            yield _smallest(net, seen)
        finally:
            for p in zeros:
                p.zero_()


def _smallest(net: nn.Module, seen: Seen) -> Exchange:
    if seen.side > SIDE:
        try:
            return Exchange(net, seen.image[..., :SIDE, :SIDE], seen.answers(), seen.side)
        except MISFITS:
            pass
    return Exchange(net, seen.image, seen.answers(), seen.side)
