"""What a learner with several heads predicts: for a data loader, for one item, under augmentation, as pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import currentframe, signature
from numbers import Integral
from typing import Any

import torch
from fastai.callback.core import GatherPredsCallback, event
from fastai.data.core import TfmdDL
from fastai.data.load import DataLoader
from fastcore.foundation import L
from fastcore.xtras import ContextManagers
from matplotlib.figure import Figure
from torch import Tensor

from fastai_heads.data.loaders import check_item, pick_loader, readable
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads.spec import is_number
from fastai_heads.learner.gather import ConstantOrder, GatherHeads
from fastai_heads.learner.one_target import refuse_stock_interpretation
from fastai_heads.learner.ranks import HeadsAcrossRanks
from fastai_heads.names import names_in
from fastai_heads.training.across import from_first_rank
from fastai_heads.training.callbacks import are_callbacks
from fastai_heads.training.recorder import HeadsRecorder
from fastai_heads.view.decoded import decode_heads
from fastai_heads.view.show import show_predictions, show_targets

__all__ = ["HeadPredictions"]


class HeadPredictions(HeadsAcrossRanks):
    "The part of `MultiHeadLearner` that predicts. Answers are `HeadTuple`s: heads in their order, targets in theirs."

    def validation_context(self, cbs: Any = None, inner: bool = False) -> ContextManagers:
        "fastai's, which forgets what the recorder holds of the last fit; here it is kept."
        are_callbacks(cbs)
        recorders = self._grab_cbs(HeadsRecorder)
        return ContextManagers([r.kept() for r in recorders] + [super().validation_context(cbs, inner)])

    def test_dl(
        self,
        items: Any,  # as `get_items` of the data gives them: paths, a DataFrame, …
        rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the items have been through
        with_labels: bool = False,  # read the targets, too
        **kwargs,  # fastai's: `bs`, `num_workers`, …
    ) -> TfmdDL:
        "`learn.dls.test_dl`: with the right `n_inp` also where there are labels; no items give no batch."
        return self.dls.test_dl(items, rm_type_tfms=rm_type_tfms, with_labels=with_labels, **kwargs)

    def get_preds(
        self,
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
        "Predictions, activated, and targets; targets are None where the data has no labels."
        refuse_stock_interpretation(currentframe().f_back, self.heads)
        _check_flags(act, kwargs)
        found = pick_loader(self.dls, ds_idx, dl, labels="`with_loss=True`" if with_loss else None, batches=True)
        dl, order = self._in_order(found.new(shuffle=False) if dl is None else dl, reorder)
        gather = GatherHeads(with_input=with_input, with_loss=with_loss, **kwargs)
        contexts = [self._unmeasured(), self.validation_context(cbs=[*L(cbs), gather], inner=inner)]
        with ContextManagers(contexts + [self.loss_not_reduced()] * with_loss):
            self._do_epoch_validate(dl=dl)
            return gather.answer(self.loss_func, [t.name for t in self.data_targets], act, with_decoded, order)

    @contextmanager
    def _unmeasured(self) -> Iterator[None]:
        "Without metrics, which fastai's loop counts here, too: mean average precision takes time and holds every box."
        metrics, self.metrics = self.metrics, []
        try:
            yield
        finally:
            self.metrics = metrics

    def _in_order(self, dl: Any, reorder: bool) -> tuple[Any, Tensor | None]:
        "A data loader that drops nothing, and what brings its items back into the dataset's order."
        if isinstance(dl, DataLoader) and dl.drop_last:
            dl = dl.new(shuffle=False, drop_last=False)
        if not (reorder and hasattr(dl, "get_idxs")):
            return dl, None
        idxs = list((dl.dl if hasattr(dl, "joined") else dl).get_idxs())
        if self.ranks > 1:
            idxs = from_first_rank(torch.tensor(idxs, device=self.distributed_trainer.device)).tolist()
        return dl.new(get_idxs=ConstantOrder(idxs)), torch.tensor(idxs, dtype=torch.long).argsort()

    def predict(
        self,
        item: Any,  # one item, as `get_items` of the data gives it: a path, an array, a row
        rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the item has been through
        with_input: bool = False,  # the decoded input first
    ) -> tuple:  # ([input], decoded, decoded as tensors, activated), a `HeadTuple` each
        "One item through every head. Auxiliary heads are in the last element only."
        check_item(item, self.dls)
        with readable(item):
            dl = self.dls.test_dl([item], rm_type_tfms=rm_type_tfms, num_workers=0)
            inputs, preds, _, decoded = self.get_preds(dl=dl, with_input=True, with_decoded=True)
        *inp, values = self._decoded(inputs if self.dls.n_inp > 1 else (inputs,), decoded, max_n=1)[0]
        tensors = HeadTuple((d[0] for d in decoded), decoded.names), HeadTuple((p[0] for p in preds), preds.names)
        return (*inp, values, *tensors) if with_input else (values, *tensors)

    def validate(
        self,
        ds_idx: int = 1,  # 0: training set, 1: validation set
        dl: Any = None,  # a data loader with labels, or a list of batches, instead
        cbs: Any = None,  # callbacks for this time only
    ) -> L:  # the total loss, every head's loss, every metric
        "fastai's `validate`."
        return super().validate(ds_idx, pick_loader(self.dls, ds_idx, dl, labels="`validate`", batches=True), cbs)

    def tta(
        self,
        ds_idx: int = 1,  # 0: training set, 1: validation set
        dl: Any = None,  # a data loader instead
        n: int = 4,  # how many augmented passes
        item_tfms: Any = None,  # instead of the data's own
        batch_tfms: Any = None,  # instead of the data's own
        beta: float | None = 0.25,  # share of the plain pass; None: (augmented, plain) as they are
        use_max: bool = False,  # the largest instead of the mean
        heads: str | Sequence[str] | None = None,  # those to average, the others come from the plain pass; None: all
    ) -> tuple:  # (predictions, targets)
        """fastai's test-time augmentation, head by head. Raises `HeadsError` naming the heads whose target moves with
        the image (points, boxes, masks): averages would be of different places. `heads=` leaves them out."""
        averaged = self._averaged(heads)
        _check_passes(n, beta)
        found = pick_loader(self.dls, ds_idx, dl)
        dl = found.new(shuffle=False, drop_last=False) if dl is None else found
        if item_tfms is not None or batch_tfms is not None:
            dl = dl.new(after_item=item_tfms, after_batch=batch_tfms)
        passes = []
        try:
            self(["before_fit", "before_epoch"])
            with dl.dataset.set_split_idx(0), self.no_mbar():
                for self.epoch in range(n):
                    passes.append(self.get_preds(dl=dl, inner=True)[0])
            with dl.dataset.set_split_idx(1):
                plain, targs = self.get_preds(dl=dl, inner=True)
        finally:
            self(event.after_fit)
        augmented = HeadTuple((_merged([p[name] for p in passes], use_max) for name in plain.names), plain.names)
        if beta is None and not use_max:
            return (augmented, plain), targs
        both = (
            (torch.max(p, a) if use_max else torch.lerp(a, p, beta)) if name in averaged else p
            for name, p, a in zip(plain.names, plain, augmented)
        )
        return HeadTuple(both, plain.names), targs

    def _averaged(self, heads: str | Sequence[str] | None) -> tuple[str, ...]:
        "The heads that test-time augmentation averages."
        wanted = None if heads is None else names_in(heads, "heads", self.heads.names, "head")
        still = [name for name, head in self.heads.items() if not head.spec.moves_with_image]
        chosen = self.heads.names if wanted is None else tuple(wanted)
        moving = [name for name in chosen if name not in still]
        if moving:
            raise HeadsError(
                f"`tta`: the targets of {', '.join(moving)} move with the image, and predictions for differently "
                f"augmented images cannot be averaged. Pass `heads={tuple(still)!r}`; the others are predicted plainly."
            )
        return chosen

    def show_batch(
        self,
        max_n: int = 9,  # how many images
        ds_idx: int = 0,  # 0: training set, 1: validation set
        unique: bool = False,  # one item, again and again, as augmentation changes it
        **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
    ) -> Figure:
        "Images with every target: shapes drawn in, texts beside, a dash where a label is missing."
        pick_loader(self.dls, ds_idx)
        return show_targets(self.dls, max_n, ds_idx, unique, [t.name for t in self.data_targets], **kwargs)

    def show_results(
        self,
        ds_idx: int = 1,  # 0: training set, 1: validation set
        dl: Any = None,  # a `DataLoader` instead
        max_n: int = 9,  # how many images
        shuffle: bool = True,  # drawn at random, or from the start
        **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
    ) -> Figure:
        "Images with every head's target and prediction: shapes drawn in, texts beside, green if right, red if wrong."
        found = pick_loader(self.dls, ds_idx, dl)
        batch = (found.new(shuffle=shuffle, drop_last=False) if dl is None else found).one_batch()
        n_inp = self.dls.n_inp
        decoded = self.get_preds(dl=[batch], with_decoded=True)[2]
        return show_predictions(self, tuple(batch[:n_inp]), tuple(batch[n_inp:]), decoded, max_n, **kwargs)

    def _decoded(self, inputs: tuple, decoded: HeadTuple, max_n: int) -> list[tuple]:
        "Per item its decoded inputs, then a `HeadTuple` of decoded values."
        return decode_heads(self.dls.valid, inputs, self.heads.deciding, decoded, max_n)


def _check_flags(act: Any, kwargs: Mapping[str, Any]) -> None:
    "Refuse an activation that is no function, and a keyword that fastai's `get_preds` does not have."
    if act is not None and not callable(act):
        raise HeadsError(f"`act` is a function of a head's output, or None for each head's own, found {act!r}.")
    options = [p for p in signature(GatherPredsCallback.__init__).parameters if p != "self"]
    for name in kwargs:
        if name not in options:
            own = [p for p in signature(HeadPredictions.get_preds).parameters if p not in ("self", "kwargs")]
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
    "The mean or the largest of the augmented passes."
    stacked = torch.stack(list(preds))
    return stacked.max(0)[0] if use_max else stacked.mean(0)
