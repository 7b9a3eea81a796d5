"""A bundle: weights and a manifest, which run no code. `save_bundle` writes it, `load_bundle` gives a `Predictor`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import get_model
from safetensors.torch import load, save
from torch import Tensor, nn

from fastai_heads.data.sample import draw_sample
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.export.card import write_card
from fastai_heads.export.data import say_inputs
from fastai_heads.export.files import (
    CARD,
    MANIFEST,
    MAX_MANIFEST,
    SCHEMA,
    WEIGHTS,
    check_plain,
    read_bundle,
    read_tensors,
    write_folder,
)
from fastai_heads.export.given import take
from fastai_heads.export.graph import TorchNetwork
from fastai_heads.export.manifest import check_answers, check_inputs
from fastai_heads.export.network import build_network, fitting_network, restrict, say_network
from fastai_heads.export.predictor import Predictor
from fastai_heads.heads.said import say
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.model import MultiHeadModel
from fastai_heads.modes import evaluate, same_random
from fastai_heads.tasks.box import BoxTask
from fastai_heads.tasks.classification import ClassificationTask
from fastai_heads.tasks.detection import DetectionTask
from fastai_heads.tasks.mask import MaskTask
from fastai_heads.tasks.multilabel import MultiLabelTask
from fastai_heads.tasks.own import OwnTask
from fastai_heads.tasks.point import PointTask
from fastai_heads.tasks.regression import RegressionTask
from fastai_heads.tasks.task import Task
from fastai_heads.values import check_value, is_device

__all__ = ["load_bundle", "predictor_of", "save_bundle"]

Arch = Callable[..., nn.Module] | nn.Module
Specs = dict[str, tuple[HeadSpec, Target]]
_ANSWERS = {
    ClassificationTask: "label",
    MultiLabelTask: "tags",
    RegressionTask: "numbers",
    PointTask: "points",
    BoxTask: "box",
    MaskTask: "mask",
    DetectionTask: "detections",
}
_PACKAGES = ("fastai_heads", "fastai", "torch", "torchvision", "timm", "transformers", "tokenizers", "spacy")


@same_random()
def save_bundle(
    learn: Learner,  # a `MultiHeadLearner`
    folder: str | Path,  # that is written
    overwrite: bool = False,  # take the place of a bundle that is there
    license: str = "",  # of the weights, such as 'apache-2.0'
    notes: str = "",  # what a reader of the model card should know
) -> Path:  # the folder
    """Write the learner to a folder whose files run no code: `model.safetensors`, `manifest.json`, and a model card.

    Auxiliary heads (`train_only`) are left out. What cannot be said as data is refused by name before anything is
    written. The network is built again of the manifest, and has to give the same predictions to the bit."""
    folder = _check_folder(folder)
    check_value("overwrite", "save_bundle", overwrite, isinstance(overwrite, bool), "True or False")
    for name, value in (("license", license), ("notes", notes)):
        if not isinstance(value, str):
            raise HeadsError(f"`{name}` of save_bundle is a text, found {value!r}.")
    manifest, network = describe(learn)
    manifest |= {"license": license, "notes": notes}
    state = {name: t.detach().cpu().contiguous().clone() for name, t in network.state_dict().items()}
    weights = save(state)
    listed = {name: [dtype, list(shape)] for name, (dtype, shape) in read_tensors(weights).items()}
    manifest["weights"] = {"sha256": hashlib.sha256(weights).hexdigest(), "tensors": listed}
    check_plain(manifest, MANIFEST)
    content = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
    if len(content) > MAX_MANIFEST:
        raise HeadsError(f"the manifest would have {len(content):,} bytes, and {MAX_MANIFEST:,} at most are read.")
    card = write_card(manifest, _last_row(learn)).encode()
    write_folder(folder, {WEIGHTS: weights, MANIFEST: content, CARD: card}, overwrite)
    return folder


def _check_folder(folder: Any) -> Path:
    if not isinstance(folder, str | Path) or not str(folder):
        raise HeadsError(f"`folder` is a path, found {folder!r}.")
    return Path(folder)


def _last_row(learn: Learner) -> dict[str, float]:
    "Give the last row of the table of training, by name."
    recorder = getattr(learn, "recorder", None)
    values = list(getattr(recorder, "values", []) or [])
    names = [n for n in getattr(recorder, "metric_names", []) if n not in ("epoch", "time")]
    row = zip(names, values[-1]) if values else ()  # of `learn.predict` it holds nothing
    return {name: float(value) for name, value in row if value is not None}


def describe(
    learn: Learner,  # a `MultiHeadLearner`
) -> tuple[dict[str, Any], MultiHeadModel]:  # the manifest without its weights, and the network that leaves
    "Say a learner as data, and build its network again of it, to prove that the data says all."
    if not isinstance(getattr(learn, "heads", None), Mapping):
        raise HeadsError(f"a learner made by `multihead_learner` is saved, found {type(learn).__name__}.")
    heads = {name: head for name, head in learn.heads.items() if not head.spec.train_only}
    if not heads:
        raise HeadsError(f"a bundle leaves auxiliary heads out, and there is no other: {', '.join(learn.heads.names)}.")
    whole = get_model(learn.model)
    model = restrict(whole, tuple(heads))
    specs: Specs = {name: (head.spec, head.target) for name, head in heads.items()}
    inputs = say_inputs(learn.dls)
    said = say_network(model.body, model.heads, specs, getattr(whole.heads, "trunk_said", {}))
    manifest = {
        "schema": SCHEMA,
        "versions": _versions(),
        "inputs": inputs,
        "network": said,
    }
    sample = draw_sample(learn.dls, n=2).inputs(device=next(whole.parameters()).device)
    rebuilt = _rebuilt(said, model, sample)
    with evaluate(model):
        preds = model(*sample)
    manifest["answers"] = {name: _say_answer(heads[name], pred) for name, pred in zip(heads, preds)}
    return manifest, rebuilt


def _rebuilt(said: dict[str, Any], model: MultiHeadModel, sample: tuple) -> MultiHeadModel:
    "Build the network again with the same weights. An arch whose name does not make it again is the user's own."
    own = [b for b in _image_bodies(said["body"]) if b["own"]]
    if own:
        return model
    try:
        network = build_network(said)[0]
        _put(network, {k: v for k, v in model.state_dict().items() if k in network.state_dict()})
        network.to(next(model.parameters()).device)
        with evaluate(model), evaluate(network):
            same = all(_same(a, b) for a, b in zip(model(*sample), network(*sample)))
    except (RuntimeError, HeadsError) as error:
        same, why = False, f" ({error})"
    else:
        why = ""
    if same:
        return network
    named = _image_bodies(said["body"])
    if not named:
        raise HeadsError(f"the network cannot be said as data: built again of it, it predicts something else{why}.")
    raise HeadsError(
        f"`arch`: {', '.join(b['arch'] for b in named)} built again by name is not this network{why}. Register what "
        "makes it, `register_arch(name, function)`, and make the learner by that name."
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _image_bodies(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    if said["kind"] == "several":
        return [b for one in said["bodies"].values() if "same" not in one for b in _image_bodies(one)]
    return [said] if said["kind"] == "image" else []


def _put(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    "Put weights into a network as they are, dtype and all."
    grads = {name: p.requires_grad for name, p in network.named_parameters()}
    network.load_state_dict(dict(state), assign=True)
    for name, p in network.named_parameters():
        p.requires_grad_(grads[name] and p.is_floating_point())


def _say_answer(head: Any, pred: Tensor) -> dict[str, Any]:
    "Say how a head's output is read."
    task, target = head.task, head.target
    said: dict[str, Any] = {"answer": answer_of_task(task, pred), "kind": target.kind}
    said["vocab"] = None if head.vocab is None else say(list(head.vocab), f"the vocabulary of {head.name!r}")
    for name in ("threshold", "decode_score"):
        value = getattr(task, name, None)
        said |= {} if value is None else {name: float(value)}
    return said


def answer_of_task(
    task: Task,  # of a head
    pred: Tensor,  # (B, …) of the head
) -> str:
    "Tell what the answer of a task is called: by its kind; of a task that decodes on its own by what it gives."
    if isinstance(task, OwnTask):
        reader = None if task.decoder is not None else task._reader(pred)
        task = task if reader is None else reader
    if type(task) in _ANSWERS:
        return _ANSWERS[type(task)]
    decoded = task.decode(task.activation(pred))
    is_class = task.target.vocab is not None and decoded.ndim == 1 and not decoded.is_floating_point()
    return "class" if is_class else "plain"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@same_random()
def load_bundle(
    folder: str | Path,  # what `save_bundle` wrote
    learner: bool = False,  # a `MultiHeadLearner` over `dls`, to train on, instead of a `Predictor`
    dls: DataLoaders | None = None,  # for the learner: data with the same inputs, targets and vocabularies
    arch: Arch | Mapping[str, Arch] | None = None,  # what makes a network of no registry; of several bodies by name
    device: Any = "cpu",  # where the predictor computes
    **learner_kwargs: Any,  # of the learner: `strategy`, `opt_func`, `cbs`, …
) -> Any:  # a `Predictor`, or the learner
    """Read a bundle. No code of its files is run, nothing that they name is imported, and nothing outside the folder is
    opened. What is damaged, too large or does not fit is refused before a tensor is made."""
    check_value("learner", "load_bundle", learner, isinstance(learner, bool), "True or False")
    made = arch is None or callable(arch) or (isinstance(arch, Mapping) and all(map(callable, arch.values())))
    check_value("arch", "load_bundle", arch, made, "a function that makes the network, or a dict of them by body")
    check_value("device", "load_bundle", device, is_device(device), "a device of torch that is there, such as 'cpu'")
    if not learner and (dls is not None or learner_kwargs):
        name = "dls" if dls is not None else next(iter(learner_kwargs))
        raise HeadsError(f"`{name}` is for a learner: pass `learner=True`.")
    if learner and not isinstance(dls, DataLoaders):
        raise HeadsError(f"`dls` is the data that the learner trains on, found {dls!r}.")
    manifest, weights = read_bundle(_check_folder(folder))
    network, specs = _load_network(manifest, weights, arch)
    if not learner:
        return Predictor(manifest, TorchNetwork(network, tuple(manifest["inputs"]), _tasks(manifest, specs), device))
    from fastai_heads.learner.from_bundle import learner_over  # here, as a predictor needs no learner

    return learner_over(dls, network, specs, manifest, **learner_kwargs)


def _load_network(manifest: dict[str, Any], weights: bytes, arch: Any) -> tuple[MultiHeadModel, Specs]:
    archs = arch if isinstance(arch, Mapping) else {} if arch is None else {"": arch}
    check_inputs(take(manifest, "inputs", list))
    check_answers(take(manifest, "answers", dict))
    network, specs = fitting_network(take(manifest, "network", dict), read_tensors(weights), archs)
    _put(network, load(weights))
    return network, specs


def _tasks(manifest: Mapping[str, Any], specs: Specs) -> dict[str, tuple[Task, str]]:
    found = {}
    for name, (spec, target) in specs.items():
        said, task = take(manifest["answers"], name, dict), spec.task(target)
        if said["answer"] != _ANSWERS.get(type(task), said["answer"]):
            raise HeadsError(f"manifest: the answer of {name!r} is {_ANSWERS[type(task)]!r}, found {said['answer']!r}.")
        vocab = said["vocab"]
        if vocab is not None and len(vocab) != spec.n_out:
            raise HeadsError(
                f"manifest: `vocab` of {name!r} has {len(vocab)} classes, and the head {spec.n_out} outputs."
            )
        found[name] = task, said["answer"]
    return found


def predictor_of(
    learn: Learner,  # a `MultiHeadLearner`
) -> Predictor:  # over a copy of its weights
    "Make a predictor of a learner, without files."
    manifest, network = describe(learn)
    manifest = json.loads(json.dumps(manifest))
    copied = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    rebuilt, specs = build_network(manifest["network"])
    _put(rebuilt, copied)
    return Predictor(manifest, TorchNetwork(rebuilt, tuple(manifest["inputs"]), _tasks(manifest, specs)))
