"""One training step of a `MultiHeadLearner` with two heads, on random images."""

import tempfile

import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders, Datasets
from fastai.data.transforms import Categorize, RegressionSetup
from torch import nn

from fastai_heads.archs.proof.checks import Case
from fastai_heads.archs.records import FEATURES, PRE_LOGITS
from fastai_heads.heads import ClassificationHead, RegressionHead
from fastai_heads.learner import multihead_learner

__all__ = ["random_dls", "training_step"]


class NoValidation(Callback):
    "Leaves the validation out."

    def before_validate(self) -> None:
        raise CancelValidException


def random_dls(
    n_in: int,  # channels
    side: int,  # of the images
    bs: int = 2,  # images in the one batch of the training set
) -> DataLoaders:  # with a class and a number to predict
    "Make random images in one batch for training and one for validation."
    images = torch.rand(2 * bs, n_in, side, side)
    values = torch.linspace(-1, 1, 2 * bs).tolist()
    kind, value = (lambda i: i % 2), (lambda i: values[i])
    items = [lambda i: images[i]], [kind, Categorize(vocab=[0, 1])], [value, RegressionSetup()]
    data = Datasets(range(2 * bs), items, splits=[range(bs), range(bs, 2 * bs)], n_inp=1)
    return data.dataloaders(bs=bs, num_workers=0, path=tempfile.gettempdir(), device="cpu")


def training_step(case: Case) -> str:
    """Check that one step changes the body and both heads. One predicts a class from `features`, the other a number
    from an inner tap."""
    inner = next((t for t in reversed(case.ends()) if t not in (FEATURES, PRE_LOGITS)), FEATURES)
    body = case.body([inner, FEATURES])
    heads = {"kind": ClassificationHead(target=0, tap=FEATURES), "value": RegressionHead(target=1, tap=inner)}
    learn = multihead_learner(random_dls(case.network.n_in, case.little.shape[-1]), body, heads, metrics=[])
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.add_cb(NoValidation())
    learn.logger = lambda row: None
    before = [{k: v.detach().clone() for k, v in m.named_parameters()} for m in learn.model]
    learn.fit(1, 1e-2)
    if len(learn.recorder.losses) != 1 or not learn.recorder.losses[0].isfinite():
        return f"losses {learn.recorder.losses}"
    return _find_unmoved(learn.model, before)


def _find_unmoved(model: nn.Sequential, before: list[dict[str, torch.Tensor]]) -> str:
    "Say which part a step left as it was. The answer is '' if the body and the heads have all changed."
    for module, old in zip(model, before, strict=True):
        new = dict(module.named_parameters())
        fixed = [k for k, p in new.items() if p.requires_grad and torch.equal(p, old[k])]
        if len(fixed) == sum(p.requires_grad for p in new.values()):
            return f"no parameter of {type(module).__name__} was changed by a step"
    return ""
