"""What is refused before a training step: data that no longer fits the heads, batches that batch norm cannot take."""

import warnings
from collections.abc import Sequence

import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import no_random
from torch import Tensor, nn

from fastai_heads.data.targets import Target, dls_targets
from fastai_heads.errors import HeadsError, HeadsWarning

__all__ = ["check_batches", "check_items", "check_same_targets", "sample_inputs"]


def check_items(
    dls: DataLoaders,  # over fastai `Datasets`
) -> None:
    "Refuse an empty training set, of which nothing can be told."
    if not len(dls.train_ds):
        raise HeadsError(
            f"`dls.train` holds no item, and `dls.valid` {len(dls.valid_ds)}: the heads are made for the training set. "
            "Check the `splitter` of the DataBlock."
        )


def check_batches(
    dls: DataLoaders,  # the learner's
    heads: nn.Module,  # `model[1]`
) -> None:
    "Refuse a training set that gives no batch, or a batch of one where the heads have batch norm over vectors."
    dl = dls.train
    n, bs, drop_last = (getattr(dl, a, None) for a in ("n", "bs", "drop_last"))
    if n == 0:
        raise HeadsError("`dls.train` holds no item to train on: give the learner data, `learn.dls = dls`.")
    if not n or not bs:
        return
    if len(dl) == 0:
        raise HeadsError(
            f"`dls.train` gives no batch: {n} item(s), `bs={bs}` and `drop_last={drop_last}`. Pass `bs={n}` or less."
        )
    last = 0 if drop_last else n % bs
    if (bs == 1 or last == 1) and any(isinstance(m, nn.BatchNorm1d) for m in heads.modules()):
        which = "every training batch" if bs == 1 else f"the last of {len(dl)} training batches ({n} items, `bs={bs}`)"
        fix = "Pass `bs=2` or more" if bs == 1 else "Pass `drop_last=True` or another `bs`"
        raise HeadsError(
            f"`dls.train`: {which} holds one image, and the batch norm of the heads cannot take that. {fix}, "
            "or build the heads with `first_bn=False, lin_ftrs=[]`."
        )


def check_same_targets(
    dls: DataLoaders,  # the new ones
    targets: Sequence[Target],  # of the learner
) -> None:
    "Refuse `learn.dls = dls` where targets or vocabularies differ from those that the heads were made for."
    if not len(dls.train_ds):
        return  # what `export` leaves of the data: transforms without items
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadsWarning)
        found = dls_targets(dls)
    if [t.kind for t in found] != [t.kind for t in targets]:
        raise HeadsError(
            f"`learn.dls`: the heads were made for targets {_kinds(targets)}, and the new data has {_kinds(found)}."
        )
    for old, new in zip(targets, found):
        if old.vocab != new.vocab:
            raise HeadsError(
                f"`learn.dls`: target {old.name!r} has another vocabulary: expected {old.vocab}, found {new.vocab}. "
                f"Build the data with `vocab={list(old.vocab or ())}`."
            )


def sample_inputs(
    dls: DataLoaders,  # fastai's
) -> tuple[Tensor, ...]:  # one item's inputs as a batch of one, on the device of `dls`
    "The inputs of the first training item after all transforms, drawn without touching the random state."
    dl = dls.train
    with no_random(), torch.no_grad():
        batch = dl.after_batch(_on_device(dl.do_batch([dl.do_item(0)]), dl.device))
    return tuple(batch[: dl.dataset.n_inp])


def _on_device(batch: tuple, device: torch.device | None) -> tuple:
    return batch if device is None else tuple(b.to(device) if isinstance(b, Tensor) else b for b in batch)


def _kinds(targets: Sequence[Target]) -> str:
    return ", ".join(f"{t.name} ({t.kind})" for t in targets)
