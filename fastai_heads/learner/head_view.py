"""One head of a learner as a plain fastai `Learner` over the same weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastai.data.core import DataLoaders
from fastai.learner import Learner
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastai_heads.body import Body
from fastai_heads.data.decode import select_targets
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.model import Heads, run_trunk
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.loss import CombinedLoss
from fastai_heads.training.metrics import HeadMetric, head_metrics
from fastai_heads.view.show import show_samples

__all__ = ["head_learner"]


class BodyToHead(nn.Module):
    "The body and the trunks that one head needs: images to the tensor that the head takes."

    def __init__(
        self,
        body: Body,  # shared
        heads: Heads,  # whose trunks are shared
        name: str,  # of the head
    ):
        super().__init__()
        self.body, self.reads = body, heads.reads[name]
        self.trunk_reads = _needed_trunks(heads, self.reads)
        self.trunk_gives = heads.trunk_gives
        self.trunks = nn.ModuleDict({trunk: heads.trunk(trunk) for trunk in self.trunk_reads})

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
    ) -> Tensor | tuple[Tensor, ...]:  # what the head takes; a tuple for a head on several taps
        tensors = self.body(x)
        for trunk, reads in self.trunk_reads.items():
            tensors |= run_trunk(self.trunks[trunk], reads, self.trunk_gives[trunk], tensors)
        found = tuple(tensors[tap] for tap in self.reads)
        return found[0] if len(found) == 1 else found

    def groups(self) -> list[list[nn.Parameter]]:
        "The body's parameter groups."
        return self.body.groups()


class OnTuple(nn.Module):
    "A head on several taps, taking them as one tuple."

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, taps: tuple[Tensor, ...]) -> Tensor:
        return self.head(*taps)


class OneHeadLoss(CombinedLoss):
    "The loss of one head on bare tensors, with the activation and decoding that fastai looks for."

    def activation(self, preds: Tensor) -> Tensor:
        return super().activation(preds)[0]

    def decodes(self, preds: Tensor) -> Tensor:
        return next(iter(self.heads.values())).decode(preds)


class ShowingLearner(Learner):
    "A plain `Learner` of numbers or of boxes with labels, which fastai 2.8's `show_results` cannot draw on an image."

    def show_results(
        self,
        ds_idx: int = 1,  # 0: training set, 1: validation set
        dl: Any = None,  # a `DataLoader` instead
        max_n: int = 9,  # how many images
        shuffle: bool = True,  # drawn at random, or from the start
        **kwargs,  # to `show_samples`: `ncols`, `imsize`
    ) -> Figure:
        "Images with what is predicted, and what is true."
        dl = self.dls[ds_idx].new(shuffle=shuffle) if dl is None else dl
        batch = dl.one_batch()
        decoded = self.get_preds(dl=[batch], with_decoded=True)[2]
        names = tuple(h.name for h in self.loss_func.heads.values())
        samples = dl.decode_batch(batch, max_n=max_n)
        outs = dl.decode_batch((batch[0], decoded), max_n=max_n)
        targets, preds = ([HeadTuple(item[1:], names) for item in items] for items in (samples, outs))
        return show_samples([item[0] for item in samples], targets, preds, **kwargs)


def head_learner(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the head
) -> Learner:  # fastai's own, with one target
    "A plain `Learner` over one head: every tool of fastai that knows one target works on it, on the same weights."
    head = learn.heads[name]
    body, heads = learn.model[0], learn.model[1]
    module = head.module if len(heads.reads[name]) == 1 else OnTuple(head.module)
    alone = BoundHead(name, head.spec, replace(head.target, index=0), heads)
    loaders = [select_targets(dl, [head.target.index]) for dl in learn.dls.loaders]
    dls = DataLoaders(*loaders, path=learn.dls.path, device=learn.dls.device)
    cls = ShowingLearner if head.target.kind in ("regression", "detection") else Learner
    return cls(
        dls,
        nn.Sequential(BodyToHead(body, heads, name), module),
        loss_func=OneHeadLoss(BoundHeads({name: alone})),
        metrics=_metrics(alone),
        splitter=split_view,
        **_settings(learn),
    )


def split_view(
    model: nn.Sequential,  # of a `head_learner`
) -> list[list[nn.Parameter]]:  # the body's groups, and one for trunks and head
    "The parameter groups of one head's learner."
    return [*model[0].groups(), [*model[0].trunks.parameters(), *model[1].parameters()]]


def _needed_trunks(heads: Heads, reads: Sequence[str]) -> dict[str, tuple[str, ...]]:
    "The trunks before a head, each after those that it reads, with what they read."
    needed, wanted = {}, set(reads)
    for trunk in reversed(list(heads.trunk_reads)):
        if wanted & set(heads.trunk_gives[trunk]):
            needed[trunk] = heads.trunk_reads[trunk]
            wanted |= set(needed[trunk])
    return dict(reversed(needed.items()))


def _metrics(head: BoundHead) -> list[Any]:
    "The head's metrics under fastai's own names; where labels may be missing they still count the labelled items."
    metrics: list[HeadMetric] = head_metrics(head, 0)
    wrapped = head.target.partial or head.spec.by_batch
    return [_Unprefixed(head, 0, m.metric) for m in metrics] if wrapped else [m.metric for m in metrics]


class _Unprefixed(HeadMetric):
    @property
    def name(self) -> str:
        return self.metric.name


def _settings(learn: Learner) -> dict[str, Any]:
    "What the user chose for training, save, and looks."
    names = ("opt_func", "lr", "path", "model_dir", "wd", "wd_bn_bias", "train_bn", "moms")
    return {name: getattr(learn, name) for name in names}
