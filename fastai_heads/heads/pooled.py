"""The head of fastai's `vision_learner`: pool, flatten, then batch norm, dropout and linear layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from fastai.layers import AdaptiveConcatPool2d, Flatten, apply_init
from fastai.vision.learner import create_head
from fastcore.foundation import L
from torch import Tensor, nn

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.spec import HeadSpec, TapShape, is_number

__all__ = ["POOLS", "JoinedHead", "PooledHead", "PooledSpec"]

POOLS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # name → (the pool of a map, its width per channel)
    "concat": (AdaptiveConcatPool2d, 2),
    "avg": (lambda: nn.AdaptiveAvgPool2d(1), 1),
    "max": (lambda: nn.AdaptiveMaxPool2d(1), 1),
}


class PooledHead(nn.Module):
    "fastai's `create_head`, layer for layer, its pool apart so that heads on one tap can share it."

    def __init__(
        self,
        n_in: int,  # channels of the map, or width of the vector
        n_out: int,  # numbers per image
        pool: str | None = "concat",  # a key of `POOLS`; None: the input is a vector (B, n_in) already
        **head_kwargs,  # `lin_ftrs`, `ps`, `first_bn`, `bn_final`, `lin_first`, `y_range` of `create_head`
    ):
        super().__init__()
        make_pool, width = POOLS[pool] if pool else (None, 1)
        self.pool_name = pool
        self.pool = nn.Sequential(make_pool(), Flatten()) if pool else nn.Sequential()
        self.layers = create_head(n_in * width, n_out, pool=False, concat_pool=False, **head_kwargs)

    @property
    def pools(self) -> tuple[tuple[str | None, nn.Module], ...]:
        "(name, pool) of every tap that it reads."
        return ((self.pool_name, self.pool),)

    def forward(
        self,
        x: Tensor,  # (B, n_in, H, W), or what `pool` makes of it, (B, n_in * width)
    ) -> Tensor:  # (B, n_out)
        return self.layers(self.pool(x) if x.ndim > 2 else x)


class JoinedHead(nn.Module):
    "fastai's `create_head` on several taps: each is pooled if it is a map, and all are concatenated."

    def __init__(
        self,
        widths: Sequence[int],  # of the taps: channels of a map, or width of a vector
        n_out: int,  # numbers per item
        pools: Sequence[str | None],  # of the taps, as for `PooledHead`
        **head_kwargs,  # as for `PooledHead`
    ):
        super().__init__()
        self.pool_names = tuple(pools)
        self.pool = nn.ModuleList(nn.Sequential(POOLS[p][0](), Flatten()) if p else nn.Sequential() for p in pools)
        n_in = sum(width * (POOLS[p][1] if p else 1) for width, p in zip(widths, pools))
        self.layers = create_head(n_in, n_out, pool=False, concat_pool=False, **head_kwargs)

    @property
    def pools(self) -> tuple[tuple[str | None, nn.Module], ...]:
        "(name, pool) of every tap that it reads."
        return tuple(zip(self.pool_names, self.pool))

    def forward(
        self,
        *taps: Tensor,  # (B, C, H, W) each, or what its pool makes of it, (B, C)
    ) -> Tensor:  # (B, n_out)
        return self.layers(torch.cat([pool(x) if x.ndim > 2 else x for pool, x in zip(self.pool, taps)], 1))


@dataclass(frozen=True, kw_only=True)
class PooledSpec(HeadSpec):
    """A head that is fastai's `create_head`, on one tap or several. Maps are pooled, several taps concatenated.

    Its last layer starts small, so that a loss begins near that of no prediction and the first steps do not undo the
    start: it learns faster. With `last_scale=1` it starts as fastai's, bit for bit.

    Source: `fastai.vision.learner.create_head`, `add_head`."""

    lin_ftrs: Sequence[int] | None = None  # widths of the hidden layers; None: (512,)
    ps: float | Sequence[float] = 0.5  # dropout, of the last layer (half of it before) or of each
    pool: str | None = "concat"  # 'concat', 'avg', 'max' of a map; a vector such as `pre_logits` is never pooled
    first_bn: bool = True  # batch norm before the first linear layer
    bn_final: bool = False  # batch norm after the last
    lin_first: bool = False  # linear before batch norm and dropout
    y_range: tuple[float, float] | None = None  # the output is squeezed into this range by a sigmoid
    init: Callable | None = nn.init.kaiming_normal_  # initialises the linear layers; None: torch's own
    last_scale: float = 0.05  # the last layer's weights times this at the start; 1: as `create_head` starts
    from_probe: bool = False  # start where a linear probe of the taps ends; for a linear head, `lin_ftrs=[]`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is not None and (not isinstance(self.pool, str) or self.pool not in POOLS):
            expected = ", ".join(map(repr, POOLS))
            raise HeadsError(
                f"`pool` of {self.label} is one of {expected} or None, found {self.pool!r}."
                + did_you_mean(self.pool, POOLS)
            )
        ends = _numbers(self.y_range)
        ordered = ends is not None and len(ends) == 2 and ends[0] < ends[1]
        self.check("y_range", self.y_range is None or ordered, "(low, high) with low < high")
        widths = [] if self.lin_ftrs is None else _numbers(self.lin_ftrs)
        whole = widths is not None and all(isinstance(w, Integral) and w > 0 for w in widths)
        self.check("lin_ftrs", whole, "a list of the hidden layers' widths, such as [512]")
        layers = 2 if self.lin_ftrs is None else len(widths) + 1
        ps = [self.ps] if is_number(self.ps) else _numbers(self.ps)
        fits = ps is not None and all(0 <= p < 1 for p in ps) and len(ps) in (1, layers)
        self.check("ps", fits, f"one dropout in [0, 1) or one for each of its {layers} linear layers")
        self.check("init", self.init is None or callable(self.init), "a function of a weight, or None")
        for field in ("first_bn", "bn_final", "lin_first"):
            self.check(field, isinstance(getattr(self, field), bool), "True or False")
        self.check("last_scale", is_number(self.last_scale, least=0), "a finite number of at least 0")
        self.check("from_probe", isinstance(self.from_probe, bool), "True or False")
        linear = self.lin_ftrs is not None and not len(self.lin_ftrs) and self.first_bn and not self.bn_final
        if self.from_probe and (not linear or self.lin_first):
            raise HeadsError(
                f"`from_probe` of {self.label} is for batch norm and one linear layer: pass `lin_ftrs=[]`, and leave "
                "`first_bn`, `bn_final` and `lin_first` as they are.",
                parameter="from_probe",
            )

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        "Build fastai's head on the taps; a vector is not pooled, a map needs a `pool`. Refuses a sequence."
        levels = [tap.name for tap in taps if isinstance(self.tap, str) and tap.name.startswith(f"{self.tap}.")]
        if len(taps) > 1 and levels:
            names = ", ".join(map(repr, levels))
            raise HeadsError(
                f"`tap={self.tap!r}` of {self.label}: a pooled head reads one of its levels: {names}.", tap=self.tap
            )
        for tap in taps:
            self._check_tap(tap)
        pools = [None if tap.stride is None else self.pool for tap in taps]
        widths = [tap.channels for tap in taps]
        if len(taps) == 1:
            head = PooledHead(widths[0], self.n_out, pools[0], **self.head_kwargs())
        else:
            head = JoinedHead(widths, self.n_out, pools, **self.head_kwargs())
        if self.init is not None:
            apply_init(head, self.init)
        _scale_last(head.layers, self.last_scale)
        return head

    def _check_tap(self, tap: TapShape) -> None:
        if tap.stride is not None and self.pool is None:
            raise HeadsError(
                f"`pool=None` of {self.label} is for vectors such as `tap='pre_logits'`, and {tap.name!r} is a map: "
                f"pass `pool='concat'`, 'avg' or 'max'.",
                tap=tap.name,
            )
        if tap.sequence:
            whole = f"{tap.name.rpartition('.')[0]}.features".lstrip(".")
            raise HeadsError(
                f"`tap` of {self.label}: {tap.name!r} is a sequence (B, L, {tap.channels}), which it does not pool: "
                f"read {whole!r}, or the sequence by a `CustomHead` or a `Trunk`.",
                tap=tap.name,
            )

    def head_kwargs(self) -> dict:
        "Return the options of `create_head` that the spec fixes, in the form that it takes them."
        return {
            "lin_ftrs": None if self.lin_ftrs is None else list(self.lin_ftrs),
            "ps": self.ps if is_number(self.ps) else list(self.ps),
            "first_bn": self.first_bn,
            "bn_final": self.bn_final,
            "lin_first": self.lin_first,
            "y_range": self.y_range,
        }


def _scale_last(layers: nn.Sequential, scale: float) -> None:
    "Scale the weights of the last layer that has some: the linear one, or the batch norm after it."
    last = next(layer for layer in reversed(layers) if getattr(layer, "weight", None) is not None)
    with torch.no_grad():
        last.weight.mul_(scale)


def _numbers(value: object) -> list | None:
    "Return finite numbers as a list, anything else as None."
    listed = isinstance(value, Sequence | L) and not isinstance(value, str)
    return list(value) if listed and all(is_number(v) for v in value) else None
