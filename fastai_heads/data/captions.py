"""Digit scenes with a caption whose words matter for one target only."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastcore.meta import delegates

from fastai_heads.data.digits import digit_scenes
from fastai_heads.errors import HeadsError

__all__ = ["captioned_scenes"]

CLAIMS = {"even": ("even", "odd"), "left": ("left", "right")}
"A tag, and the words for a scene that has it and for one that has it not."

FORMS = {
    "even": (
        "an {word} number written by hand",
        "the digit here is {word}",
        "someone wrote an {word} digit with a pen",
    ),
    "left": ("a digit in the {word} half", "the ink stands on the {word} side", "look to the {word} to find it"),
}


@delegates(digit_scenes)
def captioned_scenes(
    path: str | Path,  # folder of the scenes, as for `digit_scenes`
    seed: int = 0,  # of the scenes and of the captions
    **scene_kwargs: Any,  # `n`, `size` of `digit_scenes`
) -> pd.DataFrame:  # its table, with `caption` and `holds`
    """Digit scenes of which each has a `caption`, and whether it `holds` of the picture: 'yes' or 'no'.

    A caption says that the digit is even or odd, or that it stands on the left or the right. Half of them are wrong,
    whatever the picture and whatever the words: neither the picture alone nor the caption alone tells more than chance
    of `holds`, and no other column depends on the caption. Scenes have one digit."""
    if scene_kwargs.get("digits_per_scene", 1) not in (1, (1, 1)):
        raise HeadsError(
            f"`digits_per_scene`: a caption speaks of one digit, found {scene_kwargs['digits_per_scene']}."
        )
    table = digit_scenes(path, seed=seed, **scene_kwargs)
    rng = np.random.default_rng([seed, 15])
    captions, holds = [], []
    for tags in table["tags"].str.split():
        tag = list(CLAIMS)[rng.integers(len(CLAIMS))]
        said, form = bool(rng.integers(2)), FORMS[tag][rng.integers(3)]
        captions.append(form.format(word=CLAIMS[tag][0 if said else 1]))
        holds.append("yes" if said == (tag in tags) else "no")
    return table.assign(caption=captions, holds=holds)
