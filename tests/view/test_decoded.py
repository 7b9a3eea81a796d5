"""Values that have the form of their target are decoded, the others are given as they are."""

import torch
from torch import nn

from fastai_heads.heads import CustomHead
from fastai_heads.view.decoded import decode_heads


def pair(channels):
    "A mean and a variance."
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def test_each_head_by_its_own_target_in_head_order(make_learner):
    loss = nn.GaussianNLLLoss()
    own = CustomHead(pair, loss=lambda pred, targ: loss(pred[:, 0], targ, pred[:, 1].exp()))
    learn = make_learner("digit", "ink", "tags", heads={"ink": own, "tags": None})
    dl = learn.dls.valid
    batch = dl.one_batch()
    decoded = learn.get_preds(dl=[batch], with_decoded=True)[2]
    items = decode_heads(dl, tuple(batch[:1]), learn.heads.deciding, decoded, max_n=3)
    assert len(items) == 3 and items[0][-1].names == ("ink", "digit")
    for i, (_, values) in enumerate(items):
        assert values.digit == learn.heads.digit.vocab[decoded.digit[i]]
        assert torch.equal(values.ink, decoded.ink[i]) and type(values.ink) is torch.Tensor
