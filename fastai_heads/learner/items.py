"""What a learner says of items that a user holds: of one, and of many."""

from collections.abc import Iterator
from typing import Any

import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import TfmdDL
from fastai.learner import CastToTensor, Learner, _cast_tensor
from fastai.torch_core import get_model, to_detach
from fastcore.foundation import L

from fastai_heads.data.loaders import check_item, readable
from fastai_heads.errors import MISFITS, HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.learner.gather import ConstantOrder, activated
from fastai_heads.modes import same_random
from fastai_heads.training.monitors import HeadsMonitor
from fastai_heads.training.step import as_tuple
from fastai_heads.training.strategies.base import StrategyCallback
from fastai_heads.values import check_value
from fastai_heads.view.decoded import decode_heads
from fastai_heads.view.losses import DrawnRecorder

__all__ = ["predict", "predict_many"]

_IDLE = (TrainEvalCallback, CastToTensor, ProgressCallback, DrawnRecorder, HeadsMonitor, StrategyCallback)
"Callbacks whose part in a prediction `_run` takes over, or that have none."


def predict(
    learn: Learner,  # a `MultiHeadLearner`
    item: Any,  # one item, as `get_items` of the data gives it: a path, an array, a row
    rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the item has been through
    with_input: bool = False,  # the decoded input first
) -> tuple:  # ([input], decoded, decoded as tensors, activated), a `HeadTuple` each
    "Predict one item by every head. Auxiliary heads are in the last element only."
    check_item(item, learn.dls)
    check_value("with_input", "`predict`", with_input, isinstance(with_input, bool), "True or False")
    with same_random(), readable(item):
        dl = learn.dls.test_dl([item], rm_type_tfms=rm_type_tfms, num_workers=0)
        return next(_answers(learn, dl, with_input))[0]


def predict_many(
    learn: Learner,  # a `MultiHeadLearner`
    items: Any,  # as `get_items` of the data gives them: a list of paths, arrays or rows, or a DataFrame
    rm_type_tfms: int | None = None,  # fastai's: how many of the first transforms the items have been through
    with_input: bool = False,  # each decoded input first
    **kwargs: Any,  # to `test_dl`: `bs`, `num_workers`, …
) -> list[tuple]:  # for each item what `predict` gives
    "Predict many items in batches. Refuses one that cannot be read, by its place."
    _check_items(learn, items)
    dl = learn.dls.test_dl(items, rm_type_tfms=rm_type_tfms, **kwargs)
    found: dict[int, tuple] = {}
    order = list(dl.get_idxs())
    dl.get_idxs = ConstantOrder(order)
    places = iter(order)
    try:
        for answers in _answers(learn, dl, with_input):
            found.update((i, answer) for answer, i in zip(answers, places))
    except Exception as error:
        _blame(dl, error)
        raise
    return [found[i] for i in range(len(order))]


def _check_items(learn: Learner, items: Any) -> None:
    "Refuse, by its place, what is no item."
    if isinstance(items, list | tuple | L):
        for i, item in enumerate(items):
            try:
                check_item(item, learn.dls)
            except HeadsError as error:
                raise error.within(f"`items[{i}]`") from None


def _blame(dl: TfmdDL, error: Exception) -> None:
    "Name the item that cannot be read. Does nothing where all can be."
    for i in range(len(dl.dataset)):
        try:
            dl.do_item(i)
        except Exception as found:
            said = str(found) or type(found).__name__
            raise HeadsError(f"`items[{i}]` cannot be read: {said}") from error


def _outputs(learn: Learner, inputs: tuple) -> Any:
    "Run the network. Where it cannot take a batch, its body says what that is to be."
    try:
        return learn.model(*inputs)
    except MISFITS:
        get_model(learn.model)[0].check_inputs(inputs)
        raise


def _answers(learn: Learner, dl: TfmdDL, with_input: bool) -> Iterator[list[tuple]]:
    "Predict a loader's items, a batch at a time."
    for inputs, preds, decoded in _predicted(learn, dl):
        items = decode_heads(learn.dls.valid, inputs, learn.heads.deciding, decoded, max_n=len(preds[0]))
        yield [
            (
                *(inp if with_input else ()),
                values,
                HeadTuple((d[i] for d in decoded), decoded.names),
                HeadTuple((p[i] for p in preds), preds.names),
            )
            for i, (*inp, values) in enumerate(items)
        ]


def _predicted(learn: Learner, dl: TfmdDL) -> Iterator[tuple[tuple, HeadTuple, HeadTuple]]:
    "Give of each batch its inputs, and what the heads say of it, activated and decoded."
    if learn.ranks == 1 and all(map(_is_idle, learn.cbs)):
        yield from _run(learn, dl)
        return
    batches = [dl] if learn.ranks > 1 else ([batch] for batch in dl)
    for batch in batches:
        inputs, preds, _, decoded = learn.get_preds(dl=batch, with_input=True, with_decoded=True)
        yield inputs if learn.dls.n_inp > 1 else (inputs,), preds, decoded


def _is_idle(cb: Callback) -> bool:
    "Tell whether a callback leaves a prediction as it is. One of a user's own may not."
    return type(cb) in _IDLE


def _run(learn: Learner, dl: TfmdDL) -> Iterator[tuple[tuple, HeadTuple, HeadTuple]]:
    "Run the network on each batch without fastai's loop, which prepares for a fit."
    heads, names = learn.heads, [head.name for head in learn.heads.deciding]
    if learn.dls.device not in (None, next(learn.model.parameters()).device):
        learn.model.to(learn.dls.device)
    for batch in dl:
        inputs = _cast_tensor(tuple(learn._set_device(batch)[: learn.dls.n_inp]))
        with learn.lock, torch.no_grad():
            if any(module.training for module in learn.model.modules()):
                learn.model.eval()
            outputs = as_tuple(_outputs(learn, inputs))
            preds = tuple(activated(h, h.answer(o)) for h, o in zip(heads.values(), outputs))
        inputs, preds = to_detach(inputs), to_detach(preds)
        yield inputs, HeadTuple(preds, heads.names), HeadTuple(learn.loss_func.decodes(preds), names)
