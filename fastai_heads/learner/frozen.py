"""The frozen phase: heads and trunks train on what the frozen body gives, which is computed once and stored."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.data.core import Datasets
from fastai.learner import Learner
from fastai.torch_core import get_model, rank_distrib
from fastcore.foundation import L
from torch import nn

from fastai_heads.bodies.stored import StoredBody
from fastai_heads.data.digest import Digest
from fastai_heads.data.random_items import check_views
from fastai_heads.data.stored_dl import Stored, StoredDL
from fastai_heads.data.tap_cache import TapCache, in_bytes
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.learner.arguments import check_arguments
from fastai_heads.learner.filling import Filling
from fastai_heads.training.precision import autocast_of
from fastai_heads.training.ranks.exchange import from_first_rank

__all__ = ["StoredTaps", "fine_tune", "fit_heads"]

_CACHES = {"auto": TapCache(), "memory": TapCache(memory=float("inf")), "disk": TapCache(memory=0)}


@dataclass(frozen=True)
class StoredTaps:
    "What is stored for the frozen phase of a learner, by a key that says of what. It prints its place and its size."

    cache: TapCache
    dtype: torch.dtype | None = None  # the taps are stored in, if not in their own
    sets: dict[str, Stored] = field(default_factory=dict)  # key → the items of one loader

    @property
    def nbytes(self) -> int:
        "How many bytes it takes."
        return sum(stored.nbytes for stored in self.sets.values())

    @property
    def error(self) -> float:
        "How far a tap is off at most, where it is stored in half precision."
        return max((stored.error for stored in self.sets.values()), default=0.0)

    def __str__(self) -> str:
        in_memory = all(c.in_memory for stored in self.sets.values() for c in stored.columns)
        where = "in memory" if in_memory else f"in {self.cache}"
        off = "" if self.dtype is None else f", {self.dtype}: off by {self.error:.2g} at most"
        return f"stored taps: {in_bytes(self.nbytes)} {where}{off}"


def fit_heads(
    learn: Learner,  # a `MultiHeadLearner`
    n_epoch: int,
    lr: float | slice | None = None,  # as of `fit`
    cache: str | Path | TapCache | bool = "auto",  # 'auto', 'memory', 'disk', a folder, or a `TapCache`
    views: int = 1,  # with augmentation: in how many draws each item is stored; an epoch takes one of them at random
    dtype: torch.dtype | None = None,  # `torch.float16` stores the taps in half precision, and prints how far it is off
    pct_start: float | None = None,  # one cycle whose rate rises for this share of the steps; None: one rate, as `fit`
    wd: float | None = None,  # as of `fit`, and so are the others
    cbs: Any = None,
    reset_opt: bool = False,
    start_epoch: int = 0,
) -> None:
    """Train heads and trunks on a frozen body whose taps are computed once and stored. The body is frozen as by
    `freeze`, where it is not yet. A body without pretrained weights, such as a table's, trains on.

    It is, bit for bit, the fit of a learner made with `train_bn=False`, with fastai's `BnFreeze`. What it gives up: in
    fastai's own frozen phase the body's batch norms train and follow the new images, here they stay as they are.
    Other layers that differ in training, such as dropout, are as in evaluation.

    Up to 1 GiB is stored in memory, more in files under `path/model_dir`. They are used again while weights, taps,
    transforms and items are the same. `unfreeze` and `fit` go on from the same weights. Raises `HeadsError`, and
    nothing has changed, for augmentation with one view, items of several sizes, and callbacks that mix images."""
    given = {"n_epoch": n_epoch, "lr": lr, "views": views, "wd": wd, "cbs": cbs, "start_epoch": start_epoch}
    given |= {"reset_opt": reset_opt} | ({} if pct_start is None else {"pct_start": pct_start})
    check_arguments("fit_heads", given)
    with _on_stored_taps(learn, cache, views, dtype, cbs, partial(_freeze, learn, anew=reset_opt)):
        if pct_start is None:
            learn.fit(n_epoch, lr, wd, cbs, start_epoch=start_epoch)
        else:
            learn.fit_one_cycle(n_epoch, lr, pct_start=pct_start, wd=wd, cbs=cbs, start_epoch=start_epoch)


def fine_tune(
    learn: Learner,  # a `MultiHeadLearner`
    epochs: int,
    base_lr: float = 2e-3,
    freeze_epochs: int = 1,
    lr_mult: float = 100,
    pct_start: float = 0.3,
    div: float = 5.0,
    cache: str | Path | TapCache | bool = False,  # True, or as of `fit_heads`: the frozen epochs are on stored taps
    views: int = 1,  # as of `fit_heads`
    dtype: torch.dtype | None = None,  # as of `fit_heads`
    **kwargs: Any,  # of `fit_one_cycle`, for both phases
) -> None:
    """Fine-tune as fastai does: `freeze_epochs` with the body frozen, then `epochs` of all. With `cache=True` the
    frozen epochs are those of `fit_heads`, many times as quick, in which the body's batch norms do not adapt."""
    of_fastai = {"base_lr": base_lr, "freeze_epochs": freeze_epochs, "lr_mult": lr_mult, "pct_start": pct_start}
    of_fastai |= {"div": div, **kwargs}
    check_arguments("fine_tune", {"epochs": epochs, **of_fastai, "views": views})
    if cache is False:
        if views != 1 or dtype is not None:
            raise HeadsError("`views` and `dtype` of `fine_tune` are for stored taps: pass `cache=True`, too.")
        Learner.fine_tune(learn, epochs, **of_fastai)
        return
    with _on_stored_taps(learn, cache, views, dtype, kwargs.get("cbs"), learn.freeze):
        learn.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, **kwargs)
    learn.stored_taps = None
    learn.unfreeze()
    base_lr /= 2
    learn.fit_one_cycle(epochs, slice(base_lr / lr_mult, base_lr), pct_start=pct_start, div=div, **kwargs)


