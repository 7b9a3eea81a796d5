"""Handwritten digits on a noisy canvas, as arrays: pictures whose labels are exactly true."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from fastai_heads.errors import HeadsError
from fastai_heads.values import is_whole

__all__ = ["INK", "Scene", "SceneParams", "ink_box", "render", "scenes"]

INK = 0.25  # a pixel belongs to the digit (its mask and box) where ink covers at least this share of it
VALID = 0.2  # share of the scenes, and of the handwritten digits, that is for validation
MARGIN = 1 / 8  # share of a digit's side that stays free around it, so that its smoothed edge is not cut off
TRIES = 200  # places tried for one digit among others; if none is free, the digit is left out


@dataclass(frozen=True)
class SceneParams:
    "The parameters of a set of scenes. They are checked when the object is made."

    n: int = 2400  # scenes, a fifth of them for validation
    size: int = 64  # width and height of the canvas in pixels, 32 at least
    digits_per_scene: tuple[int, int] = (1, 1)  # fewest and most digits on one canvas, at most 9
    seed: int = 0
    overlap: float | None = None  # None: digits stand apart; else two stand side by side and share 0 to 0.8 of a width

    def __post_init__(self):
        least, most = self.digits_per_scene
        for name, value, ok, want in (
            ("n", self.n, is_whole(self.n, 5), "5 scenes at least, since a fifth is for validation"),
            ("size", self.size, is_whole(self.size, 32), "32 pixels at least"),
            ("digits_per_scene", self.digits_per_scene, 1 <= least <= most <= 9, "(fewest, most) from 1 to 9"),
            ("seed", self.seed, is_whole(self.seed, 0), "a seed of 0 or more"),
            (
                "overlap",
                self.overlap,
                self.overlap is None or 0 <= self.overlap <= 0.8,
                "a share from 0 to 0.8, or None",
            ),
        ):
            if not ok:
                raise HeadsError(f"`{name}`: expected {want}, found {value!r}.")
        if self.overlap is not None and (least, most) != (2, 2):
            raise HeadsError(
                f"`overlap` puts two digits side by side and needs `digits_per_scene=2`, found {self.digits_per_scene}."
            )


@dataclass(frozen=True)
class Scene:
    "One picture and its truth. Coordinates are pixels, counted at their edges: pixel i runs from i to i + 1."

    image: np.ndarray  # (size, size, 3) uint8
    digits: list[int]  # the classes, in the order of drawing; of two side by side, the left one first
    sources: list[int]  # their indices in `sklearn.datasets.load_digits`
    inks: np.ndarray  # (k, size, size) float, share of each pixel that a digit's ink covers
    faint: bool  # the ink is pale
    is_valid: bool


def _keys(distance: np.ndarray) -> np.ndarray:
    "Give the weights of cubic interpolation at distances in source pixels. Source: Keys 1981, a = -0.5 (Catmull-Rom)."
    d = np.abs(distance)
    return np.where(d < 1, (1.5 * d - 2.5) * d**2 + 1, np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0.0))


def render(
    digits: np.ndarray,  # (k, 8, 8) ink from 0 to 1
    left: np.ndarray,  # (k,) x of the left edge in pixels, any real number
    top: np.ndarray,  # (k,) y of the upper edge in pixels
    side: np.ndarray,  # (k,) width and height in pixels
    size: int,  # of the canvas in pixels
) -> np.ndarray:  # (k, size, size) share of each pixel that ink covers, 0 to 1
    "Scale digits and put them on the canvas, by cubic interpolation along each axis."

    def weights(start):
        at = (np.arange(size) + 0.5 - start[:, None]) / side[:, None] * 8 - 0.5
        return _keys(at[..., None] - np.arange(8))

    return np.clip(weights(top) @ digits @ weights(left).transpose(0, 2, 1), 0, 1)


def ink_box(
    ink: np.ndarray,  # (size, size) share of each pixel that ink covers
) -> tuple[int, int, int, int]:  # x1, y1, x2, y2 in pixels
    "Find the tight box around the pixels of a digit. x1 is its first column, x2 the column after its last."
    x, y = np.flatnonzero((ink >= INK).any(0)), np.flatnonzero((ink >= INK).any(1))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def _deal(pool: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    "Draw `total` elements of `pool` as from a deck of cards: shuffle it, and use all of it before one comes again."
    rounds = [rng.permutation(pool) for _ in range(-(-total // len(pool)))]
    return np.concatenate(rounds)[:total]


def _place(
    sides: np.ndarray,  # (k,) in pixels
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:  # (k, 2) left and top in pixels, NaN where no free place was found
    "Find places for some digits. No two of their squares overlap, margins included."
    places = np.full((len(sides), 2), np.nan)
    outer = sides * (1 + 2 * MARGIN)
    for i in range(len(sides)):
        tries = rng.uniform(0, size - outer[i], (TRIES if i else 1, 1, 2))
        others = np.flatnonzero(~np.isnan(places[:, 0]))
        apart = (tries >= places[others] + outer[others, None]) | (tries + outer[i] <= places[others])
        free = np.flatnonzero(apart.any(-1).all(-1))
        if len(free):
            places[i] = tries[free[0], 0]
    return places + (sides * MARGIN)[:, None]


def _draw_apart(k: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    "Draw digits that do not overlap, in pixels: (k,) sides, the largest first, and (k, 2) left and top. See `_place`."
    narrowest, widest = (0.25, 0.6) if k == 1 else (0.2, max(0.21, 0.52 / np.sqrt(k)))
    sides = np.sort(rng.uniform(narrowest, widest, k))[::-1] * size
    return sides, _place(sides, size, rng)


def _draw_side_by_side(overlap: float, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    "Draw two digits that share `overlap` of their mean width, in pixels: (2,) sides and (2, 2) left and top."
    sides = rng.uniform(0.3, 0.44, 2) * size  # at 0.44 two of them just fit side by side
    reach, apart = sides * (0.5 + MARGIN), (1 - overlap) * sides.mean()  # centre to edge; centre to centre
    x = rng.uniform(max(reach[0], reach[1] - apart), size - max(reach[0], reach[1] + apart))
    y = rng.uniform(reach.max(), size - reach.max()) + rng.uniform(-0.25, 0.25, 2) * sides
    centres = np.stack([[x, x + apart], np.clip(y, reach, size - reach)], 1)
    return sides, centres - sides[:, None] / 2


def _paint(inks: np.ndarray, pale: float, rng: np.random.Generator) -> np.ndarray:
    "Paint dark ink on light paper, (size, size, 3) uint8. Both are tinted a little, and every pixel has noise."
    picture = np.ones((*inks.shape[1:], 1)) * (rng.uniform(170, 230) + rng.uniform(-12, 12, 3))
    for ink in inks[..., None]:
        picture = picture * (1 - ink) + (20 + 90 * pale + rng.uniform(-15, 15, 3)) * ink
    picture += rng.normal(0, 10, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def scenes(
    params: SceneParams,
) -> Iterator[Scene]:
    """Draw the scenes one by one, training before validation. The same parameters give the same scenes.

    Another size gives the same scenes in other pixels. The 1797 handwritten digits are split first, so that no digit is
    in both a training and a validation scene. The square of a single digit is 0.25 to 0.6 of the canvas wide; that of
    one among k digits is 0.2 to 0.52 / √k. Digits do not overlap: a digit is left out if no place is free for it.

    With `overlap` two digits of 0.3 to 0.44 stand side by side. The centre of each is at most a quarter of its side
    away from a common height. Their squares share that part of their mean width. Source of the task: Sabour et al.
    2017, sec. 6 (MultiMNIST)."""
    rng, number = np.random.default_rng(params.seed), 0
    written = load_digits()
    order = rng.permutation(len(written.target))
    n_valid, cut = round(params.n * VALID), round(len(order) * VALID)
    least, most = params.digits_per_scene
    for is_valid, n, pool in ((False, params.n - n_valid, order[cut:]), (True, n_valid, order[:cut])):
        counts = rng.integers(least, most + 1, n)
        sources = np.split(_deal(pool, counts.sum(), rng), np.cumsum(counts)[:-1])
        for source in sources:
            if params.overlap is None:
                sides, places = _draw_apart(len(source), params.size, rng)
            else:
                sides, places = _draw_side_by_side(params.overlap, params.size, rng)
            kept = ~np.isnan(places[:, 0])
            source, sides, places = source[kept], sides[kept], places[kept]
            inks = render(written.images[source] / 16, places[:, 0], places[:, 1], sides, params.size)
            pale = rng.uniform()
            digits = written.target[source].tolist()
            image = _paint(inks, pale, np.random.default_rng([params.seed, number]))
            number += 1
            yield Scene(image, digits, source.tolist(), inks, pale > 0.6, is_valid)
