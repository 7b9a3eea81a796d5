"""What a learner with several heads predicts: for a data loader, under augmentation, as pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import currentframe, signature
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import GatherPredsCallback, event
from fastai.data.core import TfmdDL
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastcore.foundation import L
from fastcore.xtras import ContextManagers
from matplotlib.figure import Figure
from torch import Tensor

from fastai_heads.data.loaders import pick_loader
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads.spec import is_number
from fastai_heads.learner.gather import ConstantOrder, GatherHeads
from fastai_heads.learner.one_target import refuse_stock_interpretation
from fastai_heads.modes import same_random
from fastai_heads.names import names_in
from fastai_heads.training.callbacks import are_callbacks
from fastai_heads.training.ranks.exchange import from_first_rank
from fastai_heads.training.ranks.joint import SharedLoader
from fastai_heads.training.recorder import HeadsRecorder
from fastai_heads.values import check_value
from fastai_heads.view.show import show_predictions, show_targets

__all__ = ["get_preds", "show_batch", "show_results", "test_dl", "tta", "validate", "validation_context"]


def validation_context(learn: Learner, cbs: Any = None, inner: bool = False) -> ContextManagers:
    "Validate within it. fastai's forgets what the recorder holds of the last fit, and here that is kept."
    are_callbacks(cbs)
    recorders = learn._grab_cbs(HeadsRecorder)
    return ContextManagers([r.keep() for r in recorders] + [Learner.validation_context(learn, cbs, inner)])


def test_dl(
    learn: Learner,  # a `MultiHeadLearner`
    items: Any,  # as `get_items` of the data gives them: paths, a DataFrame, …
    rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the items have been through
    with_labels: bool = False,  # read the targets, too
    **kwargs,  # fastai's: `bs`, `num_workers`, …
) -> TfmdDL:
    "Make a data loader of new items. Its `n_inp` is right also with labels, and no items give no batch."
    return learn.dls.test_dl(items, rm_type_tfms=rm_type_tfms, with_labels=with_labels, **kwargs)


def get_preds(
    learn: Learner,  # a `MultiHeadLearner`
    ds_idx: int = 1,  # 0: training set, 1: validation set
    dl: Any = None,  # a data loader or a list of batches instead
    with_input: bool = False,  # inputs first
    with_decoded: bool = False,  # decoded predictions after the targets, of the deciding heads
    with_loss: bool = False,  # at the end the total loss per item, with `.heads` and one attribute per head; NaN
    # for a head that has no label for it, and in the total where none has
    act: Callable | None = None,  # an activation for every head; None: each head's own
    inner: bool = False,  # inside a fit: no events of its own
    reorder: bool = True,  # into the dataset's order
    cbs: Any = None,  # callbacks for this time only
    **kwargs,  # fastai's: `save_preds`, `save_targs`, `with_preds`, `with_targs`, `concat_dim`, …
) -> tuple:  # ([inputs], predictions, targets, [decoded], [losses])
    "Predict all of a data loader, activated. Targets are None where the data has no labels."
    refuse_stock_interpretation(currentframe().f_back, learn.heads)
    _check_act(act, kwargs)
    flags = {"with_input": with_input, "with_decoded": with_decoded, "with_loss": with_loss, "reorder": reorder}
    _check_flags("get_preds", **flags)
    found = pick_loader(learn.dls, ds_idx, dl, labels="`with_loss=True`" if with_loss else None, batches=True)
    gather = GatherHeads(with_input=with_input, with_loss=with_loss, **kwargs)
    contexts = [_unmeasured(learn), learn.validation_context(cbs=[*L(cbs), gather], inner=inner)]
    with same_random(), ContextManagers(contexts + [learn.loss_not_reduced()] * with_loss):
        dl, order = _in_order(learn, found.new(shuffle=False) if dl is None else dl, reorder)
        learn._do_epoch_validate(dl=dl)
        return gather.answer(learn.loss_func, [t.name for t in learn.data_targets], act, with_decoded, order)


@contextmanager
def _unmeasured(learn: Learner) -> Iterator[None]:
    "Take the metrics off for a while. fastai's loop counts them here, too, and mean average precision takes time."
    metrics, learn.metrics = learn.metrics, []
    try:
        yield
    finally:
        learn.metrics = metrics


def _in_order(learn: Learner, dl: Any, reorder: bool) -> tuple[Any, Tensor | None]:
    "Give a data loader that drops nothing, and what brings its items back into the dataset's order."
    if isinstance(dl, DataLoader) and dl.drop_last:
        dl = dl.new(shuffle=False, drop_last=False)
    if not (reorder and hasattr(dl, "get_idxs")):
        return dl, None
    idxs = list((dl.dl if isinstance(dl, SharedLoader) else dl).get_idxs())
    if learn.ranks > 1:
        idxs = from_first_rank(torch.tensor(idxs, device=learn.distributed_trainer.device)).tolist()
    return dl.new(get_idxs=ConstantOrder(idxs)), torch.tensor(idxs, dtype=torch.long).argsort()


def validate(
    learn: Learner,  # a `MultiHeadLearner`
    ds_idx: int = 1,  # 0: training set, 1: validation set
    dl: Any = None,  # a data loader with labels, or a list of batches, instead
    cbs: Any = None,  # callbacks for this time only
    per_head: bool = False,  # as a table: a row for each head and the total, columns for the loss and the metrics
) -> L | pd.DataFrame:  # the total loss, every head's loss, every metric
    "Measure a data set: fastai's `validate`."
    found = pick_loader(learn.dls, ds_idx, dl, labels="`validate`", batches=True)
    values = Learner.validate(learn, ds_idx, found, cbs)
    return _by_head(learn, values) if per_head else values


def _by_head(learn: Learner, values: Sequence[Any]) -> pd.DataFrame:
    "Put what was measured into a table. A metric that a head does not have is NaN there."
    total, *others = values
    rows = {name: {"loss": loss} for name, loss in zip(learn.heads.names, others)}
    for metric, value in zip(learn.metrics, others[len(rows) :], strict=True):
        rows[metric.head.name][metric.called] = value
    return pd.DataFrame.from_dict({**rows, "total": {"loss": total}}, orient="index").rename_axis("head")


@same_random()
def tta(
    learn: Learner,  # a `MultiHeadLearner`
    ds_idx: int = 1,  # 0: training set, 1: validation set
    dl: Any = None,  # a data loader instead
    n: int = 4,  # how many augmented passes
    item_tfms: Any = None,  # instead of the data's own
    batch_tfms: Any = None,  # instead of the data's own
    beta: float | None = 0.25,  # share of the plain pass; None: (augmented, plain) as they are
    use_max: bool = False,  # the largest instead of the mean
    heads: str | Sequence[str] | None = None,  # those to average, the others come from the plain pass; None: all
) -> tuple:  # (predictions, targets)
    """Average predictions for augmented images, head by head, as fastai does. Raises `HeadsError` naming the heads
    whose target moves with the image (points, boxes, masks), as averages would be of different places: `heads=` leaves
    them out."""
    averaged = _averaged(learn, heads)
    _check_passes(n, beta)
    _check_flags("tta", use_max=use_max)
    for name, tfms in (("item_tfms", item_tfms), ("batch_tfms", batch_tfms)):
        fits = all(callable(f) for f in L(tfms))
        check_value(name, "`tta`", tfms, fits, "a transform or a list of them, or None for the data's own")
    found = pick_loader(learn.dls, ds_idx, dl)
    dl = found.new(shuffle=False, drop_last=False) if dl is None else found
    if item_tfms is not None or batch_tfms is not None:
        dl = dl.new(after_item=item_tfms, after_batch=batch_tfms)
    passes = []
    try:
        learn(["before_fit", "before_epoch"])
        with dl.dataset.set_split_idx(0), learn.no_mbar():
            for learn.epoch in range(n):
                passes.append(learn.get_preds(dl=dl, inner=True)[0])
        with dl.dataset.set_split_idx(1):
            plain, targs = learn.get_preds(dl=dl, inner=True)
    finally:
        learn(event.after_fit)
    augmented = HeadTuple((_merged([p[name] for p in passes], use_max) for name in plain.names), plain.names)
    if beta is None and not use_max:
        return (augmented, plain), targs
    both = (
        (torch.max(p, a) if use_max else torch.lerp(a, p, beta)) if name in averaged else p
        for name, p, a in zip(plain.names, plain, augmented)
    )
    return HeadTuple(both, plain.names), targs


def _averaged(learn: Learner, heads: str | Sequence[str] | None) -> tuple[str, ...]:
    "List the heads that test-time augmentation averages."
    wanted = None if heads is None else names_in(heads, "heads", learn.heads.names, "head")
    still = [name for name, head in learn.heads.items() if not head.task.moves_with_image]
    chosen = learn.heads.names if wanted is None else tuple(wanted)
    moving = [name for name in chosen if name not in still]
    if moving:
        raise HeadsError(
            f"`tta`: the targets of {', '.join(moving)} move with the image, and predictions for differently "
            f"augmented images cannot be averaged. Pass `heads={tuple(still)!r}`; the others are predicted plainly."
        )
    return chosen


@same_random()
def show_batch(
    learn: Learner,  # a `MultiHeadLearner`
    max_n: int = 9,  # how many images
    ds_idx: int = 0,  # 0: training set, 1: validation set
    unique: bool = False,  # one item, again and again, as augmentation changes it
    **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
) -> Figure:
    "Draw images with every target: shapes in them, texts beside, a dash where a label is missing."
    pick_loader(learn.dls, ds_idx)
    return show_targets(learn.dls, max_n, ds_idx, unique, [t.name for t in learn.data_targets], **kwargs)


@same_random()
def show_results(
    learn: Learner,  # a `MultiHeadLearner`
    ds_idx: int = 1,  # 0: training set, 1: validation set
    dl: Any = None,  # a `DataLoader` instead
    max_n: int = 9,  # how many images
    shuffle: bool = True,  # drawn at random, or from the start
    **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
) -> Figure:
    "Draw images with every target and prediction: shapes in them, texts beside, green if right, red if wrong."
    found = pick_loader(learn.dls, ds_idx, dl)
    batch = (found.new(shuffle=shuffle, drop_last=False) if dl is None else found).one_batch()
    n_inp = learn.dls.n_inp
    decoded = learn.get_preds(dl=[batch], with_decoded=True)[2]
    return show_predictions(learn, tuple(batch[:n_inp]), tuple(batch[n_inp:]), decoded, max_n, **kwargs)


def _check_flags(method: str, **flags: Any) -> None:
    "Refuse switches that are neither on nor off."
    for name, value in flags.items():
        check_value(name, f"`{method}`", value, isinstance(value, bool), "True or False")


def _check_act(act: Any, kwargs: Mapping[str, Any]) -> None:
    "Refuse an activation that is no function, and a keyword that fastai's `get_preds` does not have."
    if act is not None and not callable(act):
        raise HeadsError(f"`act` is a function of a head's output, or None for each head's own, found {act!r}.")
    options = [p for p in signature(GatherPredsCallback.__init__).parameters if p != "self"]
    for name in kwargs:
        if name not in options:
            own = [p for p in signature(get_preds).parameters if p not in ("learn", "kwargs")]
            raise HeadsError(
                f"`{name}` is not a parameter of `get_preds`.{did_you_mean(name, dict.fromkeys([*own, *options]))}"
            )


def _check_passes(n: Any, beta: Any) -> None:
    "Refuse a number of passes, and a share of the plain one, that mean nothing."
    if not isinstance(n, Integral) or not is_number(n, least=1):
        raise HeadsError(
            f"`n` of `tta` is how many augmented passes are made, a whole number of at least 1, found {n!r}."
        )
    if beta is not None and not is_number(beta):
        raise HeadsError(
            f"`beta` of `tta` is the share of the plain pass, a number such as 0.25, or None, found {beta!r}."
        )


def _merged(preds: Sequence[Tensor], use_max: bool) -> Tensor:
    "Merge the augmented passes: their mean, or the largest."
    stacked = torch.stack(list(preds))
    return stacked.max(0)[0] if use_max else stacked.mean(0)
