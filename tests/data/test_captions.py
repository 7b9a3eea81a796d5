"""Captioned scenes: the words matter for one target, and only beside the picture."""

import pandas as pd
import pytest

from fastai_heads.data.captions import captioned_scenes
from fastai_heads.data.digits import digit_scenes
from fastai_heads.errors import HeadsError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> pd.DataFrame:
    return captioned_scenes(tmp_path_factory.mktemp("scenes") / "a", n=600, size=32)


def test_a_caption_holds_where_it_says_what_the_tags_say(scenes):
    for caption, holds, tags in zip(scenes["caption"], scenes["holds"], scenes["tags"].str.split()):
        words = set(caption.split())
        (claim,) = words & {"even", "odd", "left", "right"}
        assert holds == ("yes" if claim in tags else "no"), caption


def test_neither_the_picture_nor_the_words_tell_alone(scenes):
    right = scenes["holds"] == "yes"
    assert 0.45 < right.mean() < 0.55
    by_words = right.groupby(scenes["caption"].str.extract("(even|odd|left|right)")[0]).mean()
    by_picture = right.groupby(scenes["tags"].str.contains("even")).mean()
    assert by_words.between(0.36, 0.64).all() and by_picture.between(0.4, 0.6).all()
    assert scenes["caption"].nunique() == 12


def test_the_rest_is_that_of_digit_scenes(scenes, tmp_path):
    plain = digit_scenes(tmp_path / "b", n=600, size=32)
    pd.testing.assert_frame_equal(scenes.drop(columns=["caption", "holds"]), plain)
    again = captioned_scenes(tmp_path / "b", n=600, size=32)
    assert list(again["caption"]) == list(scenes["caption"])


def test_scenes_of_several_digits_are_refused(tmp_path):
    with pytest.raises(HeadsError, match="one digit, found 2"):
        captioned_scenes(tmp_path / "c", digits_per_scene=2)
