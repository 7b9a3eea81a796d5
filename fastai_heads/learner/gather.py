"""Predictions, targets and losses of every head, gathered over batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fastai.callback.core import GatherPredsCallback
from fastai.torch_core import nested_reorder, to_concat, to_detach
from fastcore.basics import detuplify
from torch import Tensor

from fastai_heads.errors import HeadsError, writing
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.ranks.joint import gather_target, speaks
from fastai_heads.training.step import CombinedLoss

__all__ = ["ConstantOrder", "GatherHeads", "activated"]


class ConstantOrder:
    "A data loader's `get_idxs` that gives the same order again."

    def __init__(self, idxs: Sequence[int]):
        self.idxs = idxs

    def __call__(self, *args: Any, **kwargs: Any) -> Sequence[int]:
        return self.idxs


class GatherHeads(GatherPredsCallback):
    """fastai's callback, for predictions and targets that are tuples. It drops none and unwraps none. It gathers the
    losses of the heads beside the total, and `save_targs` saves the targets of every head."""

    name = "gather_preds"  # other callbacks of fastai look for it by this name

    def after_batch(self) -> None:
        "Keep or save what the batch gave."
        if not hasattr(self, "pred"):
            return
        answers = tuple(head.answer(pred) for head, pred in zip(self.learn.heads.values(), self.pred))
        aligned = (partial(self.learn.heads.align, target) for target in self.learn.data_targets)
        targs = tuple(gather_target(self.learn, *pair) for pair in zip(aligned, self.yb))
        preds, targs = self.learn.to_detach(answers), to_detach(targs, gather=False)
        if self.with_preds:
            self.preds.append(preds)
        if self.with_targs:
            self.targets.append(targs)
        for values, folder in ((preds, self.save_preds), (targs, self.save_targs)):
            if folder is not None and speaks(self.learn):
                with writing(folder / str(self.iter)):
                    torch.save(values, folder / str(self.iter), pickle_protocol=self.pickle_protocol)
        if self.with_loss:
            if not len(self.yb):
                raise HeadsError("`with_loss=True` needs labels: `test_dl(items, with_labels=True)` reads them.")
            losses = self.learn.head_losses
            self.losses.append(self.learn.to_detach(torch.stack([self.learn.loss_func.total(losses), *losses], 1)))

    def after_validate(self) -> None:
        "Join the batches."
        if not hasattr(self, "preds"):
            return
        if self.with_input:
            self.inputs = detuplify(to_concat(self.inputs, dim=self.concat_dim)) if self.inputs else None
        if self.with_preds:
            self.preds = to_concat(self.preds, dim=self.concat_dim)
        if self.with_targs:
            self.targets = self._targets()
        if self.with_loss:
            self.losses = to_concat(self.losses)

    def _targets(self) -> Any:
        "Return the targets of all batches, as each is joined."
        parts = [self.learn.heads.align(*pair) for pair in zip(self.learn.data_targets, zip(*self.targets))]
        return to_concat(list(zip(*parts)), dim=self.concat_dim) if parts else to_concat(self.targets)

    def answer(
        self,
        loss_func: CombinedLoss,  # the learner's
        target_names: Sequence[str],  # of every target of the data, in order
        act: Callable | None,  # instead of each head's own activation
        with_decoded: bool,  # decoded predictions, too
        order: Tensor | None,  # places that bring the items into the dataset's order
    ) -> tuple:  # ([inputs], predictions, targets, [decoded], [losses])
        "Return what fastai's `get_preds` answers, by name."
        heads = loss_func.heads
        res: list = [self.inputs] if self.with_input else []
        preds = tuple(self.preds or (h.task.empty() for h in heads.values())) if self.with_preds else None
        if preds is not None:
            preds = tuple(activated(h, p, act) for h, p in zip(heads.values(), preds))
        res += [preds, tuple(self.targets) if self.with_targs and len(self.targets) else None]
        if with_decoded and preds is not None:
            res.append(loss_func.decodes(preds))
        if self.with_loss:
            res.append(self.losses)
        if order is not None and len(order):
            res = nested_reorder(res, order)
        return tuple(self._named(res, heads, target_names, with_decoded))

    def _named(self, res: list, heads: BoundHeads, target_names: Sequence[str], with_decoded: bool) -> list:
        place = int(self.with_input)
        names = [heads.names, target_names] + [[h.name for h in heads.deciding]] * (with_decoded and self.with_preds)
        for i, own in enumerate(names, place):
            res[i] = None if res[i] is None else HeadTuple(res[i], own)
        if self.with_loss:
            res[-1] = _losses(res[-1], heads)
        return res


def activated(
    head: BoundHead,
    pred: Tensor,  # what its `answer` kept of its output
    act: Callable | None = None,  # instead of its own activation
) -> Tensor:
    "Return what is answered of one head. Where its task is `by_batch` that has been done."
    if head.task.by_batch:
        return pred
    return head.activation(pred) if act is None else act(pred)


def _losses(losses: Tensor, heads: BoundHeads) -> Tensor:
    """Return the total per item, with `.heads` and, where that is no name of a tensor's own, `.digit` for each head.

    A head's loss is NaN for an item without a label, which the total leaves out; where no head has one it is NaN."""
    total = losses[:, 0].clone()
    total.heads = HeadTuple(losses[:, 1:].unbind(1), heads.names)
    for name, loss in total.heads.pairs():
        if name not in dir(Tensor):
            setattr(total, name, loss)
    return total
