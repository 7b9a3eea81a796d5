"""Metrics of masks against fastai's, and a boundary counted by hand."""

from types import SimpleNamespace

import pytest
import torch
from fastai.metrics import Dice, DiceMulti, JaccardCoeff, JaccardCoeffMulti, foreground_acc

from fastai_heads.tasks.mask_metrics import BoundaryF1, ForegroundAccuracy, MaskDice, MaskIoU, boundary


def measured(metric, *batches):
    metric.reset()
    for pred, targ in batches:
        metric.accumulate(SimpleNamespace(pred=pred, y=targ, yb=(targ,)))
    return metric.value


BATCHES = [(torch.randn(2, 4, 6, 7), torch.randint(0, 3, (2, 6, 7))) for _ in range(2)]


@pytest.mark.parametrize("ours, theirs", [(MaskIoU, JaccardCoeffMulti), (MaskDice, DiceMulti)])
def test_codes_are_measured_as_fastai_does(ours, theirs):
    assert measured(ours(), *BATCHES) == pytest.approx(measured(theirs(), *BATCHES))


@pytest.mark.parametrize("ours, theirs", [(MaskIoU, JaccardCoeff), (MaskDice, Dice)])
def test_two_codes_are_measured_as_fastai_does(ours, theirs):
    logits, targ = torch.randn(2, 1, 6, 7), torch.randint(0, 2, (2, 6, 7))
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    assert measured(ours(mode="binary"), (logits, targ)) == pytest.approx(measured(theirs(), (two, targ)))


def test_foreground_is_measured_as_fastai_does():
    pred, targ = BATCHES[0]
    assert measured(ForegroundAccuracy(), (pred, targ)) == pytest.approx(foreground_acc(pred, targ[:, None]).item())


@pytest.mark.parametrize("metric", [MaskIoU, MaskDice, ForegroundAccuracy, BoundaryF1])
def test_ignored_pixels_count_nowhere(metric):
    pred, targ = BATCHES[0]
    targ = targ.clone()
    targ[:, :3] = 255
    other = pred.clone()
    other[:, :, :2] = torch.randn_like(other[:, :, :2])
    assert measured(metric(), (pred, targ)) == measured(metric(), (other, targ))


@pytest.mark.parametrize("metric", [MaskIoU, MaskDice, ForegroundAccuracy, BoundaryF1])
def test_nothing_labelled_measures_nothing(metric):
    pred, targ = BATCHES[0]
    found = measured(metric(), (pred, torch.full_like(targ, 255)))
    assert found is None
    assert measured(metric()) is None


def test_several_labels_are_measured_each():
    targ = torch.randint(0, 2, (2, 3, 6, 7))
    right = (targ * 2 - 1).float()
    assert measured(MaskIoU(mode="multilabel"), (right, targ)) == 1.0


def test_a_boundary_within_the_tolerance_is_right():
    targ = torch.zeros(1, 12, 12, dtype=torch.long)
    targ[:, :, 6:] = 1
    shifted = torch.zeros_like(targ)
    shifted[:, :, 8:] = 1
    assert boundary(targ[:, None]).sum() == 24  # a column on either side
    logits = torch.nn.functional.one_hot(shifted, 2).movedim(-1, 1).float()
    values = [measured(BoundaryF1(tolerance=t), (logits, targ)) for t in (0, 1, 2)]
    assert values[0] == 0.0 and values[1] == pytest.approx(0.5) and values[2] == 1.0
