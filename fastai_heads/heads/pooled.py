"""The head of fastai's `vision_learner`: pool, flatten, then batch norm, dropout and linear layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastai.layers import AdaptiveConcatPool2d, Flatten, apply_init
from fastai.vision.learner import create_head
from torch import Tensor, nn

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.spec import HeadSpec, TapShape

__all__ = ["POOLS", "PooledHead", "PooledSpec"]

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

    def forward(
        self,
        x: Tensor,  # (B, n_in, H, W), or what `pool` makes of it, (B, n_in * width)
    ) -> Tensor:  # (B, n_out)
        return self.layers(self.pool(x) if x.ndim > 2 else x)


@dataclass(frozen=True, kw_only=True)
class PooledSpec(HeadSpec):
    """A head that is fastai's `create_head` on one tap. Source: `fastai.vision.learner.create_head`, `add_head`."""

    lin_ftrs: Sequence[int] | None = None  # widths of the hidden layers; None: (512,)
    ps: float | Sequence[float] = 0.5  # dropout, of the last layer (half of it before) or of each
    pool: str | None = "concat"  # 'concat', 'avg', 'max' of a map; a vector such as `pre_logits` is never pooled
    first_bn: bool = True  # batch norm before the first linear layer
    bn_final: bool = False  # batch norm after the last
    lin_first: bool = False  # linear before batch norm and dropout
    y_range: tuple[float, float] | None = None  # the output is squeezed into this range by a sigmoid
    init: Callable | None = nn.init.kaiming_normal_  # initialises the linear layers; None: torch's own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is not None and self.pool not in POOLS:
            expected = ", ".join(map(repr, POOLS))
            raise HeadsError(
                f"`pool` of {self.label} is one of {expected} or None, found {self.pool!r}."
                + did_you_mean(self.pool, POOLS)
            )
        if len(self.taps) != 1:
            raise HeadsError(f"`tap` of {self.label}: a pooled head reads one tap, found {self.tap!r}.")
        if self.y_range is not None and (len(self.y_range) != 2 or not self.y_range[0] < self.y_range[1]):
            raise HeadsError(f"`y_range` of {self.label} is (low, high) with low < high, found {self.y_range!r}.")
        self._check_ps()

    def _check_ps(self) -> None:
        ps = list(self.ps) if isinstance(self.ps, Sequence) else [self.ps]
        layers = len(self.lin_ftrs) + 1 if self.lin_ftrs is not None else 2
        if not all(0 <= p < 1 for p in ps) or len(ps) not in (1, layers):
            raise HeadsError(
                f"`ps` of {self.label} is one dropout in [0, 1) or one for each of its {layers} linear layers, "
                f"found {self.ps!r}."
            )

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        "fastai's head on one tap; a vector is not pooled. A map needs a `pool`."
        tap = taps[0]
        if tap.stride is not None and self.pool is None:
            raise HeadsError(
                f"`pool=None` of {self.label} is for vectors such as `tap='pre_logits'`, and {tap.name!r} is a map: "
                f"pass `pool='concat'`, 'avg' or 'max'."
            )
        head = PooledHead(tap.channels, self.n_out, None if tap.stride is None else self.pool, **self.head_kwargs())
        if self.init is not None:
            apply_init(head, self.init)
        return head

    def head_kwargs(self) -> dict:
        "The options of `create_head` that the spec fixes, in the form that it takes them."
        return {
            "lin_ftrs": None if self.lin_ftrs is None else list(self.lin_ftrs),
            "ps": list(self.ps) if isinstance(self.ps, Sequence) else self.ps,
            "first_bn": self.first_bn,
            "bn_final": self.bn_final,
            "lin_first": self.lin_first,
            "y_range": self.y_range,
        }
