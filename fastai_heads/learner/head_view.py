"""One head of a learner as a plain fastai `Learner` over the same weights."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from fastai.learner import Learner, Recorder
from fastai.torch_core import TensorBase, get_model
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastai_heads.bodies.contract import Body
from fastai_heads.data.decode import dls_of_target
from fastai_heads.data.inputs import ImageInput, dls_inputs
from fastai_heads.data.loaders import with_test_dl
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.model import Heads, MultiHeadModel
from fastai_heads.training.bound import BoundHead, BoundHeads
from fastai_heads.training.metrics import HeadMetric, HeadValidLoss
from fastai_heads.training.recorder import HeadTrainLoss
from fastai_heads.training.step import CombinedLoss
from fastai_heads.trunks import PREFIX, Trunks
from fastai_heads.view.decoded import decode_heads
from fastai_heads.view.show import show_samples

__all__ = ["head_learner"]


class BodyToHead(Trunks):
    "The body and the trunks that one head needs: the inputs to what the head takes."

    def __init__(
        self,
        body: Body,  # shared
        heads: Heads,  # whose trunks are shared
        name: str,  # of the head
    ):
        alone = heads.only(name)
        super().__init__({trunk: alone.trunk(trunk) for trunk in alone.trunk_reads}, alone.trunk_reads)
        self.body, self.reads, self.trunk_gives = body, alone.reads[name], alone.trunk_gives
        self.register_load_state_dict_pre_hook(_rename_trunks)

    def forward(
        self,
        *inputs: Tensor,  # what the body takes
    ) -> Tensor | tuple[Tensor, ...]:  # what the head takes; a tuple for a head on several taps
        tensors = self.run_trunks(self.body(*inputs))
        found = tuple(tensors[tap] for tap in self.reads)
        return found[0] if len(found) == 1 else found

    def groups(self) -> list[list[nn.Parameter]]:
        "List the body's parameter groups."
        return self.body.groups()


def _rename_trunks(view: BodyToHead, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    "Let files load in which a trunk has its bare name, as a view once wrote it."
    for name in view.trunk_reads:
        bare = f"{prefix}trunks.{name}."
        for key in [key for key in state if key.startswith(bare)]:
            state[f"{prefix}trunks.{PREFIX}{name}.{key.removeprefix(bare)}"] = state.pop(key)


class OnTuple(nn.Module):
    "A head on several taps, taking them as one tuple."

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, taps: tuple[Tensor, ...]) -> Tensor:
        return self.head(*taps)


class ItemLosses(TensorBase):
    "Losses of items, of which those without a label rank last: fastai's `Interpretation` asks for the `topk`."

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
        "Return the largest or smallest losses. For a plain tensor NaN is the largest."
        plain = self.as_subclass(Tensor)
        last = float("-inf") if largest else float("inf")
        places = plain.masked_fill(plain.isnan(), last).topk(k, dim, largest, sorted)[1]
        return plain.gather(dim, places), places


class OneHeadLoss(CombinedLoss):
    "The loss of one head on bare tensors, not weighted, with the activation and decoding that fastai looks for."

    def total(self, losses: Sequence[Tensor]) -> Tensor:
        "Return the one that there is."
        return losses[0].as_subclass(ItemLosses) if losses[0].ndim else losses[0]

    def activation(self, preds: Tensor) -> Tensor:
        return super().activation(preds)[0]

    def decodes(self, preds: Tensor) -> Tensor:
        return next(iter(self.heads.values())).decode(preds)


class ShowingLearner(Learner):
    """A plain `Learner` of numbers or of boxes with labels, which fastai 2.8's `show_results` cannot draw on an image,
    of inputs that are no image, and of what has not the form of its target, which fastai cannot decode."""

    def predict(
        self,
        item: Any,  # one item, as `get_items` of the data gives it
        rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the item has been through
        with_input: bool = False,  # the decoded input first
    ) -> tuple:  # ([input], decoded, decoded as a tensor, activated)
        "fastai's; a prediction that has not the form of its target is given as it is."
        dl = self.dls.test_dl([item], rm_type_tfms=rm_type_tfms, num_workers=0)
        inputs, preds, _, decoded = self.get_preds(dl=dl, with_input=True, with_decoded=True)
        heads = tuple(self.loss_func.heads.values())
        *inp, values = decode_heads(self.dls.valid, inputs if self.dls.n_inp > 1 else (inputs,), heads, (decoded,), 1)[
            0
        ]
        answer = (values[0], decoded[0], preds[0])
        return (*inp, *answer) if with_input else answer

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
        heads = tuple(self.loss_func.heads.values())
        samples = dl.decode_batch(batch, max_n=max_n)
        n_inp = self.dls.n_inp
        outs = decode_heads(dl, tuple(batch[:n_inp]), heads, (decoded,), max_n)
        targets = [HeadTuple(item[n_inp:], [head.name for head in heads]) for item in samples]
        names = [source.name for source in dls_inputs(self.dls)]
        said = [item[-1] for item in outs]
        return show_samples([item[:n_inp] for item in samples], targets, said, names=names, **kwargs)


def head_learner(
    learn: Learner,  # a `MultiHeadLearner`
    name: str,  # of the head
) -> Learner:  # fastai's own, with one target
    """Make a plain fastai `Learner` over the same weights with one head and one target: `ClassificationInterpretation`,
    `show_results`, hooks on its `model[0]`, `lr_find`, `export`, and `fit`, which trains that head and the body."""
    head = learn.heads[name]
    body, heads = get_model(learn.model)
    module = head.module if len(heads.reads[name]) == 1 else OnTuple(head.module)
    alone = BoundHead(name, head.spec, replace(head.target, index=0), heads)
    inputs = dls_inputs(learn.dls)
    images = len(inputs) == 1 and isinstance(inputs[0], ImageInput)
    cls = Learner if images and head.task.shown_by_fastai else ShowingLearner
    view = cls(
        with_test_dl(dls_of_target(learn.dls, head.target.index)),
        MultiHeadModel(BodyToHead(body, heads, name), module),
        loss_func=OneHeadLoss(BoundHeads({name: alone})),
        metrics=_metrics(alone, [m for m in learn.metrics if isinstance(m, HeadMetric) and m.head is head]),
        splitter=split_view,
        **_settings(learn),
    )
    for recorder in view._grab_cbs(Recorder):  # its losses are over what has a label
        recorder.loss, recorder.smooth_loss = (
            HeadValidLoss(alone, 0),
            HeadTrainLoss(alone, 0, recorder.smooth_loss.beta),
        )
    return view


def split_view(
    model: MultiHeadModel,  # of a `head_learner`
) -> list[list[nn.Parameter]]:  # the body's groups, and one for trunks and head
    "Split the parameters of one head's learner."
    return [*model[0].groups(), [*model[0].trunks.parameters(), *model[1].parameters()]]


def _metrics(head: BoundHead, metrics: Sequence[HeadMetric]) -> list[Any]:
    "Give metrics of the head, which count the labelled items, without the head's name."
    return [_Unprefixed(head, 0, deepcopy(m.metric), m.called) for m in metrics]


class _Unprefixed(HeadMetric):
    @property
    def name(self) -> str:
        return self.called


def _settings(learn: Learner) -> dict[str, Any]:
    "Return what the user chose for training and for saving."
    names = ("opt_func", "lr", "path", "model_dir", "wd", "wd_bn_bias", "train_bn", "moms")
    return {name: getattr(learn, name) for name in names}
