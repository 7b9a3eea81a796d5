"""From what a user writes as `arch=` to an arch that is found, and is ready to be cut."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from fastai_heads.bodies.contract import BodySpec, Found
from fastai_heads.bodies.image import find_image
from fastai_heads.bodies.together import On, find_bodies, find_body
from fastai_heads.data.inputs import Input
from fastai_heads.errors import HeadsError

__all__ = ["check_options", "find_arch"]

_BODY = {"taps": "they follow from `tap=` of the heads"} | {
    name: f"pass `{name}=` to `multihead_learner` itself" for name in ("arch", "pretrained", "weights", "n_in")
}
"What `cut_body` takes that is no option of the arch."


def check_options(
    body_kwargs: Mapping[str, Any],  # of `multihead_learner`
) -> dict[str, Any]:
    "Give the options of the arch. Refuses what is said elsewhere."
    for name in _BODY.keys() & body_kwargs.keys():
        raise HeadsError(f"`body_kwargs` holds options of the arch, and `{name}` is none: {_BODY[name]}.")
    return dict(body_kwargs)


def find_arch(
    arch: Any,  # of `multihead_learner`
    inputs: Sequence[Input],  # of the data
    options: Mapping[str, Any],  # of an arch of an image: `pretrained`, `weights`, `n_in`, its own
) -> Found:
    "Find the arch, or the archs of several inputs. Refuses options that no arch among them takes."
    archs = list(arch.values()) if isinstance(arch, Mapping) else [arch]
    archs = [a.arch if isinstance(a, On) else a for a in archs]
    for name, default in (("weights", None), ("pretrained", True)):
        built = next((a for a in archs if isinstance(a, nn.Module)), None)
        if built is not None and len(archs) == 1 and options[name] != default:
            what = "weights" if name == "weights" else "pretrained=False"
            raise HeadsError(f"`{what}` cannot be used: `arch` is a {type(built).__name__} that is built already.")
    unused = [name for name in options if name not in ("pretrained", "n_in") and options[name] is not None]
    if unused and all(isinstance(a, BodySpec) for a in archs):
        raise HeadsError(f"`{unused[0]}` is for an arch of an image, and `arch` is {archs[0]!r}.")
    image = partial(find_image, **options)
    if isinstance(arch, On):
        raise HeadsError(f"`arch`: `On` names a body in a dict, `{{'a': {arch!r}}}`.")
    if isinstance(arch, Mapping):
        return find_bodies(arch, inputs, image)
    if len(inputs) > 1:
        raise HeadsError(_several(inputs))
    return find_body(arch, inputs[0], image)


def _several(inputs: Sequence[Input]) -> str:
    "Say what `arch` is over several inputs."
    names = ", ".join(f"{source.name} ({source.a})" for source in inputs)
    archs = ", ".join(f"{source.name!r}: {source.arch}" for source in inputs)
    return (
        f"`arch`: the data has {len(inputs)} inputs, {names}, and each is read by a body of its own: "
        f"`arch={{{archs}}}`. If some of them are targets, pass `n_inp=` to the DataBlock."
    )
