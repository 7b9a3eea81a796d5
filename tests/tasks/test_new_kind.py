"""A kind of target of one's own: a block, a task and a head, and nothing else in the package knows of it."""

from dataclasses import dataclass

import pytest
import torch
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import ColReader, ColSplitter
from fastai.learner import load_learner
from fastai.vision.data import ImageBlock
from fasttransform import Transform
from torch import Tensor

from fastai_heads.data.digits import digit_scenes
from fastai_heads.data.kinds import Answer, TellsKind
from fastai_heads.heads.pooled import PooledSpec
from fastai_heads.learner.factory import multihead_learner
from fastai_heads.tasks.task import Task

# the file in `data/`


class MakeAngle(TellsKind, Transform):
    "An angle in degrees as a tensor."

    def target_kind(self):
        return "angle", 2, None

    def encodes(self, o: float):
        return torch.tensor(float(o))

    def decodes(self, o: Tensor):
        return o.item()


# the file in `tasks/`


def turned(pred: Tensor, targ: Tensor, reduction: str = "mean") -> Tensor:
    each = 1 - (torch.atan2(pred[:, 0], pred[:, 1]) - targ.deg2rad()).cos()
    return each.mean() if reduction == "mean" else each


def degrees_off(pred: Tensor, targ: Tensor) -> Tensor:
    off = torch.atan2(pred[:, 0], pred[:, 1]) - targ.deg2rad()
    return torch.atan2(off.sin(), off.cos()).rad2deg().abs().mean()


class AngleTask(Task):
    "An angle, (B, 2) sine and cosine of any length, target (B,) degrees."

    answers = Answer.NUMBERS
    blends = False

    def default_loss(self):
        return turned

    def decode(self, pred):
        return torch.atan2(pred[:, 0], pred[:, 1]).rad2deg()

    def default_metrics(self):
        return (degrees_off,)


# the head


@dataclass(frozen=True, kw_only=True)
class AngleHead(PooledSpec):
    kinds = frozenset({"angle"})
    predicts = AngleTask


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    path = tmp_path_factory.mktemp("angles") / "scenes"
    table = digit_scenes(path, n=24, size=32)
    table = table.assign(turn=[15.0 * i for i in range(len(table))])
    blocks = (ImageBlock, TransformBlock(type_tfms=[MakeAngle()]))
    block = DataBlock(
        blocks=blocks, get_x=ColReader("image", pref=path), get_y=ColReader("turn"), splitter=ColSplitter()
    )
    learn = multihead_learner(block.dataloaders(table, bs=6), "test_resnet", {"turn": AngleHead()}, pretrained=False)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    with learn.no_logging():
        learn.fit(1, 1e-3)
    return learn


def test_it_trains_and_is_measured_decoded_and_shown(learn, tmp_path):
    assert learn.data_targets[0].kind == "angle" and learn.heads.turn.spec.n_out == 2
    table = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    preds, targs, decoded, losses = learn.get_preds(with_decoded=True, with_loss=True)
    wanted = torch.atan2(preds.turn[:, 0], preds.turn[:, 1])
    torch.testing.assert_close(decoded.turn, wanted.rad2deg())
    each = 1 - (wanted - targs.turn.deg2rad()).cos()
    torch.testing.assert_close(losses.turn.as_subclass(Tensor), each)
    torch.testing.assert_close(table["valid_turn_loss"], float(each.mean()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table["turn_degrees_off"], float(degrees_off(preds.turn, targs.turn)))
    item = learn.dls.valid_ds.items.iloc[0]
    assert learn.predict(item)[0].turn == pytest.approx(decoded.turn[0].item(), abs=1e-3)
    learn.show_results(max_n=2)
    learn.head("turn").show_results(max_n=2)
    learn.path = tmp_path
    learn.export()
    again = load_learner(tmp_path / "export.pkl")
    assert again.predict(item)[0].turn == pytest.approx(decoded.turn[0].item(), abs=1e-3)
