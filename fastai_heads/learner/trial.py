"""One real batch through the whole network before any training: what does not fit is refused by name."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import find_bs, get_model, no_random, to_device
from torch import Tensor, nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, first_line
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.trial_losses import check_decoding, check_loss, check_output
from fastai_heads.learner.trial_sizes import why_too_small
from fastai_heads.model import Heads
from fastai_heads.modes import evaluate, keep_buffers
from fastai_heads.training.bound import BoundHead

__all__ = ["Trial", "run_trial"]

_ITEMS, _FEWER, _LARGE = 3, 2, 256  # how many items, and how many of images with a longer side
_LOOKED_AT = 50  # items in which a label is looked for where it may be missing

Specs = Mapping[str, tuple[HeadSpec, Target]]


@dataclass(frozen=True)
class Trial:
    "What the network gave for a few real items."

    inputs: tuple[Tensor, ...]  # (B, …) each
    targets: tuple[Tensor, ...]  # (B, …) each, one per target
    preds: Mapping[str, Tensor]  # head → (B, …), in head order

    def measured(
        self,
        specs: Specs,  # name → (fitted spec, its target)
    ) -> dict[str, tuple[HeadSpec, Target]]:
        "The specs with the number of outputs of the modules that decide it themselves."
        return {name: (_measured(spec, self.preds[name]), target) for name, (spec, target) in specs.items()}

    def check(
        self,
        heads: Sequence[BoundHead],  # those to look at
    ) -> None:
        "Refuse a head whose loss or decoding cannot be taken of what the network gave."
        for head in heads:
            pred, targ = self.preds[head.name], self.targets[head.target.index]
            with no_random(), _quiet():
                check_loss(head, pred, targ)
                check_decoding(head, pred)


def run_trial(
    model: nn.Module,  # (body, heads), perhaps wrapped
    dls: DataLoaders,  # with a training set of one item at least
    specs: Specs,  # name → (fitted spec, its target), in head order
) -> Trial:
    """A few training items through the network, in evaluation mode. Its mode, buffers and device, and the state of
    every random generator, are as before. Raises `HeadsError` naming the part that cannot take what it is given, or
    the head whose output is not what its target needs."""
    network = get_model(model)
    with no_random(), _quiet(), torch.no_grad():
        batch = _batch(dls, specs)
        device = next((t.device for t in batch if isinstance(t, Tensor)), torch.device("cpu"))
        inputs, targets = batch[: dls.n_inp], batch[dls.n_inp :]
        with evaluate(network), keep_buffers(network, device):
            preds = _forward(network, inputs, specs)
    found = dict(zip(network[1].names, preds, strict=True))
    for name, (spec, target) in specs.items():
        check_output(name, spec, target, found[name], find_bs(inputs))
    return Trial(inputs, targets, found)


def _measured(spec: HeadSpec, pred: Tensor) -> HeadSpec:
    return replace(spec, n_out=pred.shape[1] if pred.ndim > 1 else 1) if spec.n_out is None else spec


# the batch


def _batch(dls: DataLoaders, specs: Specs) -> tuple[Any, ...]:
    "Some training items after all transforms, as fastai's loop hands them on: inputs, then targets."
    dl = dls.train
    first = dl.do_item(0)
    large = isinstance(first[0], Tensor) and max(first[0].shape[-2:], default=0) > _LARGE
    places = _places(dls, specs, _FEWER if large else _ITEMS)
    items = [first, *(dl.do_item(i) for i in places[1:])]
    try:
        batch = dl.do_batch(items)
    except Exception as error:  # transforms and collation may be the user's
        raise HeadsError(_uncollated(dls, items, places, error)) from error
    batch = dl.after_batch(batch if dl.device is None else to_device(batch, dl.device))
    return tuple(t.as_subclass(Tensor) if isinstance(t, Tensor) else t for t in batch)


def _uncollated(dls: DataLoaders, items: Sequence[Any], places: Sequence[int], error: Exception) -> str:
    "Why items make no batch: most often as their images are not of one size."
    shapes = [tuple(item[0].shape) if isinstance(item[0], Tensor) else () for item in items]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is None:
        return f"`dls.train`: items {', '.join(map(str, places))} make no batch: {first_line(error)}."
    return (
        f"`dls.train`: images of a batch are of one size, found {shapes[0]} of item {places[0]} and {shapes[other]} of "
        f"item {places[other]}. Pass `item_tfms=Resize({max(shapes[0][-2:])})` to the DataBlock."
    )


def _places(dls: DataLoaders, specs: Specs, n: int) -> list[int]:
    "Items from all over the training set, among them a labelled one for every target whose label may be missing."
    ds = dls.train_ds
    places = [i * len(ds) // n for i in range(n)]
    for target in {target.index: target for _, target in specs.values() if target.partial}.values():
        labels = ds.tls[ds.n_inp + target.index]
        near = range(min(len(ds), _LOOKED_AT))
        there = [i for i in (*places, *near) if not _is_blank(labels[i])]
        places += [] if not there or there[0] in places else there[:1]
    return places


def _is_blank(label: Any) -> bool:
    "Whether an encoded label is that of an item without one."
    if not isinstance(label, Tensor):
        return False
    values = label.as_subclass(Tensor)
    return bool((values.isnan() if values.is_floating_point() else values == -100).all())


# the network


def _forward(network: nn.Sequential, inputs: tuple[Any, ...], specs: Specs) -> tuple[Any, ...]:
    "The predictions. An error says which part it comes from; a compiled network is not compiled for this."
    with _watched(network) as entered:
        try:
            return network(*inputs)
        except HeadsError:
            raise
        except Exception as error:  # modules are the user's, and may raise anything
            raise HeadsError(_misfit(entered[-1:], network, inputs, specs, error)) from error


@contextmanager
def _watched(network: nn.Sequential) -> Iterator[list[tuple[str, str]]]:
    "Notes which part was entered last: ('body', ''), ('trunk', name) or ('head', name)."
    body, heads = network
    parts = {("body", ""): body} | {("trunk", name): heads.trunk(name) for name in heads.trunk_reads}
    parts |= {("head", name): heads[name] for name in heads}
    pools = {("head", name): module.pool for (_, name), module in parts.items() if hasattr(module, "pool_name")}
    entered: list[tuple[str, str]] = []
    with ExitStack() as stack:
        for part, module in (*parts.items(), *pools.items()):
            hook = module.register_forward_pre_hook(lambda _module, _args, part=part: entered.append(part))
            stack.callback(hook.remove)
        yield entered


def _misfit(
    entered: Sequence[tuple[str, str]], network: nn.Sequential, inputs: tuple, specs: Specs, error: Exception
) -> str:
    "Which part cannot take what it is given, and what that is."
    body, heads = network
    kind, name = entered[0] if entered else ("body", "")
    if kind == "body":
        return f"`arch`: {body.arch} cannot take inputs of {_sides(inputs)}: {first_line(error)}."
    if kind == "trunk":
        reads = _described(heads, heads.trunk_reads[name])
        return f"`trunk[{name!r}]` cannot take what it reads, {reads}: {first_line(error)}."
    spec, _ = specs[name]
    if len(heads.reads[name]) > 1 and not hasattr(spec, "module"):
        return why_too_small([n for n in specs if len(heads.reads[n]) > 1], network, inputs[0], error)
    field = "module" if hasattr(spec, "module") else "tap"
    reads = heads.reads[name]
    return (
        f"`heads[{name!r}]`: `{field}` of {spec.label} cannot take what it reads, {_described(heads, reads)}: "
        f"{first_line(error)}.{_remedy(spec, [heads.shapes[tap] for tap in reads])}"
    )


def _remedy(spec: HeadSpec, reads: Sequence[TapShape]) -> str:
    "The nearest module that takes what is read."
    if len(reads) > 1:
        return f" It is called with {len(reads)} tensors, in the order of `tap`."
    n_out, channels = spec.n_out or "…", reads[0].channels
    if reads[0].stride is None:
        return f" A vector fits `CustomHead(nn.Linear({channels}, {n_out}), tap={reads[0].name!r})`."
    pooled = f"nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({channels}, {n_out}))"
    return f" A map fits `CustomHead({pooled})`; a vector is read by `tap='pre_logits'`."


def _described(heads: Heads, reads: Sequence[str]) -> str:
    shapes = [heads.shapes[tap] for tap in reads]
    return ", ".join(
        f"{s.name!r} (B, {s.channels})" if s.stride is None else f"{s.name!r} (B, {s.channels}, H, W)" for s in shapes
    )


def _sides(inputs: tuple[Any, ...]) -> str:
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    "Without warnings of a batch this small; what they are of comes again in training."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
