"""A learner on several processes: fastai's `distrib_ctx`, for several heads and on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from fastai.learner import Learner
from fastai.torch_core import default_device, num_distrib

from fastai_heads.errors import HeadsError
from fastai_heads.training.ranks.exchange import train_together
from fastai_heads.training.ranks.joint import is_shared

__all__ = ["detach_distributed", "distrib_ctx", "to_detach", "to_distributed"]


@contextmanager
def distrib_ctx(
    learn: Learner,  # a `MultiHeadLearner`
    sync_bn: bool = True,  # on GPUs, replace batch norms by `nn.SyncBatchNorm`, for good
    in_notebook: bool = False,  # fastai's: launched by accelerate's `notebook_launcher`
    **kwargs: Any,  # accelerate's `Accelerator`'s: `cpu=True`, …
) -> Iterator[Learner]:
    """Train on several processes, on GPUs (nccl) or on CPUs (gloo). Within it, fits, validations and predictions are of
    all ranks together, and every rank has the result. With one process it changes nothing.

    Every rank trains on batches of `bs`. A head's loss is that over the labels of all ranks, and a rank without
    one still takes part. The first rank prints and writes files, and the others read them: `path` has to be one
    that all of them see."""
    if num_distrib() <= 1:
        yield learn
        return
    _need_accelerate()
    import fastai.distributed  # noqa: F401  gives `Learner` its `distrib_ctx`

    with Learner.distrib_ctx(learn, sync_bn, in_notebook, **kwargs):
        yield learn


def to_distributed(
    learn: Learner,  # a `MultiHeadLearner`
    sync_bn: bool = True,  # on GPUs, replace batch norms by `nn.SyncBatchNorm`, for good
    **kwargs: Any,  # accelerate's `Accelerator`'s
) -> Learner:
    "Do what `distrib_ctx` does at its start."
    _need_accelerate()
    from fastai_heads.training.ranks.trainer import HeadsTrainer

    on_cpu = torch.device(learn.dls.device or default_device()).type == "cpu"  # accelerate has to be told
    learn = learn.add_cb(HeadsTrainer(sync_bn, **{"cpu": on_cpu, **kwargs}))
    train_together(True)
    return learn


def detach_distributed(learn: Learner) -> Learner:
    "Do what `distrib_ctx` does at its end, also after an error."
    trainer = getattr(learn, "distributed_trainer", None)
    if trainer is not None:
        trainer.detach()
        learn.remove_cb(trainer)
    train_together(False)
    return learn


def to_detach(learn: Learner, b: Any, cpu: bool = True, gather: bool = True) -> Any:
    "Take a batch out of the graph. Only batches of which every rank has a part are gathered."
    return Learner.to_detach(learn, b, cpu, gather and is_shared(learn))


def _need_accelerate() -> None:
    if find_spec("accelerate") is None:
        raise HeadsError(
            "`distrib_ctx` needs accelerate, which is not installed: `pip install 'fastai_heads[distributed]'`."
        )
