"""One pass of a body over training items: pooled taps, some pixels of maps, and the labels beside them."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fastai.data.core import TfmdDL
from fastai.torch_core import no_random, to_device
from fasttransform import Transform
from torch import Tensor

from fastai_heads.archs.records import INPUT
from fastai_heads.bodies.contract import Body
from fastai_heads.data.files import spread
from fastai_heads.data.missing import IGNORE_PIXEL
from fastai_heads.heads.pooled import POOLS

__all__ = ["Collected", "collect", "plain_batches", "pool_tap"]

PIXELS = 1024  # of all items together, at which maps and masks are read


@dataclass(frozen=True)
class Collected:
    "What a body gave for some training items, and their labels."

    pooled: Mapping[tuple[str, str | None], Tensor]  # (tap, pool) → (n, d)
    labels: Mapping[int, Tensor]  # a target's index → (n, …) encoded; of masks, (n, pixels) codes at the places read
    pixels: Mapping[tuple[str, int], Tensor]  # (tap, a mask's index) → (n, pixels, C) the map at these places
    pass_seconds: float  # processor time of loading the items and of the body

    @property
    def n(self) -> int:
        "How many items there are."
        return len(next(iter(self.labels.values())))


def pool_tap(
    x: Tensor,  # (B, C, H, W) or (B, C)
    pool: str | None,  # as of a pooled head
) -> Tensor:  # (B, d)
    "Make of a tap what the first layer of a pooled head reads."
    return x if x.ndim == 2 else POOLS[pool][0]()(x).flatten(1)


@torch.no_grad()
def collect(
    body: Body,  # with all taps to look at; it is put into evaluation mode
    dl: TfmdDL,  # of the training set; left as it is
    transforms: Sequence[Transform],  # of batches, that the weights in use want
    pools: Iterable[str | None],  # of the pooled heads
    targets: Sequence[int],  # indices of the targets to read
    masks: Sequence[int],  # those of them that are masks
    n: int,  # items at most, spread over the training set
) -> Collected:
    "Run the body over training items, without augmentation. The random state stays as it was."
    pools, seconds = tuple(dict.fromkeys(pools)), 0.0
    pooled: dict[tuple[str, str | None], list[Tensor]] = {}
    labels: dict[int, list[Tensor]] = {i: [] for i in targets}
    pixels: dict[tuple[str, int], list[Tensor]] = {}
    count = min(n, len(dl.dataset))
    each = min(64, max(1, PIXELS // count))
    body.eval()
    start = time.process_time()
    for inputs, batch in plain_batches(dl, transforms, count):
        taps = {tap: x for tap, x in body(*inputs).items() if tap != INPUT}
        seconds += time.process_time() - start
        for tap, x in taps.items():
            for pool in pools:
                key = (tap, None if x.ndim == 2 else pool)
                if x.ndim == 2 or pool is not None:
                    pooled.setdefault(key, []).append(pool_tap(x, pool).float().cpu())
                if x.ndim == 2:
                    break
        for i in targets:
            if i not in masks:
                labels[i].append(batch[i].cpu())
                continue
            places = _places(batch[i], each)
            labels[i].append(batch[i].flatten(1).gather(1, places).cpu())
            for tap, x in taps.items():
                if x.ndim == 4:
                    pixels.setdefault((tap, i), []).append(_read(x, places, batch[i].shape[-2:]).cpu())
        start = time.process_time()
    joined = ({key: torch.cat(parts) for key, parts in found.items()} for found in (pooled, labels, pixels))
    return Collected(*joined, pass_seconds=seconds)


def plain_batches(
    dl: TfmdDL,  # of the training set; left as it is
    transforms: Sequence[Transform],  # of batches, that are wanted beside its own
    count: int,  # items at most, spread over the training set
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:  # inputs and targets
    "Give batches as validation would transform them."
    private = dl.new(shuffle=False, drop_last=False)
    known = private.after_batch.fs
    for transform in transforms:
        if not any(isinstance(f, type(transform)) for f in known):
            private.after_batch.add(transform)
    rows, size = list(spread(range(len(dl.dataset)), count)), dl.bs or 64
    with no_random(), dl.dataset.set_split_idx(1):
        private.before_iter()  # tells its transforms the split
        for start in range(0, len(rows), size):
            batch = private.do_batch([private.do_item(i) for i in rows[start : start + size]])
            batch = batch if private.device is None else to_device(batch, private.device)
            plain = [x.as_subclass(Tensor) if isinstance(x, Tensor) else x for x in private.after_batch(batch)]
            yield tuple(plain[: dl.dataset.n_inp]), tuple(plain[dl.dataset.n_inp :])


def _places(
    mask: Tensor,  # (B, H, W) codes
    count: int,  # of each item
) -> Tensor:  # (B, count) among its H * W pixels
    """Draw labelled pixels: half of them anywhere, half where the mask is not of its most frequent code, as most of a
    mask is often nothing but background."""
    flat = mask.flatten(1)
    labelled = flat != IGNORE_PIXEL
    rare = labelled & (flat != flat.mode(1).values[:, None])
    anywhere, special = (weights.float() + 1e-9 for weights in (labelled, rare))
    special = torch.where(rare.any(1, keepdim=True), special, anywhere)
    half = count // 2
    return torch.cat([w.multinomial(c, replacement=True) for w, c in ((anywhere, count - half), (special, half))], 1)


def _read(
    x: Tensor,  # (B, C, h, w) a map
    places: Tensor,  # (B, count) among the pixels of the image
    size: tuple[int, int],  # of the image
) -> Tensor:  # (B, count, C)
    "Read a map at pixels of the image, between its cells."
    height, width = size
    at = torch.stack([places % width / width, places // width / height], -1) + torch.tensor([0.5 / width, 0.5 / height])
    grid = (at * 2 - 1).to(x)[:, None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)
