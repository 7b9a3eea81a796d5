"""A network said as data, and built again of it, for its weights to be put in."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from fastai_heads.archs.records import INPUT
from fastai_heads.bodies.contract import Body
from fastai_heads.bodies.image import ImageBody, find_image
from fastai_heads.bodies.several import Bodies
from fastai_heads.bodies.table import RowBody, TabularBody
from fastai_heads.data.inputs import ImageInput, Input, RowInput, TextInput
from fastai_heads.data.targets import Target
from fastai_heads.errors import MISFITS, HeadsError, first_line
from fastai_heads.export.files import Tensors
from fastai_heads.export.given import take
from fastai_heads.heads.said import make, say
from fastai_heads.heads.spec import HeadSpec, TapShape
from fastai_heads.model import Heads, MultiHeadModel

__all__ = ["build_network", "fitting_network", "restrict", "say_network"]

_ZOOS = ("timm", "torchvision", "fastai", "registered")
_LEADS_OUT = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"}
_LEADS_OUT |= {"weights_backbone", "url", "file", "model_name_or_path", "scriptable", "exportable"}
"Options of an arch by which it would load something, and so no manifest has them."
_SOURCES = {kind.kind: kind for kind in (ImageInput, RowInput, TextInput)}

Archs = Mapping[str, Callable[..., nn.Module] | nn.Module]
"The user's own archs, by the name of their body; '' for the only one."


# said


def say_network(
    body: Body,  # of a learner
    heads: Heads,  # those that leave, with their trunks
    specs: Mapping[str, tuple[HeadSpec, Target]],  # name → (fitted spec, its target)
    trunk_said: Mapping[str, Any],  # trunk → its function as data
) -> dict[str, Any]:
    "Say a network. Refuses by name what cannot be said."
    trunks = []
    for name, reads in heads.trunk_reads.items():
        module = trunk_said.get(name)
        said = say(heads.trunk(name), f"`trunk[{name!r}]`") if module is None else {"function": module}
        shapes = [vars(heads.shapes[tap]) for tap in heads.trunk_gives[name]]
        trunks.append({"name": name, "reads": list(reads), "module": said, "gives": shapes})
    said_heads = {}
    for name, (spec, target) in specs.items():
        said_heads[name] = {
            "spec": _say_spec(name, spec),
            "reads": list(heads.reads[name]),
            "target": {**say(vars(target), f"target {target.name!r}")},
        }
    return {"body": _say_body(body), "trunks": trunks, "heads": said_heads}


def _say_spec(name: str, spec: HeadSpec) -> dict[str, Any]:
    "Say a fitted spec. Its metrics are for training, and those that cannot be said stay at home."
    try:
        return spec.to_dict()
    except HeadsError as error:
        without = {f.name: None if f.name == "metrics" else getattr(spec, f.name) for f in fields(spec) if f.init}
        try:
            return type(spec)(**without).to_dict()
        except HeadsError:
            raise error.within(f"`heads[{name!r}]`") from None


def _say_body(body: Body) -> dict[str, Any]:
    taps = {"taps": list(body.taps)}
    if isinstance(body, Bodies):
        inner = {n: _say_body(body[n]) if body.owners[n] == n else {"same": body.owners[n]} for n in body.names}
        sources = [_say_source(s) for s in body.sources]
        return {"kind": "several", "bodies": inner, "reads": dict(body.reads), "sources": sources, **taps}
    if isinstance(body, RowBody):
        spec = {f.name: say(getattr(body.spec, f.name), f"`{f.name}` of TabularBody") for f in fields(body.spec)}
        return {"kind": "row", "spec": spec, "source": _say_source(body.source), **taps}
    if isinstance(body, ImageBody):
        return {"kind": "image", **_say_arch(body), "n_in": body.n_in, **taps}
    if body.zoo == "fastai" and hasattr(body, "seq_len"):
        names = ("config", "drop_mult", "seq_len", "max_len")
        spec = {name: say(getattr(body.spec, name), f"`{name}` of TextBody") for name in names}
        return {"kind": "awd_lstm", "spec": spec, "source": _say_source(body.source), **taps}
    if body.zoo == "transformers":
        return {"kind": "transformer", **_say_config(body), "source": _say_source(body.source), **taps}
    raise HeadsError(f"`arch`: a body of class {type(body).__name__} cannot be said as data.")


def _say_arch(body: ImageBody) -> dict[str, Any]:
    "Say an arch by its name, or that it is the user's own."
    at_home = {*_LEADS_OUT, "grad_checkpointing", "weights_backbone"}  # where weights came from: the bundle has them
    options = {k: v for k, v in getattr(body, "options", {}).items() if k not in at_home}
    options = say(options, f"`body_kwargs` of {body.arch}")
    if getattr(body.net, "transform_input", False):  # torchvision's weights of GoogLeNet and Inception turn it on
        options["transform_input"] = True
    normalized = {"mean": say(body.mean, "mean"), "std": say(body.std, "std"), "weights": body.weights}
    own = body.zoo not in _ZOOS or ":" in body.arch
    return {"arch": body.arch if own else f"{body.zoo}:{body.arch}", "own": own, "options": options, **normalized}


def _say_config(body: Body) -> dict[str, Any]:
    "Say a network of transformers by its configuration."
    config = body.net.config
    said = {k: v for k, v in config.to_dict().items() if k not in ("auto_map", "_name_or_path", "transformers_version")}
    said = {k: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for k, v in said.items()}
    return {
        "model_type": config.model_type,
        "config": say(said, f"the configuration of {body.arch}"),
        "pool": body.pool,
        "weights": body.weights,
    }


def _say_source(source: Input) -> dict[str, Any]:
    return {"kind": source.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(source).items()}}


# built


def build_network(
    said: Mapping[str, Any],  # what `say_network` gave
    archs: Archs | None = None,  # the user's own archs
) -> tuple[MultiHeadModel, dict[str, tuple[HeadSpec, Target]]]:  # the network, name → (fitted spec, its target)
    "Build a network. Nothing is loaded, and of a name only what stands in a registry is found."
    body = _build_body(take(said, "body", dict), archs or {}, "")
    shapes = {tap: TapShape.of(body.point(tap)) for tap in body.taps}
    heads = Heads({}, {}, shapes=shapes)
    for trunk in take(said, "trunks", list):
        name, reads = take(trunk, "name", str), tuple(take(trunk, "reads", list))
        module = take(trunk, "module", dict)
        channels = [heads.shapes[tap].channels for tap in reads]
        if "function" in module:
            built = make(module["function"])(channels if len(reads) > 1 else channels[0])
        else:
            built = make(module)
        heads.add_trunk(name, built, reads, [TapShape(**shape) for shape in take(trunk, "gives", list)])
    specs: dict[str, tuple[HeadSpec, Target]] = {}
    for name, head in take(said, "heads", dict).items():
        said_spec, reads = take(head, "spec", dict), tuple(take(head, "reads", list))
        with nullcontext() if "module" in said_spec else torch.device("cpu"):  # the specs' checks read numbers
            spec = HeadSpec.from_dict(said_spec)
        target = {k: tuple(v) if isinstance(v, list) else v for k, v in take(head, "target", dict).items()}
        specs[name] = spec, Target(**target)
        heads.add(name, spec.build(tuple(heads.shapes[tap] for tap in reads)), reads)
    return MultiHeadModel(body, heads), specs


def _build_body(said: Mapping[str, Any], archs: Archs, name: str) -> Body:
    taps = tuple(take(said, "taps", list))
    kind = take(said, "kind", str)
    if kind not in _BODIES:
        raise HeadsError(f"manifest: `kind` of a body is one of {', '.join(_BODIES)}, found {kind!r}.")
    return _BODIES[kind](said, taps, archs, name)


def _several(said: Mapping[str, Any], taps: tuple[str, ...], archs: Archs, _name: str) -> Body:
    inner = take(said, "bodies", dict)
    made = {n: _build_body(one, archs, n) for n, one in inner.items() if "same" not in one}
    bodies = {n: made[take(one, "same", str, default=n)] for n, one in inner.items()}
    sources = [_source(one) for one in take(said, "sources", list)]
    return Bodies(bodies, take(said, "reads", dict), sources, taps)


def _row(said: Mapping[str, Any], taps: tuple[str, ...], _archs: Archs, _name: str) -> Body:
    return RowBody(TabularBody(**make(take(said, "spec", dict))), _source(take(said, "source", dict)), taps)


def _image(said: Mapping[str, Any], taps: tuple[str, ...], archs: Archs, name: str) -> Body:
    arch, options = take(said, "arch", str), make(take(said, "options", dict))
    for option in options:
        if option in _LEADS_OUT or option.startswith("_"):
            raise HeadsError(f"manifest: `{option}` is no option that a bundle may have.")
    if take(said, "own", bool):
        found = archs.get(name, archs.get(""))
        if found is None:
            raise HeadsError(
                f"`arch`: the network {arch!r} is of no registry: pass the function that makes it, or the network, "
                f"`load_bundle(folder, arch={arch})`."
            )
        options = {} if isinstance(found, nn.Module) else options
    else:
        zoo, _, plain = arch.partition(":")
        if zoo not in _ZOOS or ":" in plain or "/" in plain:
            raise HeadsError(f"manifest: `arch` is the name of an arch of a registry, found {arch!r}.")
        found = arch
    body = find_image(found, pretrained=False, n_in=take(said, "n_in", int, most=1 << 16), **options).build(taps)
    mean, std = (said.get(k) and tuple(take(said, k, list)) for k in ("mean", "std"))
    body.mean, body.std, body.weights = mean, std, take(said, "weights", str)
    return body


def _awd_lstm(said: Mapping[str, Any], taps: tuple[str, ...], _archs: Archs, _name: str) -> Body:
    from fastai.text.models.awdlstm import AWD_LSTM  # here, as importing it changes fastai's defaults

    from fastai_heads.bodies.text import TextBody

    spec = {k: v for k, v in make(take(said, "spec", dict)).items() if v is not None}
    return TextBody(AWD_LSTM, **spec).find(_source(take(said, "source", dict))).build(taps)


def _transformer(said: Mapping[str, Any], taps: tuple[str, ...], _archs: Archs, _name: str) -> Body:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise HeadsError("this bundle reads texts by transformers: pip install fastai_heads[text]") from error
    from fastai_heads.bodies.text import TextBody

    given = {k: v for k, v in take(said, "config", dict).items() if k != "model_type" and "attn_impl" not in k}
    config = AutoConfig.for_model(take(said, "model_type", str), **given)
    net = AutoModel.from_config(config, trust_remote_code=False)
    weights = take(said, "weights", str)
    body = TextBody(net, pool=take(said, "pool", str), pretrained=bool(weights))
    built = body.find(_source(take(said, "source", dict))).build(taps)
    built.weights = weights
    return built


_BODIES = {
    "image": _image,
    "row": _row,
    "several": _several,
    "awd_lstm": _awd_lstm,
    "transformer": _transformer,
}


def _source(said: Mapping[str, Any]) -> Input:
    kind = _SOURCES.get(take(said, "kind", str))
    if kind is None:
        raise HeadsError(f"manifest: an input is {' or '.join(_SOURCES)}, found {said['kind']!r}.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if k != "kind"})


def fitting_network(
    said: Mapping[str, Any],  # what `say_network` gave
    tensors: Tensors,  # what the weights' file holds
    archs: Archs | None = None,  # the user's own archs
) -> tuple[MultiHeadModel, dict[str, tuple[HeadSpec, Target]]]:
    """Build the network that some tensors fit. It is built without memory first, where the arch can be, so that a
    manifest of a network that is not that of the tensors makes none."""
    try:
        if not _has_built(archs):
            _try_fit(said, tensors, archs)
        network, specs = build_network(said, archs)
    except HeadsError:
        raise
    except (*MISFITS, ImportError) as error:
        raise HeadsError(f"manifest: its network cannot be built: {first_line(error)}.") from error
    _check_fit(network, tensors)
    return network, specs


def _try_fit(said: Mapping[str, Any], tensors: Tensors, archs: Archs | None) -> None:
    "Refuse tensors that do not fit, where that can be told without memory: some archs compute while they are built."
    try:
        with torch.device("meta"):
            network = build_network(said, archs)[0]
    except HeadsError as error:
        if not isinstance(error.__cause__, RuntimeError | NotImplementedError | TypeError):
            raise
    except (RuntimeError, NotImplementedError, TypeError):
        pass
    else:
        _check_fit(network, tensors)


def _has_built(archs: Archs | None) -> bool:
    return any(isinstance(a, nn.Module) for a in (archs or {}).values())


def _check_fit(network: nn.Module, tensors: Tensors) -> None:
    "Refuse tensors that are not those of the network, by the first name that differs."
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: shape for name, (_, shape) in tensors.items()}
    if wanted == found:
        return
    name = next(n for n in (*wanted, *found) if wanted.get(n) != found.get(n))
    raise HeadsError(
        f"the weights do not fit the network that the manifest describes: {name} is {found.get(name, 'missing')} in "
        f"the file, and {wanted.get(name, 'not there')} in the network."
    )


def restrict(
    network: MultiHeadModel,
    heads: tuple[str, ...],  # those that are wanted
) -> MultiHeadModel:
    "Give the same network, computing what these heads need, and nothing after it."
    chosen = network.heads.only(*heads)
    read = [tap for reads in (*chosen.reads.values(), *chosen.trunk_reads.values()) for tap in reads]
    return MultiHeadModel(_restricted(network.body, set(read)), chosen)


def _restricted(body: Body, taps: set[str]) -> Body:
    if isinstance(body, Bodies):
        new = body.restrict(taps)
        inner = {}
        for key, one in new.bodies.items():
            users = [n for n in body.names if f"body_{body.owners[n]}" == key]
            inner[key] = _restricted(one, {t.partition(".")[2] for t in new.taps if t.partition(".")[0] in users})
        new._modules["bodies"] = nn.ModuleDict(inner)
        return new
    wanted = tuple(tap for tap in body.taps if tap in taps)
    if not isinstance(body, ImageBody) or wanted == body.taps or not set(wanted) - {INPUT}:
        return body
    new = copy(body)
    new.taps = wanted
    return new
