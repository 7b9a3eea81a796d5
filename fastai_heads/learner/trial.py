"""One real batch through the whole network before any training: what does not fit is refused by name."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastai.torch_core import find_bs, get_model, no_random
from torch import Tensor, nn

from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, first_line
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.learner.trial_losses import check_decoding, check_loss, check_output
from fastai_heads.learner.trial_sizes import why_too_small
from fastai_heads.model import Heads, MultiHeadModel
from fastai_heads.modes import evaluate, keep_buffers
from fastai_heads.training.bound import BoundHead

__all__ = ["Trial", "run_trial"]

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
        "Give the specs with the number of outputs of the modules that decide it themselves."
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
    batch: tuple[tuple[Any, ...], tuple[Any, ...]],  # a few items: inputs and targets, as `Sample.batch` gives them
    specs: Specs,  # name → (fitted spec, its target), in head order
) -> Trial:
    """Run a few training items through the network, in evaluation mode. Its mode, buffers and device, and the state of
    every random generator, are as before. Raises `HeadsError` naming the part that cannot take what it is given, or
    the head whose output is not what its target needs."""
    network = get_model(model)
    with no_random(), _quiet(), torch.no_grad():
        inputs, targets = batch
        device = next((t.device for t in inputs if isinstance(t, Tensor)), torch.device("cpu"))
        with evaluate(network), keep_buffers(network, device):
            preds = _forward(network, inputs, specs)
    found = dict(zip(network[1].names, preds, strict=True))
    for name, (spec, target) in specs.items():
        check_output(name, spec, spec.task(target), found[name], find_bs(inputs))
    return Trial(inputs, targets, found)


def _measured(spec: HeadSpec, pred: Tensor) -> HeadSpec:
    return replace(spec, n_out=pred.shape[1] if pred.ndim > 1 else 1) if spec.n_out is None else spec


# the network


def _forward(network: MultiHeadModel, inputs: tuple[Any, ...], specs: Specs) -> tuple[Any, ...]:
    "Give the predictions. An error says which part it comes from; a compiled network is not compiled for this."
    with _watched(network) as entered:
        try:
            return network(*inputs)
        except HeadsError:
            raise
        except Exception as error:  # modules are the user's, and may raise anything
            raise HeadsError(_misfit(entered[-1:], network, inputs, specs, error)) from error


@contextmanager
def _watched(network: MultiHeadModel) -> Iterator[list[tuple[str, str]]]:
    "Note which part was entered last: ('body', ''), ('trunk', name) or ('head', name)."
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
    entered: Sequence[tuple[str, str]], network: MultiHeadModel, inputs: tuple, specs: Specs, error: Exception
) -> str:
    "Say which part cannot take what it is given, and what that is."
    body, heads = network
    kind, name = entered[0] if entered else ("body", "")
    if kind == "body":
        return f"`arch`: {body.arch} cannot take inputs of {body.size_of(inputs)}: {first_line(error)}."
    if kind == "trunk":
        reads = _described(heads, heads.trunk_reads[name])
        return f"`trunk[{name!r}]` cannot take what it reads, {reads}: {first_line(error)}."
    spec, _ = specs[name]
    if len(heads.reads[name]) > 1 and not spec.brings_module:
        return why_too_small([n for n in specs if len(heads.reads[n]) > 1], network, inputs, error)
    field = "module" if spec.brings_module else "tap"
    reads = heads.reads[name]
    return (
        f"`heads[{name!r}]`: `{field}` of {spec.label} cannot take what it reads, {_described(heads, reads)}: "
        f"{first_line(error)}.{_remedy(spec, [heads.shapes[tap] for tap in reads])}"
    )


def _remedy(spec: HeadSpec, reads: Sequence[TapShape]) -> str:
    "Name the nearest module that takes what is read."
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


@contextmanager
def _quiet() -> Iterator[None]:
    "Keep warnings of a batch this small away; what they are of comes again in training."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
