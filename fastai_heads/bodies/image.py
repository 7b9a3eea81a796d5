"""The body of an image: an arch, cut and tapped, that gives a tensor for every place that a head reads."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any

from fastai.data.transforms import Normalize
from fasttransform import Transform
from torch import Tensor, nn

from fastai_heads.archs.points import Parts, all_taps, parts_of, sort_out
from fastai_heads.archs.probe import on_meta
from fastai_heads.archs.proof.equality import cut_off
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Level, Measured, Network, Removed, TapPoint
from fastai_heads.archs.source import Request, find_network
from fastai_heads.bodies.contract import Body, Found, tap_key
from fastai_heads.errors import MISFITS, HeadsError, first_line
from fastai_heads.modes import same_random
from fastai_heads.values import check_value

__all__ = ["ImageBody", "cut_body", "find_image"]


class ImageBody(Body):
    "A network up to the furthest tap in use. Its parameters keep the arch's own names under `net.`."

    input_names = ("image",)

    def __init__(
        self,
        network: Network,  # found and built; its `net` is cut in place
        taps: Iterable[str | int | Level],  # names, or strides
        measured: Measured | None = None,  # if it was measured already
    ):
        super().__init__()
        measured = measured or network.cut.measure(network.net, network.shape)
        self.arch, self.zoo, self.weights = network.name, network.zoo, network.weights
        self.n_in, self.mean, self.std = network.n_in, network.mean, network.std
        self.input_size, self._least_size, self._shape = network.fixed_size, network.least_size, network.shape
        self.cut, self.net, self.options = network.cut, network.net, dict(network.options)
        self.points: tuple[TapPoint, ...] = all_taps(network, measured)
        self.unlisted: tuple[TapPoint, ...] = measured.by_hand
        self.use_taps(taps)
        before = parts_of(network.net)
        cut_off(network, self.taps, measured)
        parts: Parts = sort_out(before, self.net, measured)
        self.removed: tuple[Removed, ...] = parts.removed
        self.left_out: tuple[Removed, ...] = parts.left_out
        self._fits: dict[tuple[int, ...], str] = {}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        "Give the tensor at every tap, in the order of `taps`."
        found = self.cut.run(self.net, x, self.taps)
        found[INPUT] = x
        return self.through_taps(found)

    def transforms(self) -> list[Transform]:
        "List `Normalize` with the mean and deviation that the weights in use were trained with."
        return [] if self.mean is None else [Normalize.from_stats(self.mean, self.std)]

    def held(self) -> list[nn.Parameter]:
        "List all parameters: a network without weights of the zoo's may be the user's own, trained elsewhere."
        return list(self.parameters())

    @property
    def one_stride(self) -> bool:
        "Whether every inner map has the same stride, as of a ViT: levels are made of the last one then."
        return len({p.stride for p in self._inner}) == 1

    @property
    def _inner(self) -> list[TapPoint]:
        return [p for p in self.points if p.name not in _NOT_INNER and p.stride is not None]

    def level_source(
        self,
        level: Level,  # a stride
    ) -> str | None:  # its canonical name; None for an optional level that the arch does not have
        """Find the tap that a level is, or is made of: the deepest at that stride; of an arch with one stride the last
        map, for two halvings or doublings at most; else the nearest within a factor of 2 (strides no powers of 2)."""
        inner = self._inner
        exact = [p.name for p in inner if p.stride == level.stride]
        if self.one_stride and not level.optional and 0.25 <= level.stride / inner[0].stride <= 4:
            return FEATURES if any(p.name == FEATURES and p.stride for p in self.points) else inner[-1].name
        if exact or level.optional:
            return exact[-1] if exact else None
        near = [p for p in inner if level.stride / 2 < p.stride < level.stride * 2]
        if not near:
            raise self._no_stride(level.stride, level)
        return min(reversed(near), key=lambda p: abs(math.log2(p.stride / level.stride))).name

    def tap_name(
        self,
        tap: str | int,  # a tap's name, or a stride
    ) -> str:
        "Find the canonical name: of a stride, the deepest inner tap that has it."
        known = {p.name for p in (*self.points, *self.unlisted)}
        inner = [p for p in self.points if p.name not in _NOT_INNER]
        if isinstance(tap, int) and not isinstance(tap, bool):
            at = [p.name for p in inner if p.stride == tap]
            if at:
                return at[-1]
            raise self._no_stride(tap, tap)
        if tap in (PRE_LOGITS, FEATURES) and tap not in known:
            why = f"{self.arch} has none: {self.cut.no_vector}" if tap == PRE_LOGITS else self.cut.no_features
            raise HeadsError(f"`tap={tap!r}`: {why}.", tap=tap)
        return super().tap_name(tap)

    def _no_stride(self, stride: int, tap: int | Level) -> HeadsError:
        strides = ", ".join(str(s) for s in sorted({p.stride for p in self.points if p.name not in _NOT_INNER}))
        message = f"`tap={stride}`: {self.arch} has no tap at that stride. Its strides: {strides}."
        return HeadsError(message, tap=tap)

    @property
    def min_size(self) -> int:
        "The smallest side of an image that the body takes: the declared one, else found by trying."
        if self.input_size or self._least_size:
            return self.input_size or self._least_size
        sides = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        return next((s for s in sides if not self._misfit((2, self.n_in, s, s))), self._shape[-1])

    def check_inputs(
        self,
        inputs: tuple[Tensor, ...],  # one batch of images, or one image
    ) -> None:
        "Refuse images whose channels or size the body cannot take."
        if len(inputs) != 1:
            raise HeadsError(
                f"`dls` has {len(inputs)} inputs (`n_inp`), and this body takes one image: "
                "pass `n_inp=1` to the DataBlock."
            )
        if not isinstance(inputs[0], Tensor) or inputs[0].ndim not in (3, 4):
            found = tuple(inputs[0].shape) if isinstance(inputs[0], Tensor) else type(inputs[0]).__name__
            raise HeadsError(f"the body of {self.arch} takes images (B, C, H, W), found {found}.")
        n_in, height, width = tuple(inputs[0].shape)[-3:]
        if n_in != self.n_in:
            raise HeadsError(
                f"`n_in`: the body of {self.arch} takes images of {self.n_in} channels, found {n_in}; "
                f"give n_in={n_in} when it is cut."
            )
        if self.input_size and (height, width) != (self.input_size, self.input_size):
            raise HeadsError(
                f"image size: {self.arch} takes {self.input_size}×{self.input_size} pixels only, "
                f"found {height}×{width}."
            )
        why = self._misfit((2, n_in, height, width))
        if why:
            raise HeadsError(
                f"image size: {self.arch} cannot take {height}×{width} pixels; "
                f"the smallest side that it takes is {self.min_size}. ({why})"
            )

    def size_of(
        self,
        inputs: tuple[Tensor, ...],  # one batch of images
    ) -> str:
        "Say how many pixels images have."
        height, width = inputs[0].shape[-2:]
        return f"{height}×{width} pixels"

    def other_sizes(
        self,
        inputs: tuple[Tensor, ...],  # one batch of images, which the network cannot take
    ) -> Iterator[tuple[Tensor, ...]]:  # each a batch of one
        "Make larger square images, of zeros."
        _, channels, height, width = inputs[0].shape
        for side in () if self.input_size else _SIDES:
            if side > min(height, width):
                yield (inputs[0].new_zeros(1, channels, side, side),)

    def _misfit(self, shape: tuple[int, ...]) -> str:
        "Say why images of that shape cannot be taken, '' if they can."
        if shape not in self._fits:
            try:
                on_meta(self.net, shape, lambda net, x: self.cut.run(net, x, self.taps) and None)
                self._fits[shape] = ""
            except MISFITS as e:
                self._fits[shape] = first_line(e)
        return self._fits[shape]

    def tap_also(
        self,
        tap: str | int,  # a tap's name, or a stride
    ) -> str:  # its canonical name
        "Gives one tap more, if the body still reaches it; else a `HeadsError`, as what no tap needed is not kept."
        name = self.tap_name(tap)
        if name in self.taps:
            return name
        taps, found = (*self.taps, name), []
        try:
            on_meta(
                self.net, self._shape, lambda net, x: found.append(self.cut.run(net, x, taps).get(name, x).shape[1])
            )
        except MISFITS:
            found = []
        if name != INPUT and found != [self.point(name).channels]:
            raise HeadsError(
                f"`tap={tap!r}`: this body of {self.arch} ends before it, at {', '.join(self.taps)}. "
                "Read one of those, or make the learner again with all its heads.",
                tap=tap,
            )
        self.taps, self.tap_modules[tap_key(name)] = taps, nn.Identity()
        return name

    def groups(self) -> list[list[nn.Parameter]]:
        "List the parameters in two groups, early and late; for archs that fastai knows, fastai's split."
        return self.cut.groups(self.net)

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, taps={self.taps}, n_in={self.n_in}"


_BUILT_SIDES = (*range(32, 513, 32), *range(48, 513, 32), *range(56, 519, 14))  # of whole patches
_SIDES = (32, 64, 96, 128, 192, 256, 384, 512)  # of images that are tried where a size cannot be taken
_NOT_INNER = frozenset({"input", "features", "pre_logits"})


@same_random()
def cut_body(
    arch: str | Callable[..., nn.Module] | nn.Module,  # a name, a function, a network, or a body
    taps: Iterable[str | int | Level] | str | int = ("features",),  # names, or strides
    *,
    pretrained: bool = True,  # with the arch's default weights; a network that is built keeps its own
    weights: Enum | str | None = None,  # torchvision: a member of its enum or the name; timm: a tag
    n_in: int = 3,  # channels of the image
    grad_checkpointing: bool = False,  # compute activations again in the backward pass, to save memory
    **arch_kwargs: Any,  # for the arch
) -> ImageBody:
    "Cut an arch: give it without what the taps do not need."
    taps = (taps,) if isinstance(taps, str | int) or not isinstance(taps, Iterable) else tuple(taps)
    kwargs = {"pretrained": pretrained, "weights": weights, "n_in": n_in, "grad_checkpointing": grad_checkpointing}
    return find_image(arch, **kwargs, **arch_kwargs).build(taps)


def find_image(
    arch: str | Callable[..., nn.Module] | nn.Module,  # as for `cut_body`
    *,
    pretrained: bool = True,  # as for `cut_body`, and so are the others
    weights: Enum | str | None = None,
    n_in: int = 3,
    grad_checkpointing: bool = False,
    **arch_kwargs: Any,
) -> Found:
    "Tell which taps an arch of an image has, and how it is cut for those in use. It can be cut once."
    for name, value in (("pretrained", pretrained), ("grad_checkpointing", grad_checkpointing)):
        check_value(name, "an arch", value, isinstance(value, bool), "True or False")
    if isinstance(arch, ImageBody):
        ready = frozenset(p.name for p in (*arch.points, *arch.unlisted) if p.name not in arch.taps)
        return Found((*arch.points, *arch.unlisted), lambda taps: _recut(arch, tuple(taps)), ready)
    network = find_network(Request(arch, pretrained, weights, n_in, arch_kwargs))
    network.options = arch_kwargs
    measured = _measured(network, arch_kwargs)
    if grad_checkpointing:
        network.cut = network.cut.add_checkpoints(network.net)
    points = (*all_taps(network, measured), *measured.by_hand)
    unlisted = frozenset(p.name for p in measured.by_hand)
    return Found(points, lambda taps: ImageBody(network, taps, measured), unlisted)


def _measured(network: Network, arch_kwargs: dict[str, Any]) -> Measured:
    """Measure the taps; an error of the run names the size of the images and what the arch was built with. A ready
    network of one size does not always say which it was built for, and that is found by trying."""
    try:
        return network.cut.measure(network.net, network.shape)
    except MISFITS as e:
        declared, given = network.size, ", ".join(f"{k}={v!r}" for k, v in arch_kwargs.items())
        for side in _BUILT_SIDES if network.fixed_size and not arch_kwargs else ():
            network.size = network.fixed_size = side
            with suppress(*MISFITS):
                return network.cut.measure(network.net, network.shape)
        raise HeadsError(
            f"`arch`: {network.name}{given and f' with {given}'} cannot take {declared}×{declared} pixels: "
            f"{first_line(e)}"
        ) from e


def _recut(body: ImageBody, taps: tuple[str | int | Level, ...]) -> ImageBody:
    names = body.tap_names(taps)
    if names == body.taps:
        return body
    raise HeadsError(
        f"`taps`: this body of {body.arch} was cut for {', '.join(body.taps)}, found {', '.join(names)}; "
        "cut it again from the arch."
    )
