"""Photographs on which a coin lies, with four targets: which photograph, what was done to it, how much of it is seen,
and where the coin is.

Photographs and coins are those of scikit-image and scikit-learn: the extra `examples`. Training and validation show
other parts of the photographs (`photographs.LEFT`) and other coins."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fastai_heads.examples.photographs import STYLES, open_photographs, place

__all__ = ["cut_coins", "write_coins"]

CHANGES = tuple(name for name in STYLES if name != "plain")
HELD_OUT = 6
"Coins that validation alone shows."


@lru_cache(maxsize=1)
def cut_coins() -> tuple[Image.Image, ...]:
    "Cut the coins out of scikit-image's photograph of them: RGBA, clear outside the coin."
    from skimage import data, filters, measure, morphology, segmentation

    photo = data.coins()
    inside = morphology.closing(photo > filters.threshold_otsu(photo), np.ones((3, 3)))
    regions = measure.regionprops(measure.label(segmentation.clear_border(inside)))
    found = []
    for region in (r for r in regions if r.area >= 1000):
        top, left, bottom, right = region.bbox
        alpha = Image.fromarray((region.image_filled * 255).astype(np.uint8))
        coin = Image.fromarray(photo[top:bottom, left:right]).convert("RGB")
        coin.putalpha(alpha)
        found.append(coin)
    return tuple(found)


def write_coins(
    folder: Path,
    n: int = 480,  # pictures, three quarters of them to train on
    side: int = 128,  # pixels of a picture
    seed: int = 0,
) -> pd.DataFrame:  # a row a picture
    """Write pictures as JPEG files, and `labels.csv`. The same arguments give the same files.

    Columns: `image`; `photo`, a class; `changes`, tags ('grey blurred'); `area`, the part of the photograph in percent;
    `coin`, a box in pixels ('x1 y1 x2 y2'); `is_valid`."""
    rng = np.random.default_rng(seed)
    source, rows = open_photographs(), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        photo, valid = rng.choice(list(source)), i % 4 == 3
        corners, area = place(source[photo], valid, rng)
        picture = source[photo].crop(corners).resize((side, side), Image.Resampling.BOX)
        box = _lay(picture, cut_coins()[-HELD_OUT:] if valid else cut_coins()[:-HELD_OUT], rng)
        changes = [name for name in CHANGES if rng.random() < 0.3] or ["plain"]
        for name in changes:
            picture = STYLES[name](picture)
        picture.save(folder / f"{i}.jpg", quality=92)
        coin = " ".join(map(str, box))
        rows.append(
            {"image": f"{i}.jpg", "photo": photo, "changes": " ".join(changes), "area": round(area, 2), "coin": coin}
            | {"is_valid": valid}
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "labels.csv", index=False)
    return table


def _lay(picture: Image.Image, among: tuple[Image.Image, ...], rng: np.random.Generator) -> tuple[int, ...]:
    "Lay a coin onto a picture, and return its box."
    coin = among[rng.integers(len(among))].rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
    coin = coin.crop(coin.getchannel("A").getbbox())
    longest = round(rng.uniform(0.2, 0.45) * picture.width)
    coin.thumbnail((longest, longest))
    x, y = (int(rng.integers(0, whole - own + 1)) for whole, own in zip(picture.size, coin.size))
    picture.paste(coin, (x, y), coin)
    return x, y, x + coin.width, y + coin.height
