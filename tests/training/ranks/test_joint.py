"""What a batch is over all ranks; here of one, the others are in `test_trainer.py`."""

from types import SimpleNamespace

import torch

from fastai_heads.training.ranks.joint import join_batch
from fastai_heads.training.step import CombinedLoss, count_labels, measure_batch, read_labels, read_loss


def join(heads, preds, targs, losses):
    loss = CombinedLoss(heads)
    learn = SimpleNamespace(head_losses=losses, pred=preds, yb=targs, loss_func=loss, training=True)
    measures = [measure_batch(learn, head, place) for place, head in enumerate(heads.values())]
    return join_batch(list(heads.values()), measures, count_labels(loss, targs))


def test_a_rank_without_labels_counts_for_nothing(three, batch):
    heads, (preds, targs) = three(partial=True), batch
    targs[1][:] = -100
    losses = [head.train_loss(pred, targs[head.target.index]) for head, pred in zip(heads.values(), preds)]
    losses[0] = torch.tensor(float("nan"))  # of no item
    joint = join(heads, preds, targs, losses)
    assert joint.labels.tolist() == [0, 8, 8] and joint.counts.tolist() == [0, 24, 16]
    wanted = torch.stack([torch.tensor(0.0), *(loss.detach() for loss in losses[1:])])
    torch.testing.assert_close(joint.losses.float(), wanted)


def test_without_other_ranks_it_is_the_batch_itself(three, batch):
    heads, (preds, targs) = three(partial=True), batch
    targs[1][:3] = -100
    losses = [head.train_loss(pred, targs[head.target.index]) for head, pred in zip(heads.values(), preds)]
    learn = SimpleNamespace(head_losses=losses, yb=targs, dl=None)
    joint = join(heads, preds, targs, losses)
    for place, head in enumerate(heads.values()):
        assert read_labels(learn, head, place) == joint.labels[place] == (5 if head.name == "breed" else 8)
        assert not read_loss(learn, place).requires_grad
        torch.testing.assert_close(read_loss(learn, place), joint.losses[place].float())
