"""From what a user writes as `heads=` to one fitted spec per head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from functools import partial
from typing import Any

from fastai.data.core import DataLoaders

from fastai_heads.data.plain import Stated
from fastai_heads.data.targets import Target, target_labels
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.defaults import default_head, has_default
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.names import check_name
from fastai_heads.tasks.task import Task

__all__ = [
    "check_deciding",
    "find_target",
    "fit_spec",
    "in_code",
    "name_specs",
    "rename_targets",
    "resolve_heads",
    "state_targets",
]

HeadsArg = Sequence[str] | Mapping[str, HeadSpec | None] | None


def resolve_heads(
    heads: HeadsArg,  # as for `multihead_learner`
    targets: Sequence[Target],  # of the data
    dls: DataLoaders,  # for the labels
    fields: Mapping[str, Any] | None = None,  # that the body wants of a pooled head which the user does not name
) -> dict[str, tuple[HeadSpec, Target]]:  # name → (fitted spec, its target), in head order
    "Bring names, specs and targets together. Raises `HeadsError` for whatever does not fit."
    found: dict[str, tuple[HeadSpec, Target]] = {}
    for name, (spec, target) in name_specs(heads, targets, fields).items():
        found[name] = fit_spec(name, spec, target, dls), target
    return found


def state_targets(
    heads: HeadsArg,  # as for `multihead_learner`
) -> dict[str, Stated]:  # name → what its head says of a target, in order
    "Gather what the heads say of their targets, for data that does not tell; auxiliary heads say nothing."
    if not isinstance(heads, Mapping):
        return {}
    found = {name: spec for name, spec in heads.items() if getattr(spec, "target", None) in (None, name)}
    return {str(name): _stated(spec) for name, spec in found.items()}


def _stated(spec: HeadSpec | None) -> Stated:
    kinds = sorted(getattr(spec, "kinds", frozenset()) - {"unknown"})
    kind = kinds[0] if len(kinds) == 1 else "unknown"
    own, kinds_own = getattr(spec, "n_out", None), getattr(spec, "predicts", Task).n_out
    n_out = kinds_own if own is None else own
    return Stated(kind, n_out, getattr(spec, "ignore_index", None))


def rename_targets(
    heads: HeadsArg,  # as for `multihead_learner`
    targets: Sequence[Target],  # of the data
) -> tuple[Target, ...]:
    "Name the targets as a list of heads names them, in order."
    named = isinstance(heads, Sequence) and not isinstance(heads, str) and len(heads) == len(targets)
    if not named or not all(isinstance(name, str) for name in heads):
        return tuple(targets)  # a list that does not fit is refused with the heads
    return tuple(replace(t, name=name) for t, name in zip(targets, heads))


def fit_spec(
    name: str,  # of the head
    spec: HeadSpec,  # as written
    target: Target,  # what it predicts
    dls: DataLoaders,  # for the labels
) -> HeadSpec:
    "Return the spec fitted to its target; an error says which head it is of."
    try:
        return spec.fit(target, lambda: target_labels(dls, target.index))
    except HeadsError as error:
        raise error.within(f"`heads[{name!r}]`", _head_that_fits(spec, target)) from None


def _head_that_fits(spec: HeadSpec, target: Target) -> str:
    "Say the nearest right answer where a head is of another kind than its target."
    if not spec.kinds or target.kind in spec.kinds or not has_default(target):
        return ""
    fields = {} if spec.target is None else {"target": spec.target}
    return f" Did you mean `{in_code(default_head(target), **fields)}`?"


def name_specs(
    heads: HeadsArg,  # as for `multihead_learner`
    targets: Sequence[Target],  # of the data
    fields: Mapping[str, Any] | None = None,  # that the body wants of a pooled head which the user does not name
) -> dict[str, tuple[HeadSpec, Target]]:  # name → (spec as written, its target)
    "Return what stands where, before a spec is fitted to its target."
    default = partial(default_head, fields=fields)
    if heads is None:
        found = {t.name: (default(t), t) for t in targets}
    elif isinstance(heads, Mapping):
        found = _from_mapping(heads, targets, default)
    elif isinstance(heads, Sequence) and not (isinstance(heads, str) and len(targets) > 1):
        found = _from_names([heads] if isinstance(heads, str) else heads, targets, default)
    else:
        raise HeadsError(
            "`heads` is None, a list of names (one per target) or a dict of name to spec, "
            f"found {in_code(heads)}.{_as_dict([heads], targets)}"
        )
    if not found:
        raise HeadsError("`heads` leaves every target out: a learner needs at least one head.")
    check_deciding(found)
    return found


def _from_names(
    names: Sequence[str], targets: Sequence[Target], default: Callable[[Target], HeadSpec]
) -> dict[str, tuple[HeadSpec, Target]]:
    if any(_is_spec(name) for name in names):
        raise HeadsError(f"`heads` as a list holds names, and a spec stands in a dict.{_as_dict(names, targets)}")
    if len(names) != len(targets):
        raise HeadsError(
            f"`heads` as a list names every target in order: {len(targets)} of them "
            f"({', '.join(t.name for t in targets)}), found {len(names)} names: {list(names)!r}."
        )
    double = sorted({n for n in names if list(names).count(n) > 1})
    if double:
        raise HeadsError(f"`heads` names two targets {double[0]!r}: every head needs a name of its own.")
    return {check_name(name): (default(t), t) for name, t in zip(names, targets)}


def _from_mapping(
    heads: Mapping[str, HeadSpec | None], targets: Sequence[Target], default: Callable[[Target], HeadSpec]
) -> dict[str, tuple[HeadSpec, Target]]:
    named = {t.name: t for t in targets}
    found: dict[str, tuple[HeadSpec, Target]] = {}
    left_out: set[str] = set()
    for name, spec in heads.items():
        check_name(name)
        if spec is None:
            left_out.add(find_target(name, None, targets).name)
        elif not isinstance(spec, HeadSpec):
            raise HeadsError(_not_a_spec(name, spec))
        else:
            found[name] = spec, find_target(name, spec.target, targets)
    spoken_for = {t.name for spec, t in found.values() if not spec.train_only} | left_out
    rest = {name: t for name, t in named.items() if name not in spoken_for}
    clash = [name for name in rest if name in found]
    if clash:
        raise HeadsError(
            f"`heads[{clash[0]!r}]` is not the head that decodes target {clash[0]!r}, and bears its name: "
            f"call it something else, with `target={found[clash[0]][1].name!r}`."
        )
    return found | {name: (default(t), t) for name, t in rest.items()}


def find_target(
    name: str,  # of the head
    wanted: str | int | None,  # the target's name or index; None: the head's own name
    targets: Sequence[Target],  # of the data
) -> Target:
    "Find the target of one head: by name, by index, or the one that bears the head's own name."
    names = [t.name for t in targets]
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 0 <= wanted < len(targets):
            raise HeadsError(f"`heads[{name!r}]`: `target={wanted}` is out of range: there are {len(targets)} targets.")
        return targets[wanted]
    key = name if wanted is None else wanted
    if key not in names:
        how = "" if wanted is not None else f" Pass `target=` if head {name!r} is to predict another one."
        raise HeadsError(
            f"`heads[{name!r}]`: there is no target {key!r}. Targets: {', '.join(names)}."
            + did_you_mean(key, names)
            + how
        )
    return targets[names.index(key)]


def _is_spec(value: object) -> bool:
    "Tell whether it is a spec, or a class of specs."
    return isinstance(value, HeadSpec) or (isinstance(value, type) and issubclass(value, HeadSpec))


def _as_dict(specs: Sequence[object], targets: Sequence[Target]) -> str:
    "Give the nearest right answer to specs without names: each at a target that it fits, in order."
    free, pairs = list(targets), []
    for spec in specs:
        if not _is_spec(spec):
            return (
                f" Did you mean `heads={[t.name for t in targets]!r}`?"
                if isinstance(spec, str | set | frozenset)
                else ""
            )
        fitting = [t for t in free if not spec.kinds or t.kind in spec.kinds] or free
        if not fitting:
            break
        free.remove(fitting[0])
        pairs.append(f"{fitting[0].name!r}: {in_code(spec)}")
    return f" Did you mean `heads={{{', '.join(pairs)}}}`?"


def in_code(
    value: object,  # a spec, a class of specs, or anything else that a user wrote
    **fields: Any,  # to be added to a spec
) -> str:
    "Write a spec as a user would, with the fields that are not as by default; of anything else say what it is."
    if isinstance(value, type) and issubclass(value, HeadSpec):
        return f"{value.__name__}()"
    if not isinstance(value, HeadSpec):
        return f"{type(value).__name__}: {value!r}"
    own = {f.name: getattr(value, f.name) for f in dataclass_fields(value)}
    changed = {f.name: own[f.name] for f in dataclass_fields(value) if not _same(own[f.name], f.default)} | fields
    said = (f"{name}={v!r}" if isinstance(v, str | int | float | tuple) else f"{name}=…" for name, v in changed.items())
    return f"{value.label}({', '.join(said)})"


def _same(value: object, default: object) -> bool:
    "Tell whether a field is as by default; arrays, which cannot be compared so, are not."
    return value is default or (isinstance(value, str | int | float | tuple) and value == default)


def _not_a_spec(name: str, found: object) -> str:
    if isinstance(found, type) and issubclass(found, HeadSpec):
        return f"`heads[{name!r}]` is the class {found.__name__}: make it a spec with `{found.__name__}()`."
    if callable(found):
        return f"`heads[{name!r}]` is a spec, found {type(found).__name__}: wrap it in `CustomHead(…)`."
    return (
        f"`heads[{name!r}]` is a spec such as `ClassificationHead()`, or None to leave the target out, found {found!r}."
    )


def check_deciding(
    found: Mapping[str, tuple[HeadSpec, Target]],  # name → (spec, its target)
) -> None:
    "Refuse a second head that decodes a target: any further head on it is auxiliary."
    deciding: dict[str, str] = {}
    for name, (spec, target) in found.items():
        if spec.train_only:
            continue
        if target.name in deciding:
            raise HeadsError(
                f"`heads`: {deciding[target.name]!r} and {name!r} both decode target {target.name!r}: "
                f"pass `train_only=True` to the one that is auxiliary."
            )
        deciding[target.name] = name