def _freeze(learn: Learner, anew: bool) -> None:
    "Freeze the body. Where it is frozen already, the optimizer keeps its state."
    if anew:
        learn.opt = None
    if learn.opt is None or learn.opt.frozen_idx != len(learn.opt.hypers) - 1:
        learn.freeze()


@contextmanager
def _on_stored_taps(
    learn: Learner, cache: Any, views: int, dtype: Any, cbs: Any, freeze: Callable[[], None]
) -> Iterator[None]:
    "Store what is needed, freeze the body, and let the learner train on what is stored for a while."
    cbs = [*learn.cbs, *L(cbs)]
    body = _check(learn, dtype, cbs)
    cache = _as_cache(learn, cache)
    loaders = [dl for dl in learn.dls.loaders[:2] if len(dl.dataset)]
    dtype = None if dtype == torch.float32 else dtype
    autocast = autocast_of(cbs, next(learn.model.parameters()).device)
    shown = hasattr(learn, "progress") and not rank_distrib()
    fillings = [Filling(body, dl, views if i == 0 else 1, dtype, autocast, shown) for i, dl in enumerate(loaders)]
    before = learn.stored_taps.sets if learn.stored_taps else {}
    if learn.ranks > 1:  # they train with the first one's weights
        for tensor in learn.model.state_dict().values():
            tensor.copy_(from_first_rank(tensor))
    keys = [_key(filling) for filling in fillings]
    if keys[0] not in before:
        check_views(loaders[0], views)
    learn.stored_taps = StoredTaps(cache, dtype)
    for filling, key in zip(fillings, keys):
        learn.stored_taps.sets[key] = before.get(key) or filling.store(cache, key)
    if shown and learn.stored_taps.sets.keys() != before.keys():
        print(learn.stored_taps)
    stored = [StoredDL(dl, learn.stored_taps.sets[key]) for dl, key in zip(loaders, keys)]
    freeze()
    with ExitStack() as stack:
        for context in (_loaders(learn, stored), _forward(body), _still(body), _uncompiled(learn.model)):
            stack.enter_context(context)
        yield


