"""A learner over the network of a bundle, to train on."""

from collections.abc import Mapping
from typing import Any

from fastai.data.core import DataLoaders

from fastai_heads.data.given import check_loaders
from fastai_heads.data.inspect import inspect_data
from fastai_heads.data.plain import Stated
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError
from fastai_heads.heads.spec import HeadSpec
from fastai_heads.learner.arguments import check_settings
from fastai_heads.learner.factory import check_keywords
from fastai_heads.learner.learner import MultiHeadLearner
from fastai_heads.learner.settings import accept_trial
from fastai_heads.learner.specs import find_target
from fastai_heads.learner.trial import run_trial
from fastai_heads.model import MultiHeadModel

__all__ = ["learner_over"]


def learner_over(
    dls: DataLoaders,  # with the same inputs, targets and vocabularies
    model: MultiHeadModel,  # with its weights
    specs: Mapping[str, tuple[HeadSpec, Target]],  # name → (fitted spec, its target as it was)
    manifest: Mapping[str, Any],  # of the bundle
    **learner_kwargs: Any,  # of `MultiHeadLearner`
) -> MultiHeadLearner:
    "Make a learner over a network that is trained already. Refuses data that is not as it was."
    check_loaders(dls)
    check_keywords({name: value for name, value in learner_kwargs.items() if name not in ("strategy", "fused")})
    check_settings(learner_kwargs)
    metrics = learner_kwargs.pop("metrics", None)
    data = inspect_data(dls, {t.name: Stated(t.kind, t.n_out, None) for _, t in specs.values()})
    names = [source.name for source in data.inputs]
    wanted = [said["name"] for said in manifest["inputs"]]
    if [s.kind for s in data.inputs] != [said["kind"] for said in manifest["inputs"]]:
        raise HeadsError(f"`dls`: the bundle has the inputs {', '.join(wanted)}, and the data {', '.join(names)}.")
    bound: dict[str, tuple[HeadSpec, Target]] = {}
    for name, (spec, old) in specs.items():
        new = find_target(name, old.name, data.targets)
        if (new.kind, new.vocab) != (old.kind, old.vocab):
            raise HeadsError(
                f"`dls`: target {old.name!r} of the bundle is of kind {old.kind} with the vocabulary {old.vocab}, and "
                f"that of the data of kind {new.kind} with {new.vocab}."
            )
        bound[name] = spec, new
    model.body.check_inputs(data.sample.inputs())
    data.add_transforms(model.body.transforms())
    trial = run_trial(model, data.sample.batch(), bound)
    learn = MultiHeadLearner(data.dls, model, trial.measured(bound), data.targets, **learner_kwargs)
    accept_trial(learn, trial, metrics)
    return learn
