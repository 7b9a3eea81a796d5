"""Crops of photographs with three targets: which photograph, how it was changed, and how much of it is seen.

Training crops come from the left 60 % of each photograph and validation crops from the rest: no pixel is in both. Needs
the extra `examples` (scikit-image, whose photographs come with its wheel)."""

from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

__all__ = ["TARGETS", "photograph_dls", "write_photographs"]

TARGETS = ("kind", "style", "area")
NAMES = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
STYLES = {
    "plain": lambda image: image,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.height / 40)),
    "negative": ImageOps.invert,
    "posterised": lambda image: ImageOps.posterize(image, 2),
}
LEFT = 0.6  # of the width, for training


def open_photographs() -> dict[str, Image.Image]:
    "Open the colour photographs of scikit-image and scikit-learn that need no network."
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(f"{error}. Run: pip install 'fastai_heads[examples]'", name=error.name) from error

    found = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in NAMES}
    found |= {"motorcycle": Image.fromarray(data.stereo_motorcycle()[0])}
    return found | dict(zip(("china", "flower"), map(Image.fromarray, load_sample_images().images)))


def place(
    photo: Image.Image,
    valid: bool,  # from the part that validation has
    rng: np.random.Generator,
) -> tuple[tuple[int, ...], float]:  # left, top, right, bottom in pixels; the part of the photograph in percent
    "Draw where a square is cut out of a photograph."
    low, high = (LEFT * photo.width, photo.width) if valid else (0, LEFT * photo.width)
    size = rng.uniform(0.25, 0.95) * min(high - low, photo.height)
    x, y = rng.uniform(low, high - size), rng.uniform(0, photo.height - size)
    return tuple(round(v) for v in (x, y, x + size, y + size)), 100 * size**2 / (photo.width * photo.height)


def write_photographs(
    folder: Path,
    n: int = 480,  # crops, three quarters of them to train on
    side: int = 64,  # pixels of a crop
    seed: int = 0,
) -> pd.DataFrame:  # columns image, kind, style, area, is_valid
    "Write crops as PNG files. The same arguments give the same files."
    rng = np.random.default_rng(seed)
    source, rows = open_photographs(), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        kind, style, valid = rng.choice(list(source)), rng.choice(list(STYLES)), i % 4 == 3
        photo = source[kind]
        corners, area = place(photo, valid, rng)
        crop = photo.crop(corners).resize((side, side), Image.Resampling.BOX)
        STYLES[style](crop).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "kind": kind, "style": style, "area": area, "is_valid": valid})
    return pd.DataFrame(rows)


def photograph_dls(
    folder: Path,  # the crops are written there
    n: int = 480,  # crops, three quarters of them to train on
    side: int = 64,  # pixels of a crop
    seed: int = 0,
    bs: int = 32,
) -> DataLoaders:  # targets kind, style, area (in percent of the photograph)
    "Make loaders over the crops."
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock, CategoryBlock, RegressionBlock),
        n_inp=1,
        get_x=ColReader("image", pref=f"{folder}/"),
        get_y=[ColReader(name) for name in TARGETS],
        splitter=ColSplitter("is_valid"),
    )
    return block.dataloaders(write_photographs(folder, n, side, seed), bs=bs, num_workers=0)
