"""Bodies over several inputs, side by side: one `Body` whose taps are `photo.layer3`, `row.features`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from fastai.data.transforms import Normalize
from fastai.torch_core import TensorBase
from fasttransform import Transform
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastai_heads.archs.records import FEATURES, Level, Removed, TapPoint
from fastai_heads.bodies.contract import Body, BodyPart, tap_key
from fastai_heads.bodies.joined import join, take
from fastai_heads.bodies.owners import has_maps, tap_owner
from fastai_heads.data.inputs import Input
from fastai_heads.errors import HeadsError

__all__ = ["Bodies"]


class Bodies(Body):
    """Several bodies as one. Those over one network (`On('right', same='left')`) run it once, on the joined batch.

    Where an input is missing, the taps of its body are learned vectors: neither the body nor its batch norm sees the
    item. Only the bodies that the taps in use need are computed."""

    zoo = "several"

    def __init__(
        self,
        bodies: Mapping[str, Body],  # name → body; one body under two names is shared by two inputs
        reads: Mapping[str, str],  # name of a body → the input that it reads
        sources: Sequence[Input],  # every input, in the order of the batch
        taps: Iterable[str | int | Level],  # those in use; the bodies give them
    ):
        super().__init__()
        self.reads, self.sources = dict(reads), tuple(sources)
        self.input_names = tuple(source.name for source in sources)
        self.owners = {name: next(n for n, b in bodies.items() if b is body) for name, body in bodies.items()}
        self.bodies = nn.ModuleDict({_key(name): bodies[name] for name in dict.fromkeys(self.owners.values())})
        self.arch = " + ".join(body.arch for body in self.bodies.values())
        self.weights = ", ".join(body.weights for body in self.bodies.values() if body.weights)
        self.points = _prefixed({name: self[name].points for name in self.owners})
        self.unlisted = _prefixed({name: self[name].unlisted for name in self.owners})
        self.use_taps(taps)
        vectors = {tap: self.point(tap).channels for tap in self.taps if self._source(self._split(tap)[0]).partial}
        self.missing = nn.ParameterDict({tap_key(tap): nn.Parameter(torch.zeros(c)) for tap, c in vectors.items()})
        self._rescale()

    def __getitem__(self, name: str) -> Body:
        return self.bodies[_key(self.owners[name])]

    @property
    def names(self) -> tuple[str, ...]:
        "The bodies' names."
        return tuple(self.owners)

    @property
    def removed(self) -> tuple[Removed, ...]:
        "What of the archs was taken off."
        return self._named("removed")

    @property
    def left_out(self) -> tuple[Removed, ...]:
        "Trained layers among them that no tap in use needs."
        return self._named("left_out")

    def _named(self, what: str) -> tuple[Removed, ...]:
        owners = dict.fromkeys(self.owners.values())
        return tuple(replace(r, name=f"{name}.{r.name}") for name in owners for r in getattr(self[name], what))

    def _source(self, name: str) -> Input:
        "Find the input that a body reads."
        return next(s for s in self.sources if s.name == self.reads[name])

    def _split(self, tap: str) -> tuple[str, str]:
        "Take a canonical tap apart: the body's name, and the tap's within it."
        name, _, inner = tap.partition(".")
        return name, inner

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        "Give the tensor at every tap in use, in the order of `taps`."
        wanted = {name for name, _ in map(self._split, self.taps)}
        found: dict[str, Tensor] = {}
        for owner in dict.fromkeys(self.owners.values()):
            users = [name for name in self.names if self.owners[name] == owner and name in wanted]
            if users:
                found |= self._run(owner, users, [self._normalized(name, self._part(name, inputs)) for name in users])
        return self.through_taps(found)

    def _part(self, name: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        "Take the element of a batch that a body reads, as a plain tensor: taps of all bodies are joined."
        found = inputs[[s.name for s in self.sources].index(self.reads[name])]
        return (found.as_subclass(Tensor) if isinstance(found, TensorBase) else found,)

    def _run(self, owner: str, users: list[str], parts: list[tuple[Any, ...]]) -> dict[str, Tensor]:
        "Compute the taps of one network for all that read it, in one pass."
        body = self[owner]
        joined = join(parts, body)
        found, here = (
            self._present(body, joined) if any(self._source(n).partial for n in users) else (body(*joined), None)
        )
        size = (joined[0][0] if isinstance(joined[0], tuple) else joined[0]).shape[0] // len(users)
        out: dict[str, Tensor] = {}
        for i, name in enumerate(users):
            rows = slice(i * size, (i + 1) * size)
            for tap in (t for t in self.taps if self._split(t)[0] == name):
                tensor = found[self._split(tap)[1]]
                out[tap] = tensor[rows] if here is None else self._fill(tap, tensor, here, rows)
        return out

    def _present(self, body: Body, inputs: tuple[Any, ...]) -> tuple[dict[str, Tensor], Tensor]:
        "Compute the taps of the items that are there, and tell (B,) which are."
        here = ~body.absent(*inputs)
        n_here = int(here.sum())
        shown = body.blank(*inputs) if n_here == 0 else take(inputs, here)
        # one item alone has no statistics
        with _still_batch_norm(body) if n_here < 2 else nullcontext():
            return body(*shown), here

    def _fill(self, tap: str, tensor: Tensor, here: Tensor, rows: slice) -> Tensor:
        "Put the learned vector where an item is missing."
        vector = self.missing[tap_key(tap)].to(tensor.dtype)
        shape = {2: (1, -1), 3: (1, 1, -1), 4: (1, -1, 1, 1)}[tensor.ndim]
        blank = vector.view(shape).expand(1, *tensor.shape[1:])
        if tensor.ndim == 3:  # a sequence of one token
            blank = torch.cat([blank[:, :1], torch.zeros_like(blank[:, 1:])], 1)
        every = blank.expand(len(here), *tensor.shape[1:])
        if not here.any():  # the body is reached all the same, for training in several processes
            return (every + 0 * tensor.sum())[rows]
        return every.index_put((here.nonzero()[:, 0],), tensor)[rows]

    def _rescale(self) -> None:
        "Keep what brings images that were normalised for the first body to the statistics of another one."
        self._stats = next((s for s in map(_stats, self.bodies.values()) if s), None)
        for key, body in self.bodies.items():
            own = _stats(body)
            if own and own != self._stats:
                (mean, std), (own_mean, own_std) = (map(torch.tensor, s) for s in (self._stats, own))
                self.register_buffer(f"scale_{key}", (std / own_std).view(1, -1, 1, 1), persistent=False)
                self.register_buffer(f"shift_{key}", ((mean - own_mean) / own_std).view(1, -1, 1, 1), persistent=False)

    def _normalized(self, name: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        scale = getattr(self, f"scale_{_key(self.owners[name])}", None)
        if scale is None:
            return inputs
        return (inputs[0] * scale + getattr(self, f"shift_{_key(self.owners[name])}"),)

    def transforms(self) -> list[Transform]:
        "List `Normalize` with the statistics of the first image's body that has any. The others rescale from those."
        return [] if self._stats is None else [Normalize.from_stats(*self._stats)]

    def absent(self, *inputs: Any) -> Tensor:
        "Tell (B,) which items have none of the inputs."
        gaps = []
        for name in dict.fromkeys(self.reads[n] for n in self.names):
            user = next(n for n in self.names if self.reads[n] == name)
            gaps.append(self[user].absent(*self._part(user, inputs)))
        return torch.stack(gaps).all(0)

    def check_inputs(
        self,
        inputs: tuple[Any, ...],  # of a batch, as they reach `forward`
    ) -> None:
        "Refuse what one of the bodies cannot take, by the input's name, and items without any input."
        if len(inputs) != len(self.sources):
            names = ", ".join(source.name for source in self.sources)
            raise HeadsError(
                f"the bodies read {len(self.sources)} inputs ({names}), and the batch has {len(inputs)} (`n_inp`)."
            )
        for name in self.names:
            source = self._source(name)
            try:
                self[name].check_inputs(self._part(name, inputs))
            except HeadsError as e:
                said = str(e)
                raise HeadsError(said if repr(source.name) in said else f"input {source.name!r}: {said}") from e
        if all(source.partial for source in self.sources):
            bare = self.absent(*inputs).nonzero()[:, 0].tolist()
            if bare:
                raise HeadsError(f"items {bare} of the batch have none of their inputs: drop those rows.")

    def size_of(
        self,
        inputs: tuple[Any, ...],  # of a batch
    ) -> str:
        "Say in a message how large inputs are, and of which type, by name."
        sizes = []
        for source, x in zip(self.sources, inputs):
            body = self[next(name for name in self.names if self.reads[name] == source.name)]
            sizes.append(f"{source.name}: {body.size_of((x,))}" + (f" of {x.dtype}" if isinstance(x, Tensor) else ""))
        return ", ".join(sizes)

    def describe(self) -> list[str]:
        "Say what each body reads and whether it trains, a line each."
        lines = []
        for name, owner in self.owners.items():
            body, source = self[name], self._source(name)
            params = list(body.parameters())
            free = sum(p.requires_grad for p in params)
            state = "trained" if free == len(params) else "frozen in part" if free else "frozen"
            what = body.arch if owner == name else f"the weights of {owner}"
            size = f"{sum(p.numel() for p in params):,} parameters, {state}"
            missing = ", some missing" if source.partial else ""
            lines.append(
                f"{name}: {what} ({body.weights or 'not pretrained'}) on {source.name}, {source.a}{missing}; {size}"
            )
        return lines

    def parts(self) -> list[BodyPart]:
        "List the bodies, each with its own input and taps. One over another's weights says so."
        found = []
        for name, owner in self.owners.items():
            what = self[name].arch if owner == name else f"the weights of {owner}"
            taps = tuple(tap for tap in self.taps if self._split(tap)[0] == name)
            found.append(BodyPart(f"{name}: {what}", self[name], (self.reads[name],), taps))
        return found

    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups: all bodies' early ones; all late ones and what stands for missing inputs."
        early, late = zip(*(body.groups() for body in self.bodies.values()))
        return [[p for group in early for p in group], [*(p for group in late for p in group), *self.missing.values()]]

    def held(self) -> list[nn.Parameter]:
        "List the parameters that `freeze` holds: those of the pretrained bodies."
        return [p for body in self.bodies.values() if body.weights for p in body.held()]

    def restrict(
        self,
        taps: Iterable[str],  # canonical names of those that are wanted
    ) -> "Bodies":
        "Give the same bodies, computing only what these taps need."
        wanted, new = set(taps), copy(self)
        new.taps = tuple(tap for tap in self.taps if tap in wanted)
        owners = {self.owners[self._split(tap)[0]] for tap in new.taps}
        new._modules = dict(self._modules)
        new._modules["bodies"] = nn.ModuleDict({k: b for k, b in self.bodies.items() if k in set(map(_key, owners))})
        return new

    def tap_names(
        self,
        taps: Iterable[str | int | Level],  # names, strides or levels
    ) -> tuple[str, ...]:
        "List the canonical names, each once. `features` is that of every body."
        every = [t for tap in taps for t in (self._every(tap) if tap == FEATURES else [tap])]
        return super().tap_names(every)

    def _every(self, tap: str) -> list[str]:
        return [f"{name}.{tap}" for name in self.names if any(p.name == tap for p in self[name].points)]

    def tap_name(
        self,
        tap: str | int,  # `photo.layer3`, `photo.8`, or a name or stride that one body alone has
    ) -> str:
        "Find the canonical name of a tap. Raises `HeadsError` with the names that there are."
        name, inner = tap_owner(tap, {n: (*self[n].points, *self[n].unlisted) for n in self.names})
        return f"{name}.{self[name].tap_name(inner)}"

    def level_source(
        self,
        level: Level,  # a stride
    ) -> str | None:  # its canonical name; None for an optional level that the arch does not have
        "Find the tap that a level is, or is made of, in the one body that has maps."
        name, _ = tap_owner(level.stride, {n: self[n].points for n in self.names})
        inner = self[name].level_source(level)
        return None if inner is None else f"{name}.{inner}"

    @property
    def one_stride(self) -> bool:
        "Whether every inner map has the same stride, in the one body that has maps."
        maps = [n for n in self.names if has_maps(self[n].points)]
        return len(maps) == 1 and self[maps[0]].one_stride

    def tap_also(
        self,
        tap: str | int,  # a tap's name, or a stride
    ) -> str:  # its canonical name
        "Give one tap more, where the body still reaches it."
        tap = self.tap_name(tap)
        name, inner = self._split(tap)
        self[name].tap_also(inner)
        if tap not in self.taps:
            self.taps, self.tap_modules[tap_key(tap)] = (*self.taps, tap), nn.Identity()
            if self._source(name).partial:
                width = self.point(tap).channels
                self.missing[tap_key(tap)] = nn.Parameter(torch.zeros(width, device=next(self.parameters()).device))
        return tap


def _key(name: str) -> str:
    "Name the module of a body: `nn.ModuleDict` refuses some names."
    return f"body_{name}"


def _prefixed(points: Mapping[str, Iterable[TapPoint]]) -> tuple[TapPoint, ...]:
    return tuple(replace(p, name=f"{name}.{p.name}") for name, found in points.items() for p in found)


def _stats(body: Body) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    "Find the mean and deviation that a body's images are normalised by."
    found = next((t for t in body.transforms() if isinstance(t, Normalize)), None)
    return None if found is None else tuple(tuple(s.flatten().tolist()) for s in (found.mean, found.std))


@contextmanager
def _still_batch_norm(body: nn.Module) -> Iterator[None]:
    "Let batch norm use the statistics that it has, and leave them alone."
    training = [m for m in body.modules() if isinstance(m, _BatchNorm) and m.training]
    for m in training:
        m.eval()
    try:
        yield
    finally:
        for m in training:
            m.train()
