"""Specs, functions and modules said as data, and made again of it. Of a name only what stands in a list is found."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from fastai.losses import BaseLoss, BCELossFlat, L1LossFlat, MSELossFlat
from fastcore.foundation import L
from torch import Tensor, nn

from fastai_heads.errors import HeadsError, did_you_mean, unknown

__all__ = ["find_kind", "kind_names", "make", "register_module", "say", "spec_from_dict", "spec_to_dict"]

_PLACES = (
    "torch.nn",
    "torch.nn.init",
    "torch.nn.functional",
    "fastai.losses",
    "fastai.metrics",
    "fastai.layers",
    "torchvision.ops",
    "fastai_heads.heads.detection",
    "fastai_heads.heads.levels",
    "fastai_heads.tasks.mask_loss",
)
"Modules in which a name may be looked up: none of them opens a file, or does more than compute."
_OWN: dict[str, Callable[..., Any]] = {}


def register_module(
    build: Callable[..., Any],  # a class of modules, a loss or a function that makes one; found by its name
) -> Callable[..., Any]:  # itself, so that it can stand as a decorator
    "Let bundles name a class or a function of one's own. Who loads the bundle registers the same one first."
    name = getattr(build, "__name__", "")
    if not callable(build) or not name.isidentifier():
        raise HeadsError(f"`build` of register_module is a class or a function with a name, found {build!r}.")
    if _OWN.get(name, build) is not build and inspect.getmodule(_OWN[name]) is not inspect.getmodule(build):
        raise HeadsError(f"`build`: there is another {name!r} already, of {_OWN[name].__module__}.")
    _OWN[name] = build
    return build


def say(
    value: Any,  # a value of a spec, a function, a module
    what: str,  # what it is of, for messages
) -> Any:  # what JSON can hold
    "Say a value as data. Refuses by name what cannot be said."
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise HeadsError(f"{what} is {value!r}, which JSON does not have.")
        return value
    if isinstance(value, Tensor):
        return {"tensor": say(value.tolist(), what)}
    if isinstance(value, np.ndarray):
        return say(value.tolist(), what)
    if isinstance(value, list | tuple | L | set | frozenset):
        return [say(v, what) for v in value]
    if isinstance(value, Mapping):
        return {str(k): say(v, f"{what}[{k!r}]") for k, v in value.items()}
    if hasattr(value, "to_dict") and hasattr(type(value), "predicts"):
        return value.to_dict()
    if isinstance(value, partial):
        if value.args:
            raise HeadsError(
                f"{what} is a partial with places: name its arguments, `partial({_called(value.func)}, …)`."
            )
        return {"called": _name_of(value.func, what), "with": say(value.keywords, what)}
    if isinstance(value, nn.Module | BaseLoss) and not isinstance(value, type):
        return _say_object(value, what)
    return {"called": _name_of(value, what)}


def make(
    said: Any,  # what `say` gave
) -> Any:
    "Make a value again. Lists become tuples. A name that is in no list is refused."
    if isinstance(said, list):
        return tuple(make(v) for v in said)
    if not isinstance(said, Mapping):
        return said
    if "kind" in said:
        return spec_from_dict(said)
    if "tensor" in said:
        return _call(torch.tensor, {"data": said["tensor"]})
    if "parts" in said:
        return _make_parts(said)
    if "made" in said:
        return _call(find(said["made"]), make(said.get("with", {})))
    if "called" in said:
        found = find(said["called"])
        return partial(found, **make(said["with"])) if said.get("with") else found
    return {name: make(v) for name, v in said.items()}


def _call(build: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    try:
        return build(**given)
    except HeadsError:
        raise
    except Exception as error:  # whatever a constructor raises for arguments that it cannot take
        raise HeadsError(f"{_called(build)} cannot be made with {dict(given)!r}: {error}.") from error


def _make_parts(said: Mapping[str, Any]) -> nn.Module:
    "Make a container of its parts."
    parts = {name: make(part) for name, part in said["parts"].items()}
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise HeadsError(f"part {name!r} is no module: {part!r}.")
    found = nn.Sequential()
    for name, part in parts.items():
        found.add_module(name, part)
    return found


def find(
    name: Any,  # 'torch.nn:Linear', or 'own:Neck' of `register_module`
) -> Callable[..., Any]:
    "Find what a name stands for, among what may be named."
    place, _, inner = name.partition(":") if isinstance(name, str) else ("", "", "")
    if place == "own":
        if inner not in _OWN:
            raise HeadsError(
                f"{inner!r} is of the user's own code: register it first, `register_module({inner})`, as it was when "
                f"the bundle was saved.{did_you_mean(inner, _OWN)}"
            )
        return _OWN[inner]
    if place not in _PLACES:
        raise unknown("place to look up", place or name, [*_PLACES, "own"])
    found = vars(import_module(place)).get(inner)  # a module of the list above, none that a file chose
    if not _may_be_named(found, place, inner):
        raise HeadsError(f"{place} has no {inner!r} that may be named.")
    return found


def _may_be_named(value: Any, place: str, name: str) -> bool:
    "Tell whether it is a public class or function that is defined there, and no module."
    root = place.split(".")[0]
    home = getattr(value, "__module__", None) or ""
    return (
        not name.startswith("_")
        and callable(value)
        and not isinstance(value, ModuleType)
        and home.split(".")[0] == root
    )


def _name_of(value: Any, what: str) -> str:
    "Name a class or a function. Refuses what cannot be named."
    name = getattr(value, "__name__", "")
    if _OWN.get(name) is value and value is not None:
        return f"own:{name}"
    for place in _PLACES:
        if name and vars(import_module(place)).get(name) is value and _may_be_named(value, place, name):
            return f"{place}:{name}"
    kind = (
        "a lambda"
        if name == "<lambda>"
        else f"a {type(value).__name__} {name!r}"
        if name
        else f"a {type(value).__name__}"
    )
    raise HeadsError(
        f"{what} is {kind}, which cannot be said as data: give it a name and register it, `register_module(…)`, before "
        "it is saved and before it is loaded."
    )


def _say_object(value: Any, what: str) -> dict[str, Any]:
    "Say a module or a loss by its class and arguments; proved by making it again."
    kind = type(value)
    if isinstance(value, nn.Sequential) and kind.forward is nn.Sequential.forward and f"{kind.__name__}" not in _OWN:
        return {"parts": {name: say(part, f"{what}, part {name!r}") for name, part in value.named_children()}}
    maker = _MAKERS.get(type(value.func), kind) if kind is BaseLoss else kind
    said = {"made": _name_of(maker, what), "with": {} if maker is not kind else _arguments(value, what)}
    with torch.device("meta"):
        again = make(said)
    if _facts(again) != _facts(value):
        raise HeadsError(
            f"{what} is a {kind.__name__} whose arguments cannot be told from it: pass the class, or a function with a "
            "name that makes it, `register_module(function)`."
        )
    return said


def _arguments(value: Any, what: str) -> dict[str, Any]:
    "Read the arguments of an object from its attributes of the same names, those that are not as by default."
    known = dict(inspect.signature(type(value)).parameters)
    if isinstance(value, BaseLoss):
        known |= inspect.signature(type(value.func)).parameters
    try:
        fresh = type(value)()
    except TypeError:  # it has arguments that are needed
        fresh = None
    found: dict[str, Any] = {}
    for name in (n for n in known if n not in _NOT_READ):
        there, own = _attribute(value, name)
        if not there:
            continue
        by_default = (known[name].default,) if fresh is None else _attribute(fresh, name)[1:]
        if isinstance(own, Tensor) or by_default == (known[name].empty,) or own != by_default[0]:
            found[name] = say(own, f"`{name}` of {what}")
    return found


_MAKERS = {nn.MSELoss: MSELossFlat, nn.L1Loss: L1LossFlat, nn.BCELoss: BCELossFlat}
"fastai's functions that make a loss, named as its classes are."
_NOT_READ = ("device", "dtype", "args", "kwargs", "loss_cls", "size_average", "reduce")


def _attribute(value: Any, name: str) -> tuple[bool, Any]:
    "Find an attribute, of fastai's losses also that of the loss within; whether it is there, and what it is."
    for source in (value, getattr(value, "func", None)):
        if hasattr(source, name):
            found = getattr(source, name)
            return True, (found is not None if name == "bias" and not isinstance(found, bool) else found)
    return False, None


def _facts(value: Any) -> Any:
    """Collect what tells an object of a class from another one: plain attributes and shapes, in its parts too. Whether
    it trains does not: `learn.predict` leaves a network in evaluation."""
    if not isinstance(value, nn.Module):
        inner = getattr(value, "func", None)
        return _plain(vars(value)), None if inner is None else (type(inner), _facts(inner))
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in value.state_dict().items()}
    return repr(value), shapes, _plain({k: v for k, v in vars(value).items() if k[0] != "_" and k != "training"})


def _plain(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {k: repr(v) for k, v in attributes.items() if isinstance(v, bool | int | float | str | tuple | list | None)}


def _called(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


# specs


def kind_names(kind: type) -> tuple[str, ...]:
    "List the names of a class of specs: of detectors those of the kinds of detector, too."
    name = kind.__name__.removesuffix("Head")
    plain = "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))
    return {"multi_label": ("multilabel",), "detection": ("detection", "retinanet", "fcos")}.get(plain, (plain,))


def find_kind(
    base: type,  # `HeadSpec`
    name: Any,  # as a dict says it
) -> type:
    "Find a class of specs by the name of its kind: ours, or one that the user has defined."
    found: dict[str, type] = {}
    todo = [base]
    while todo:
        todo += (kinds := todo.pop().__subclasses__())
        found |= {n: k for k in kinds for n in kind_names(k)}
    if name not in found:
        raise unknown("kind of head", name, sorted(n for n in found if n != "pooled_spec"))
    return found[name]


def spec_to_dict(
    spec: Any,  # a `HeadSpec`
) -> dict[str, Any]:
    "Say a spec as a dict: its kind, and the fields that are not as by default."
    own = getattr(spec, "kind", None)  # a detector's
    said: dict[str, Any] = {"kind": own if isinstance(own, str) else kind_names(type(spec))[0]}
    for field in fields(spec):
        value = getattr(spec, field.name)
        default = field.default
        if (
            field.name == "kind"
            or value is default
            or (isinstance(value, str | int | float | tuple) and value == default)
        ):
            continue
        said[field.name] = say(value, f"`{field.name}` of {spec.label}")
    return said


def spec_from_dict(
    said: Mapping[str, Any],  # `{'kind': 'classification', 'tap': 'layer3'}`
) -> Any:  # a `HeadSpec`
    "Make a spec of a dict. Raises `HeadsError` for a kind or a field that there is not."
    from fastai_heads.heads.spec import HeadSpec  # here, as specs say themselves by this module

    if not isinstance(said, Mapping) or not isinstance(said.get("kind"), str):
        raise HeadsError(
            f"a head is said as a dict with its `kind`, such as {{'kind': 'classification'}}; found {said!r}."
        )
    kind = find_kind(HeadSpec, said["kind"])
    given = {name: _field(name, value) for name, value in said.items() if name != "kind"}
    if said["kind"] in kind_names(kind)[1:]:
        given["kind"] = said["kind"]
    return _call(kind, given)


def _field(name: str, value: Any) -> Any:
    try:
        return make(value)
    except HeadsError as error:
        raise error.within(f"`{name}`") from error.__cause__