def _check(learn: Learner, dtype: Any, cbs: Sequence[Callback | type]) -> StoredBody:
    "Refuse what cannot train on stored taps. Give what is stored of the body."
    if dtype not in (None, torch.float16, torch.float32):
        raise HeadsError(f"`dtype` of stored taps is `torch.float16`, or None for their own, found {dtype!r}.")
    for cb in cbs:
        if isinstance(cb, MixHandler) or (isinstance(cb, type) and issubclass(cb, MixHandler)):
            name = getattr(cb, "__name__", type(cb).__name__)
            raise HeadsError(f"`cbs`: {name} mixes images, and stored taps are of whole ones. Leave it out, or `fit`.")
    if get_model(learn.model) is not learn.model:
        raise HeadsError(
            f"`fit_heads`: the model is wrapped in {type(learn.model).__name__}. Stored taps leave little to do: "
            "one device is enough, `learn.model = learn.model.module`."
        )
    train = learn.dls.train
    if not isinstance(train.dataset, Datasets) or not len(train.dataset) or not train.bs:
        found = f"{type(train.dataset).__name__} of {len(train.dataset)} items, bs={train.bs}"
        raise HeadsError(f"`fit_heads`: `dls.train` gives fastai `Datasets` with items in batches, found {found}.")
    body, heads = learn.model
    average = getattr(heads, "average", None)
    if average is not None and average.moves(learn.model):
        raise HeadsError(
            "`cbs`: the body that `EMACallback` averages is not the one that trains, and stored taps are of one body. "
            "Call `fit_heads` before the body trains, or `learn.remove_cb(EMACallback)`, which keeps the average."
        )
    stored = StoredBody.of(body, heads.pools())
    if not stored.taps:
        raise HeadsError(
            f"`fit_heads`: no tap in use ({', '.join(body.taps)}) is of a body that `freeze` holds, as none of these "
            "is pretrained. Train by `fit`."
        )
    return stored


def _as_cache(learn: Learner, cache: Any) -> TapCache:
    "Make a cache, with its folder, of what the user passed. Several processes share files."
    found = _CACHES.get("auto" if cache is True else cache) if isinstance(cache, str | bool) else cache
    if isinstance(found, Path):
        found = TapCache(found, memory=0)
    if not isinstance(found, TapCache):
        near = did_you_mean(cache, _CACHES) if isinstance(cache, str) else ""
        raise HeadsError(
            f"`cache` is 'auto', 'memory', 'disk', a folder as a `Path`, or a `TapCache`, found {cache!r}.{near}"
        )
    folder = Path(learn.path) / learn.model_dir / "taps" if found.folder is None else Path(found.folder)
    return replace(found, folder=folder, memory=0 if learn.ranks > 1 else found.memory)


def _key(filling: Filling) -> str:
    "Say what is stored: of which items, by which transforms, through which weights."
    digest, body = Digest(), filling.body
    for network in body.networks():
        digest.add_network(network)
    precision = getattr(filling.autocast, "keywords", {})
    digest.add([body.taps, {tap: list(pools) for tap, pools in body.pools.items()}])
    digest.add([getattr(body.body, "reads", None), getattr(body.body, "sources", None)])
    digest.add(dict(body.body.named_buffers(recurse=False)))  # of several bodies, by which images are rescaled
    digest.add([filling.views, str(filling.dtype), str(precision.get("dtype"))])
    return str(digest.add_loader(filling.dl))


@contextmanager
def _loaders(learn: Learner, stored: Sequence[StoredDL]) -> Iterator[None]:
    "Let the learner read what is stored."
    own = learn.dls.loaders
    by_source = {id(dl.source): dl for dl in stored}
    learn.dls.loaders = [by_source.get(id(dl), dl) for dl in own]
    try:
        yield
    finally:
        learn.dls.loaders = own


@contextmanager
def _forward(stored: StoredBody) -> Iterator[None]:
    "Let the body take what is stored. It still takes inputs, for what a callback may want to predict."
    body, plain = stored.body, stored.body.forward
    body.forward = lambda *inputs: stored.give(inputs[0]) if isinstance(inputs[0], dict) else plain(*inputs)
    try:
        yield
    finally:
        del body.forward


@contextmanager
def _still(stored: StoredBody) -> Iterator[None]:
    "Take the parameters behind the stored taps out of training, those of batch norms too: no gradient reaches them."
    params = {p: p.requires_grad for network in stored.networks() for p in network.parameters()}
    for p in params:
        p.grad = None  # fastai leaves zeros there, and weight decay follows them
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, trains in params.items():
            p.requires_grad_(trains)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    "Run what `torch.compile` has compiled as it is written: it was compiled for inputs."
    compiled = {m: call for m in model.modules() if (call := vars(m).get("_compiled_call_impl")) is not None}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
