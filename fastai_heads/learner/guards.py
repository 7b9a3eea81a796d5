"""What is refused before a training step: data that no longer fits the heads, batches that batch norm cannot take."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastai_heads.data.bbox_blocks import joined_boxes
from fastai_heads.data.inspect import inspect_data, sample_batch
from fastai_heads.data.plain import Stated
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.model import Heads, in_eval
from fastai_heads.training.bound import BoundHead, BoundHeads

__all__ = ["check_batches", "check_dense", "same_data", "sample_inputs"]


def check_dense(
    heads: BoundHeads,  # of a learner
    model: nn.Sequential,  # the learner's
    dls: DataLoaders,  # the learner's
) -> None:
    """Heads that read several maps are tried on the first item, their losses too: refuses images that are too small for
    a decoder, masks of another size than the image, and codes that no channel stands for."""
    dense = [head for head in heads.values() if len(model[1].reads[head.name]) > 1]
    if not dense:
        return
    device = next(model.parameters()).device
    batch = [t.as_subclass(Tensor).to(device) if isinstance(t, Tensor) else t for t in sample_batch(dls)]
    inputs, targets = batch[: dls.n_inp], batch[dls.n_inp :]
    try:
        preds = dict(zip(heads, in_eval(model, *inputs)))
    except HeadsError:
        raise
    except _MISFITS as error:
        raise HeadsError(_too_small(dense, model, inputs[0], error)) from error
    for head in dense:
        try:
            with torch.no_grad():
                head.train_loss(preds[head.name], targets[head.target.index])
        except HeadsError as error:
            raise HeadsError(f"`heads[{head.name!r}]`: {error}") from None


def _too_small(dense: Sequence[BoundHead], model: nn.Sequential, image: Tensor, error: Exception) -> str:
    "Why images of this size cannot be taken, and by which head; of the sizes tried the first that can be."
    body, heads = model
    device = next(model.parameters()).device

    def why(name: str, *shape: int) -> str:
        one = Heads({name: heads[name]}, {name: heads.reads[name]})
        one.trunks, one.trunk_reads, one.trunk_gives = heads.trunks, heads.trunk_reads, heads.trunk_gives
        try:
            in_eval(nn.Sequential(body, one), torch.zeros(1, image.shape[1], *shape, device=device))
        except _MISFITS as error:
            return str(error).strip().split("\n")[0] or type(error).__name__
        return ""

    height, width = image.shape[-2:]
    names = [head.name for head in dense if why(head.name, height, width)]
    if not names:
        return f"`heads`: the network cannot take images of {height}×{width} pixels: {error}"
    fits = [] if body.input_size else [s for s in _SIDES if s > min(height, width) and not why(names[0], s, s)]
    hint = f"; it takes {fits[0]}×{fits[0]}" if fits else ""
    return (
        f"image size: `heads[{names[0]!r}]` cannot take what the body gives for {height}×{width} pixels{hint}. "
        f"({why(names[0], height, width)})"
    )


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
            f"`dls.train`: {which} holds one image, of which {len(narrow)} batch norm(s) would see one value per "
            f"channel ({narrow[0]}). {fix}."
        )


def _narrow_norms(model: nn.Module, dls: DataLoaders) -> list[str]:
    "The batch norms that see a single value per channel in a batch of one, found by looking at one in evaluation."
    names = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    found: dict[str, None] = {}

    def look(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].numel() == args[0].shape[0] * norm.num_features:
            found[names[norm]] = None

    hooks = [m.register_forward_pre_hook(look) for m in names]
    try:
        in_eval(model, *to_device(sample_inputs(dls), next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def same_data(
    dls: DataLoaders,  # the new ones
    targets: Sequence[Target],  # of the learner
    heads: BoundHeads,  # of the learner
) -> tuple[DataLoaders, tuple[Target, ...]]:  # as `inspect_data` gives them, the targets by the learner's names
    "Refuse `learn.dls = dls` where the data would not train, or where targets or vocabularies differ from the heads'."
    if not len(getattr(dls, "train_ds", ())):
        return joined_boxes(dls), tuple(targets)  # what `export` leaves of the data: transforms without items
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
    return data.dls, tuple(replace(old, partial=new.partial) for old, new in zip(targets, found))


_MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
"What torch raises for shapes that do not fit."
_SIDES = (32, 64, 96, 128, 192, 256, 384, 512)  # of images that are tried where a size cannot be taken


def sample_inputs(
    dls: DataLoaders,  # fastai's
) -> tuple[Tensor, ...]:  # one item's inputs as a batch of one, on the device of `dls`
    "The inputs of the first training item after all transforms, drawn without touching the random state."
    return sample_batch(dls)[: dls.n_inp]


def _kinds(targets: Sequence[Target]) -> str:
    return ", ".join(f"{t.name} ({t.kind})" for t in targets)
