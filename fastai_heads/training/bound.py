"""A head in a learner: its spec, its target, its task, and what may change while training."""

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from html import escape
from typing import Any
from weakref import ref

import torch
from fastai.callback.core import Callback
from torch import Tensor, nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean, unknown
from fastai_heads.heads.defaults import task_type
from fastai_heads.heads.spec import HeadSpec, is_number
from fastai_heads.model import Heads
from fastai_heads.tasks.reduction import own_reduction, zero_of
from fastai_heads.tasks.task import Task

__all__ = ["BoundHead", "BoundHeads", "need_heads"]

_SET = ("name", "spec", "target", "task", "loss_func", "loss_weight", "_spec", "_heads", "_loss_weight", "_answered")
"What a bound head holds; the first six may change."


class BoundHead:
    "One head of a learner."

    def __init__(
        self,
        name: str,  # the head's name
        spec: HeadSpec,  # fitted to the target
        target: Target,  # what it predicts
        heads: Heads,  # the learner's `model[1]`
    ):
        self.name, self.target, self._heads = name, target, heads
        self.spec = spec
        self._loss_weight = float(spec.loss_weight)
        self._answered: tuple[Callable, Tensor] | None = None

    @property
    def module(self) -> nn.Module:
        "Its layers, `learn.model[1][name]`."
        return self._heads[self.name]

    @property
    def vocab(self) -> tuple[Any, ...] | None:
        "The target's classes, or None; None, too, where `n_out` says that they are those of another mask."
        vocab = self.target.vocab
        foreign = vocab is not None and self.target.n_out is None and self.spec.n_out not in (1, len(vocab))
        return None if foreign else vocab

    @property
    def spec(self) -> HeadSpec:
        "How it is built. Where another is set, its task is made anew."
        return self._spec

    @spec.setter
    def spec(self, value: HeadSpec) -> None:
        self._spec = value
        self.task: Task = value.task(self.target)

    @property
    def loss_func(self) -> Callable:
        "Its task's loss: (pred, target) → a scalar. It may be set."
        return self.task.loss_func

    @loss_func.setter
    def loss_func(self, value: Callable) -> None:
        self.task = self.task.with_loss(value)

    @property
    def loss_weight(self) -> float:
        "Its share in the sum of the losses. It may be set while training."
        return self._loss_weight

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        if not is_number(value, least=0):
            message = f"`loss_weight` of head {self.name!r} is a finite number of at least 0, found {value!r}."
            raise HeadsError(message, head=self.name)
        self._loss_weight = float(value)

    def parameters(self) -> Iterator[nn.Parameter]:
        "Return those of its module."
        return self.module.parameters()

    def train_loss(
        self,
        pred: Tensor,  # (B, …) its prediction
        targ: Tensor,  # (B, …) its target
    ) -> Tensor:  # a scalar; where no item has a label a zero that reaches every parameter
        "Return its loss's own reduction over the labelled items, and of these over the tags that are there."
        pred, targ, _ = self._labelled(pred, targ)
        return self.task.train_loss(pred, targ) if len(targ) else zero_of(pred)

    def item_loss(
        self,
        pred: Tensor,  # (B, …) its prediction
        targ: Tensor,  # (B, …) its target
    ) -> Tensor:  # (B,) NaN for an item without a label
        "Return the loss of each item, which is the same in any batch."
        kept, kept_targ, mask = self._labelled(pred, targ)
        if not len(kept_targ):
            return zero_of(pred) + pred.new_full((len(pred),), torch.nan)
        losses = self.task.item_loss(kept, kept_targ)
        return losses if mask is None else losses.new_full((len(pred),), torch.nan).masked_scatter(mask, losses)

    @torch.no_grad()
    def loss_count(
        self,
        pred: Tensor,  # (B, …) its prediction
        targ: Tensor,  # (B, …) its target
        loss: Tensor,  # a scalar, its loss for them
    ) -> Tensor | None:  # a scalar, 0 where no item has a label; None: of nothing that adds up over batches
        "Return what its loss of a batch is a mean of."
        pred, targ, _ = self._labelled(pred.detach(), targ)
        if not len(targ):
            return torch.zeros((), device=targ.device)
        if self.sums:
            return torch.ones((), device=targ.device)
        return self.task.loss_count(pred, targ, loss.detach())

    @torch.no_grad()
    def measure(
        self,
        pred: Tensor,  # (B, …) its prediction
        targ: Tensor,  # (B, …) its target
        loss: Tensor,  # a scalar, its loss for them
    ) -> tuple[Tensor, Tensor]:  # scalars: a sum, and how much it is the sum of
        """Return its loss for a batch such that batches can be joined: their sums and their counts are added up.

        Where the loss is of nothing that adds up (Dice), the sum is that of the items' own losses."""
        count = self.loss_count(pred, targ, loss)
        if count is None:
            losses = self.item_loss(pred.detach(), targ)
            known = ~losses.isnan()
            return losses[known].double().sum(), known.sum()
        value = loss.detach().double()
        return torch.where(count > 0, value * count, torch.where(value.isnan(), 0.0, value)), count

    @property
    def sums(self) -> bool:
        "Whether its loss adds up items and does not average them: then so does the table."
        return own_reduction(self.loss_func) == "sum"

    def shares(
        self,
        targ: Tensor,  # (B, …) its target
    ) -> Tensor:  # (B,) from 0 to 1
        "Return how much of each item has a label."
        there = self.labelled(targ).float()
        return there * self.task.counted(targ).float().mean(1) if self.task.has_gaps else there

    def labelled(
        self,
        targ: Tensor,  # (B, …) its target
    ) -> Tensor:  # (B,) bool
        "Return which items have a label."
        if not self.target.partial:
            return torch.ones(len(targ), dtype=torch.bool, device=targ.device)
        return self.task.labelled(targ)

    def _labelled(self, pred: Tensor, targ: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        "Return the labelled items of a batch, and which they are (None: all)."
        if not self.target.partial:
            return pred, targ, None
        mask = self.task.labelled(targ)
        return (pred, targ, None) if mask.all() else (pred[mask], targ[mask], mask)

    def activation(self, pred: Tensor) -> Tensor:
        "Return its output as probabilities, or as it is."
        return self.task.activation(pred)

    def answer(
        self,
        pred: Tensor,  # its output for one batch
    ) -> Tensor:
        """Return what is kept of a batch: the output, or where the task is `by_batch` the activated output.

        The last one is remembered, as metrics and predictions ask for the same."""
        if not self.task.by_batch:
            return pred
        if not len(pred):
            return self.task.empty().to(pred.device)
        if self._answered is None or self._answered[0]() is not pred:
            self._answered = ref(pred), self.activation(pred)
        return self._answered[1]

    def __setattr__(self, name: str, value: Any) -> None:
        "Refuse what a head does not have: it would change nothing."
        if name not in _SET:
            raise HeadsError(_nothing_to_set(self.name, name, value))
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        "Leave out what is remembered."
        return {**self.__dict__, "_answered": None}

    def decode(self, pred: Tensor) -> Tensor:
        "Return its activated output in the form of its target."
        return self.task.decode(pred)

    def __repr__(self) -> str:
        return f"{self.name}: {self.spec.label} on {self.spec.tap!r}, target {self.target.name!r}"


class BoundHeads(Mapping[str, BoundHead]):
    "The heads of a learner, by name and by attribute, in the order of the predictions."

    def __init__(self, heads: Mapping[str, BoundHead]):
        self._by_name = dict(heads)

    @property
    def names(self) -> tuple[str, ...]:
        "The heads' names, in order."
        return tuple(self._by_name)

    @property
    def deciding(self) -> tuple[BoundHead, ...]:
        "The heads that decode a target: all but the auxiliary ones."
        return tuple(h for h in self._by_name.values() if not h.spec.train_only)

    def align(
        self,
        target: Target,  # one of the data's, perhaps without a head
        parts: Sequence[Tensor],  # it in several batches, (B, …) each
    ) -> list[Tensor]:
        "Bring a target of several batches to shapes that can be joined, as its head's task does, else its kind's."
        task = next((head.task for head in self.values() if head.target.index == target.index), task_type(target))
        return task.align(parts)

    def __getitem__(self, name: str) -> BoundHead:
        if name not in self._by_name:
            raise unknown("head", name, self.names)
        return self._by_name[name]

    def get(
        self,
        name: str,  # of a head
        default: Any = None,  # what is given where there is none
    ) -> BoundHead | Any:
        "Get a head as from a dictionary; `Mapping`'s own takes a `KeyError` only."
        return self._by_name.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getattr__(self, name: str) -> BoundHead:
        if name.startswith("__") or name == "_by_name":
            raise AttributeError(name)
        try:
            return self[name]
        except HeadsError as error:
            raise AttributeError(str(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        "Refuse to set a head, or anything else: heads are added and dropped by the learner."
        if name != "_by_name":
            how = f"`learn.drop_head({name!r})`, then " if name in self.names else ""
            raise HeadsError(
                f"`learn.heads.{name}` cannot be set: {how}`learn.add_head({name!r}, spec)`. Of a head that is there "
                f"`learn.heads.<name>.loss_weight` can. Heads: {', '.join(self.names)}.{did_you_mean(name, self.names)}"
            )
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def values(self) -> ValuesView[BoundHead]:
        "List the heads, as every training step asks for them: `Mapping`'s own looks each of them up."
        return self._by_name.values()

    def items(self) -> ItemsView[str, BoundHead]:
        "List names and heads."
        return self._by_name.items()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._by_name.values()))

    def _repr_html_(self) -> str:
        "Return a table for Jupyter, a row for each head."
        titles = ("head", "kind", "target", "tap", "outputs", "parameters", "loss weight")
        rows = [titles, *(_cells(head) for head in self._by_name.values())]
        marks = ["th"] + ["td"] * len(self)
        lines = ["".join(f"<{m}>{escape(cell)}</{m}>" for cell in row) for m, row in zip(marks, rows)]
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _nothing_to_set(head: str, name: str, value: Any) -> str:
    "Say why setting an attribute of a head changes nothing, and what would."
    start = f"`learn.heads.{head}.{name}` cannot be set"
    if name in HeadSpec.__dataclass_fields__:
        return (
            f"{start}: it is fixed when the head is made, `heads={{{head!r}: …({name}={value!r})}}`. What may change "
            "while training is `loss_weight`."
        )
    near = did_you_mean(name, ("loss_weight", *HeadSpec.__dataclass_fields__), 1)
    return f"{start}: a head has no {name!r}.{near} What may change while training is `loss_weight`."


def _cells(head: BoundHead) -> tuple[str, ...]:
    "Return a head as a row of the table."
    name = f"{head.name} (auxiliary)" if head.spec.train_only else head.name
    taps, params = ", ".join(map(str, head.spec.taps)), sum(p.numel() for p in head.parameters())
    return name, head.spec.label, head.target.name, taps, str(head.spec.n_out), f"{params:,}", f"{head.loss_weight:g}"


def need_heads(
    cb: Callback,  # of a learner
) -> None:
    "Refuse a callback for several heads in a learner that has none."
    if not isinstance(getattr(cb.learn, "heads", None), BoundHeads):
        raise HeadsError(
            f"`cbs`: {type(cb).__name__} is for a learner made by `multihead_learner`, found {type(cb.learn).__name__}."
        )
