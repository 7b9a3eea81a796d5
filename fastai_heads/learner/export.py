"""What leaves the house: a learner without its data and its auxiliary heads, in one file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import HIGHEST_PROTOCOL
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from fastai.learner import Learner
from fastai.torch_core import rank_distrib

from fastai_heads.disk import whole_file
from fastai_heads.errors import HeadsError
from fastai_heads.values import check_value, is_whole

__all__ = ["export"]


def export(
    learn: Learner,  # a `MultiHeadLearner`
    fname: str | Path = "export.pkl",  # a name in `path`, or a path
    pickle_module: ModuleType = cloudpickle,  # fastai's
    pickle_protocol: int = 2,  # fastai's
) -> None:
    """Write the learner to one file, without the auxiliary heads (`train_only`) and what they alone read. A strategy
    that was made for so many heads, as `UW(3)`, is the plain sum there.

    The learner is as before, also where it cannot be written; the file is then not there, or the old one."""
    if not isinstance(fname, str | Path) or not Path(fname).name:
        raise HeadsError(f"`fname` is a file's name in `learn.path`, or a path, found {fname!r}.")
    file = Path(learn.path) / fname
    if not file.parent.is_dir():
        raise HeadsError(f"`fname`: there is no folder {file.parent}.")
    if file.is_dir():
        raise HeadsError(f"`fname`: {file} is a folder.")
    dumps = hasattr(pickle_module, "Pickler")
    check_value("pickle_module", "`export`", pickle_module, dumps, "a module such as `cloudpickle`")
    fits = is_whole(pickle_protocol, least=2) and pickle_protocol <= HIGHEST_PROTOCOL
    check_value("pickle_protocol", "`export`", pickle_protocol, fits, f"a whole number from 2 to {HIGHEST_PROTOCOL}")
    auxiliary = [name for name, head in learn.heads.items() if head.spec.train_only]
    if len(auxiliary) == len(learn.heads):
        raise HeadsError(f"`export` leaves auxiliary heads out, and there is no other: {', '.join(auxiliary)}.")
    if rank_distrib():
        return
    with whole_file(file) as part:
        with _unchanged(learn):
            Learner.export(learn, part.absolute(), pickle_module, pickle_protocol)
        if auxiliary:
            torch.save(_without(part, auxiliary), part, pickle_module, pickle_protocol)


@contextmanager
def _unchanged(learn: Any) -> Iterator[None]:
    "Put data and optimizer back; fastai takes both off while it writes, and leaves them so after an error."
    dls, opt = learn._dls, learn.opt
    try:
        yield
    finally:
        learn._dls, learn.opt = dls, opt


def _without(file: Path, names: list[str]) -> Any:
    "Read the learner that a file of our own writing holds, without some heads and the trunks that they alone read."
    learn = torch.load(file, weights_only=False)
    strategy, learn.strategy = learn.strategy, None
    for name in names:
        learn.drop_head(name)
    learn.model[1].drop_unread()
    with suppress(HeadsError):  # one that was made for more heads
        learn.strategy = strategy
    learn.opt = None
    return learn
