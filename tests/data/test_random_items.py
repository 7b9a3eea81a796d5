"""Items that are drawn at random want several views, and others one."""

import pytest
import torch
from fastai.vision.augment import Brightness, Flip, aug_transforms
from fasttransform import Transform

from fastai_heads.data.digits import digits_dls
from fastai_heads.data.random_items import check_views
from fastai_heads.errors import HeadsError


class Noise(Transform):
    "A user's own augmentation."

    split_idx = 0

    def encodes(self, x: torch.Tensor):
        return x + torch.rand(1) if x.ndim == 4 else x


@pytest.fixture
def dls(tmp_path):
    return lambda *tfms: digits_dls(path=tmp_path, n=12, size=32, bs=4, batch_tfms=list(tfms))


@pytest.mark.parametrize(
    ("tfms", "said"),
    [
        (lambda: [Flip(), Brightness()], r"\(Brightness, Flip\)"),
        (aug_transforms, "augmented"),
        (lambda: [Noise()], r"\(two draws of one item differ\)"),
    ],
)
def test_augmentation_wants_views(dls, tfms, said):
    with pytest.raises(HeadsError, match=f"`views=1`: .*{said}"):
        check_views(dls(*tfms()).train, 1)
    check_views(dls(*tfms()).train, 2)


def test_without_it_one_is_enough(dls):
    train = dls(Flip(p=0.0)).train
    state = torch.get_rng_state()
    check_views(train, 1)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(HeadsError, match="`views=3`: nothing of the training items is random"):
        check_views(dls().train, 3)
