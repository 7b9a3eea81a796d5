"""What is refused before a training step: data that no longer fits the heads, batches that batch norm cannot take."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from fastai.data.core import DataLoaders
from fastai.torch_core import get_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastai_heads.data.bbox_blocks import join_boxes
from fastai_heads.data.inspect import Inspected, inspect_data
from fastai_heads.data.plain import Stated
from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.modes import evaluate
from fastai_heads.training.bound import BoundHeads

__all__ = ["check_batches", "same_data"]


def check_batches(
    dls: DataLoaders,  # the learner's
    model: nn.Module,  # the learner's
    ranks: int = 1,  # processes that share each batch of `bs` items for every one of them
) -> None:
    "Refuse a training set that gives no batch, or a batch of one where a batch norm would see one value per channel."
    dl = dls.train
    n, bs, drop_last = (getattr(dl, a, None) for a in ("n", "bs", "drop_last"))
    if n == 0:
        raise HeadsError("`dls.train` holds no item to train on: give the learner data, `learn.dls = dls`.")
    if not n or not bs:
        return
    whole = bs * ranks
    if drop_last and n < whole:
        shared = f", on {ranks} ranks" if ranks > 1 else ""
        raise HeadsError(
            f"`dls.train` gives no batch: {n} item(s), `bs={bs}` and `drop_last={drop_last}`{shared}. "
            f"Pass `bs={n // ranks}` or less."
        )
    last = 0 if drop_last else -(-(n % whole) // ranks)
    narrow = _narrow_norms(model, dls) if bs == 1 or last == 1 else []
    if narrow:
        which = (
            "every training batch"
            if bs == 1
            else f"the last of {-(-n // whole)} training batches ({n} items, `bs={bs}`)"
        )
        fix = "Pass `bs=2` or more" if bs == 1 else "Pass `drop_last=True` or another `bs`"
        if all(name.startswith("1.") for name in narrow):
            fix += ", or build the heads with `first_bn=False, lin_ftrs=[]`"
        raise HeadsError(
            f"`dls.train`: {which} holds one item, of which {len(narrow)} batch norm(s) would see one value per "
            f"channel ({narrow[0]}). {fix}."
        )


def _narrow_norms(model: nn.Module, dls: DataLoaders) -> list[str]:
    "Find the batch norms that see a single value per channel in a batch of one, by looking at one in evaluation."
    names = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    found: dict[str, None] = {}

    def look(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].numel() == args[0].shape[0] * norm.num_features:
            found[names[norm]] = None

    hooks = [m.register_forward_pre_hook(look) for m in names]
    try:
        with evaluate(model):
            get_model(model)(*draw_sample(dls, n=1).inputs(device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def same_data(
    dls: DataLoaders,  # the new ones
    targets: Sequence[Target],  # of the learner
    heads: BoundHeads,  # of the learner
) -> Inspected:  # the targets by the learner's names
    "Refuse `learn.dls = dls` where the data would not train, or where targets or vocabularies differ from the heads'."
    if not len(getattr(dls, "train_ds", ())):
        return Inspected(join_boxes(dls), (), tuple(targets), None)  # what `export` leaves: transforms without items
    void = next((v for h in heads.values() if (v := getattr(h.spec, "ignore_index", None)) is not None), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadsWarning)
        data = inspect_data(dls, {t.name: Stated(t.kind, t.n_out, void) for t in targets})
    found = data.targets
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
    return replace(data, targets=tuple(replace(old, partial=new.partial) for old, new in zip(targets, found)))


def _kinds(targets: Sequence[Target]) -> str:
    return ", ".join(f"{t.name} ({t.kind})" for t in targets)
