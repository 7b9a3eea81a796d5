"""fastai's `Interpretation` of a learner with several heads: per head, and in total."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import sklearn.metrics as skm
import torch
from fastai.callback.core import Callback
from fastai.data.core import TfmdDL
from fastai.interpret import Interpretation
from fastai.learner import Learner
from fastai.torch_core import to_np
from fastcore.foundation import L
from matplotlib.figure import Figure
from torch import Tensor

from fastai_heads.data.kinds import Answer
from fastai_heads.data.loaders import pick_loader
from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads.spec import is_number
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.view.charts import draw_confusion, draw_label_confusions, draw_scatter
from fastai_heads.view.keywords import check_cmap, check_k, figure_options, places_in, report_options
from fastai_heads.view.show import show_predictions
from fastai_heads.view.texts import number

__all__ = ["HeadsInterpretation"]

_CLASSES = (Answer.CLASS, Answer.CODES)


class ItemLosses(Callback):
    "Gathers, item by item, every head's loss and whether it had a label."

    order = 60

    def before_validate(self) -> None:
        "Start anew."
        self.batches: list[tuple[Tensor, Tensor]] = []

    def after_loss(self) -> None:
        "Keep a batch."
        if not len(self.yb):
            raise HeadsError("`dl` has no labels: `learn.test_dl(items, with_labels=True)` reads them.")
        heads = self.learn.heads.values()
        there = torch.stack([head.labelled(self.yb[head.target.index]) for head in heads], 1)
        losses = torch.stack([loss.float().as_subclass(Tensor) for loss in self.learn.head_losses], 1)
        self.batches.append(self.learn.to_detach((losses, there)))


class HeadsInterpretation(Interpretation):
    """fastai's `Interpretation` for several heads: `head=` says which, None means the sum of all.

    Values of one head are fastai's `ClassificationInterpretation`'s of a plain learner with that head. Items without a
    label are left out of what is said of that head. It tells of the weights as they were when it was made."""

    def __init__(
        self,
        learn: Learner,  # a `MultiHeadLearner`
        dl: TfmdDL,  # whose items are looked at
        losses: HeadTuple,  # per head (N,), unweighted, NaN for an item without a label
        known: HeadTuple,  # per head (N,) bool, whether there is a label
        act: Callable | None = None,  # an activation for every head; None: each head's own
    ):
        super().__init__(learn, dl, learn.loss_func.total(losses), act)
        self.head_losses, self.known = losses, known

    @classmethod
    def from_learner(
        cls,
        learn: Learner,  # a `MultiHeadLearner`
        ds_idx: int = 1,  # 0: training set, 1: validation set
        dl: TfmdDL | None = None,  # a data loader with labels instead
        act: Callable | None = None,  # an activation for every head; None: each head's own
    ) -> "HeadsInterpretation":
        "Predicts every item once for its losses, and once more when predictions are first asked for."
        heads = getattr(learn, "heads", None)
        if not isinstance(heads, BoundHeads):
            raise HeadsError(
                f"`learn` is a learner made by `multihead_learner`, found {type(learn).__name__}: fastai's own "
                "`Interpretation`s are for a learner of one target."
            )
        dl = pick_loader(learn.dls, ds_idx, dl, labels="`HeadsInterpretation`").new(shuffle=False, drop_last=False)
        if not dl.n:
            raise HeadsError("`dl`: the data holds no item to look at.")
        gather = ItemLosses()
        learn.get_preds(dl=dl, with_loss=True, with_preds=False, with_targs=False, cbs=[gather], reorder=False)
        losses, known = (torch.cat(part).unbind(1) for part in zip(*gather.batches))
        return cls(learn, dl, HeadTuple(losses, heads.names), HeadTuple(known, heads.names), act)

    def __getitem__(self, idxs: int | Sequence[int] | Tensor) -> tuple:
        "Inputs, predictions, targets, decoded predictions and total losses of some items."
        idxs = places_in(idxs, len(self.losses))
        dl = self.dl.new(get_idxs=partial(list, idxs), shuffle=False, drop_last=False)
        answer = self.learn.get_preds(dl=dl, with_input=True, with_decoded=True, act=self.act, reorder=False)
        return (*answer, self.losses[idxs])

    @cached_property
    def answers(self) -> tuple[HeadTuple, HeadTuple]:
        "Targets and decoded predictions of every item."
        _, targs, decoded = self.learn.get_preds(dl=self.dl, with_decoded=True, act=self.act, reorder=False)
        return targs, decoded

    # losses

    def top_losses(
        self,
        k: int | None = None,  # how many; None: all
        largest: bool = True,  # the largest first, or the smallest
        items: bool = False,  # the items themselves, too
        head: str | None = None,  # by this head's loss; None: by the total
    ) -> tuple:  # (losses, indices, [items])
        "Return the items with the largest losses. Items without a label are left out, of one head or of all."
        if not isinstance(largest, bool):
            raise HeadsError(f"`largest` is True or False, found {largest!r}; a head is named as `head={largest!r}`.")
        check_k(k)
        losses = self.losses if head is None else self.head_losses[self.learn.heads[head].name]
        places = (~losses.isnan()).nonzero().view(-1)
        losses = losses[places]
        values, order = losses.topk(len(losses) if k is None else min(k, len(losses)), largest=largest)
        idx = places[order]
        if not items:
            return values, idx
        rows = getattr(self.dl.items, "iloc", None)
        return values, idx, L(self.dl.items)[idx.tolist()] if rows is None else rows[idx.tolist()]

    def plot_top_losses(
        self,
        k: int | Sequence[int],  # how many, or which places in the order of losses
        largest: bool = True,  # the largest first, or the smallest
        head: str | None = None,  # by this head's loss; None: by the total
        **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
    ) -> Figure:
        "Draw the items with the largest losses: every head's target and prediction, over them the losses."
        some = k is not None and not isinstance(k, int | str)
        _, idx = self.top_losses(None if some else k, largest, head=head)
        return self.show_results(idx[places_in(k, len(idx), "k")] if some else idx, first=head, **kwargs)

    def show_results(
        self,
        idxs: int | Sequence[int] | Tensor,  # which items
        first: str | None = None,  # the head whose loss is named first
        **kwargs,  # to the drawing: `nrows`, `ncols`, `figsize`, `imsize`, `title`
    ) -> Figure:
        "Some items with every head's target and prediction, over them the losses."
        idxs = places_in(idxs, len(self.losses))
        inputs, _, targs, decoded, _ = self[idxs]
        titles = [self._title(i, first) for i in idxs]
        inputs = inputs if self.learn.dls.n_inp > 1 else (inputs,)
        return show_predictions(self.learn, inputs, targs, decoded, len(idxs), titles=titles, **kwargs)

    def _title(self, i: int, first: str | None) -> str:
        "Say the losses of one item in words: a head's first if it is asked for, then the total, then the others."
        each = {name: number(loss[i]) for name, loss in self.head_losses.pairs()}
        said = {first: each[first]} if first is not None else {}
        if len(each) > 1:
            said["total"] = number(self.losses[i])
        return "loss " + " · ".join(f"{name} {value}" for name, value in (said | each).items())

    # classes and labels

    def confusion_matrix(
        self,
        head: str | None = None,  # of classes, labels or masks; None: the only head
    ) -> np.ndarray:  # (C, C) counts, a row per true class; of several labels (C, 2, 2)
        "Count which class was taken for which. Source for labels: scikit-learn's `multilabel_confusion_matrix`."
        bound = self._head(head, (*_CLASSES, Answer.TAGS), "confusion_matrix")
        said, truth = self._pairs(bound)
        if bound.task.answers is Answer.TAGS:
            return np.stack([skm.confusion_matrix(*pair, labels=[0, 1]) for pair in _by_tag(truth, said)])
        n = _n_classes(bound, said, truth)
        return np.bincount(truth.astype(int) * n + said.astype(int), minlength=n * n).reshape(n, n)

    def plot_confusion_matrix(
        self,
        head: str | None = None,  # of classes, labels or masks; None: the only head
        normalize: bool = False,  # shares of the true class instead of counts
        title: str | None = None,  # None: the head's name
        cmap: str = "Blues",  # matplotlib's
        norm_dec: int = 2,  # decimals of the shares
        plot_txt: bool = True,  # numbers in the cells
        **kwargs,  # to matplotlib's `figure`: `figsize`, `dpi`
    ) -> Figure:
        "Draw the confusion matrix of a head; of several labels one for each."
        check_cmap(cmap)
        kwargs = figure_options(**kwargs)
        matrix = self.confusion_matrix(head)
        bound = self.learn.heads[head or self.learn.heads.names[0]]
        if normalize:
            counts = matrix.sum(-1, keepdims=True)
            matrix = np.divide(matrix, counts, out=np.zeros(matrix.shape), where=counts > 0)
        names = bound.vocab or range(len(matrix))
        style = {"cmap": cmap, "decimals": norm_dec if normalize else None, "written": plot_txt}
        side = max(3.2, min(14, 1.5 + 0.36 * len(names)))
        if bound.task.answers is Answer.TAGS:
            size = (2.7 * min(4, len(names)), 2.8 * -(-len(names) // 4))
            fig = plt.figure(**{"figsize": size, **kwargs})
            draw_label_confusions(matrix, names, fig, **style)
            fig.suptitle(title or f"{bound.name}: confusion of each label")
        else:
            fig = plt.figure(**{"figsize": (side, side), **kwargs})
            ax = fig.add_subplot()
            draw_confusion(ax, matrix, names, **style)
            ax.set_title(title or f"{bound.name}: confusion matrix")
        fig.tight_layout()
        return fig

    def most_confused(
        self,
        head: str | None = None,  # of classes or masks; None: the only head
        min_val: int = 1,  # how often at least
    ) -> list[tuple[Any, Any, int]]:  # (actual, predicted, how often), the most frequent first
        "Return the pairs of classes that were mixed up most often."
        bound = self._head(head, _CLASSES, "most_confused")
        if not is_number(min_val):
            raise HeadsError(f"`min_val` is how often a pair was mixed up at least, a number, found {min_val!r}.")
        matrix = self.confusion_matrix(bound.name)
        np.fill_diagonal(matrix, 0)
        names = bound.vocab or range(len(matrix))
        found = [(names[i], names[j], matrix[i, j]) for i, j in zip(*np.where(matrix >= min_val))]
        return sorted(found, key=itemgetter(2), reverse=True)

    def classification_report(
        self,
        head: str | None = None,  # of classes, labels or masks; None: the only head
        **kwargs,  # scikit-learn's: `output_dict`, `digits`, `zero_division`
    ) -> str | dict:
        "scikit-learn's report on a head: precision, recall and F1 of every class or label."
        bound = self._head(head, (*_CLASSES, Answer.TAGS), "classification_report")
        said, truth = self._pairs(bound)
        several = bound.task.answers is Answer.TAGS
        if several:  # a tag that is missing is neither said nor true, as of what is neither nothing is reported
            said, truth = said * ~np.isnan(truth), np.nan_to_num(truth)
        labels = range(said.shape[1]) if several else range(_n_classes(bound, said, truth))
        kind = bool if several else int
        names = [str(v) for v in (bound.vocab or labels)]
        kwargs = {"zero_division": 0, **report_options(kwargs)}
        return skm.classification_report(
            truth.astype(kind), said.astype(kind), labels=list(labels), target_names=names, **kwargs
        )

    def print_classification_report(
        self,
        head: str | None = None,  # of classes, labels or masks; None: the only head
        **kwargs,  # scikit-learn's: `digits`, `zero_division`
    ) -> None:
        "Prints scikit-learn's report on a head."
        print(self.classification_report(head, **kwargs))

    # numbers

    def plot_regression(
        self,
        head: str | None = None,  # of numbers, points or boxes; None: the only head
        **kwargs,  # to matplotlib's `figure`: `figsize`, `dpi`
    ) -> Figure:
        "Predicted against true, an axes for each number of the target, in the unit of the target."
        bound = self._head(head, (Answer.NUMBERS,), "plot_regression")
        kwargs = figure_options(**kwargs)
        said, truth = (part.reshape(len(part), -1) for part in self._pairs(bound))
        n = truth.shape[1]
        names = [bound.name] if n == 1 else [f"{bound.name} {part}" for part in bound.task.number_names(n)]
        return draw_scatter(said.reshape(-1, n), truth, names, **kwargs)

    # which head, which items

    def _head(self, name: str | None, answers: Iterable[Answer], method: str) -> BoundHead:
        "Return a head that the method can say something of; else `HeadsError` with those of which it can."
        heads = self.learn.heads
        fitting = [h.name for h in heads.deciding if h.task.answers in answers]
        there = f"Heads for it: {', '.join(fitting) or 'none'}."
        if name is None:
            if len(heads) > 1:
                raise HeadsError(f"`{method}` is about one head: pass `head=`. {there}")
            name = heads.names[0]
        if not isinstance(name, str):
            raise HeadsError(f"`head` is the name of a head, found {name!r}: pass other arguments by name. {there}")
        head = heads[name]
        if name in fitting:
            return head
        if head.spec.train_only:
            why = f"`{method}`: head {name!r} is auxiliary, and nothing is decoded from it."
        else:
            why = f"`{method}` is not for head {name!r}, whose target is of kind {head.target.kind}."
        raise HeadsError(f"{why} {there}", head=name)

    def _pairs(self, head: BoundHead) -> tuple[np.ndarray, np.ndarray]:
        "Return decoded predictions and targets of the labelled items; of masks, of the labelled pixels, flat."
        targs, decoded = self.answers
        truth, said = (to_np(v) for v in (targs[head.target.index], decoded[head.name]))
        known = to_np(self.known[head.name])
        if not known.any():
            raise HeadsError(f"no item has a label for head {head.name!r}.", head=head.name)
        if not head.task.in_form(decoded[head.name]):
            raise HeadsError(
                f"what head {head.name!r} says has not the form of its target, {tuple(said.shape[1:])} for "
                f"{tuple(truth.shape[1:])} an item: say how with `CustomHead(…, decode=…)`.",
                head=head.name,
            )
        return head.task.flatten_pairs(said[known], truth[known])


def _by_tag(truth: np.ndarray, said: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    "Yield what is true and what is said of each tag, where it is not missing."
    for true, guess in zip(truth.T, said.T):
        known = ~np.isnan(true)
        yield true[known].astype(int), guess[known].astype(int)


def _n_classes(head: BoundHead, said: np.ndarray, truth: np.ndarray) -> int:
    return len(head.vocab) if head.vocab else int(max(said.max(), truth.max())) + 1
