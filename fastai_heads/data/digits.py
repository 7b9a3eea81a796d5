"""Digit scenes: real handwritten digits on a noisy canvas. PNG files and a CSV, with `DataLoaders` over them."""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.external import fastai_cfg
from fastai.data.transforms import ColReader, ColSplitter
from fastai.vision.data import ImageBlock, MaskBlock, PointBlock
from fastcore.meta import delegates
from PIL import Image

from fastai_heads.data.blocks import BoxBlock, NumbersReader
from fastai_heads.data.box_items import BoxesReader
from fastai_heads.data.detection_block import DetectionBlock
from fastai_heads.data.partial import PartialBlock
from fastai_heads.data.scenes import INK, Scene, SceneParams, ink_box, scenes
from fastai_heads.disk import beside
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.values import check_value, is_whole

__all__ = ["MASK_CODES", "TAGS", "blank_labels", "digit_scenes", "digits_block", "digits_dls"]

DIGITS = [str(d) for d in range(10)]
MASK_CODES = ["paper", *DIGITS]  # meanings of a mask's pixels: 0 is paper, d + 1 is digit d
TAGS = ["even", "faint", "large", "left", "loop", "odd", "right"]
LOOPS = (0, 6, 8, 9)  # the classes that have the tag `loop`, even where a digit is written without one
CANVAS_MM = 64  # width of every canvas in millimetres, whatever its size in pixels
RECORD = "scenes.json"  # the parameters, beside the scenes; written last


@dataclass(frozen=True)
class _Target:
    "A kind of target: the block that it needs, and the reader that takes it from the CSV."

    block: Callable[[], TransformBlock]
    reader: Callable[[Path], ColReader]  # folder of the scenes → reader of the column


TARGETS: dict[str, _Target] = {
    "digit": _Target(lambda: CategoryBlock(vocab=DIGITS), lambda path: ColReader("digit")),
    "left": _Target(lambda: CategoryBlock(vocab=DIGITS), lambda path: ColReader("left")),
    "right": _Target(lambda: CategoryBlock(vocab=DIGITS), lambda path: ColReader("right")),
    "tags": _Target(lambda: MultiCategoryBlock(vocab=TAGS), lambda path: ColReader("tags", label_delim=" ")),
    "ink": _Target(RegressionBlock, lambda path: ColReader("ink")),
    "centre": _Target(lambda: PointBlock, lambda path: NumbersReader("centre")),
    "box": _Target(BoxBlock, lambda path: ColReader("box")),
    "mask": _Target(lambda: MaskBlock(MASK_CODES), lambda path: ColReader("mask", pref=path)),
    "count": _Target(CategoryBlock, lambda path: ColReader("count")),
    "boxes": _Target(lambda: DetectionBlock(range(10)), lambda path: BoxesReader("boxes", "labels")),
}


def _ink_mm2(inks: np.ndarray) -> float:
    "Measure the area that ink covers, in mm². Where two digits overlap, the area counts once."
    return float((1 - (1 - inks).prod(0)).sum()) * (CANVAS_MM / inks.shape[-1]) ** 2


def _codes(scene: Scene) -> np.ndarray:
    "Draw the mask, (size, size) uint8, in `MASK_CODES`. Where two digits overlap, the one on top gives the code."
    mask = np.zeros(scene.inks.shape[1:], dtype=np.uint8)
    for ink, digit in zip(scene.inks, scene.digits):
        mask[ink >= INK] = digit + 1
    return mask


def _single(scene: Scene) -> dict[str, object]:
    "Make the columns that only scenes of one digit have."
    ink, digit = scene.inks[0], scene.digits[0]
    at = np.arange(len(ink)) + 0.5
    x, y = (ink.sum(0) @ at) / ink.sum(), (ink.sum(1) @ at) / ink.sum()
    x1, y1, x2, y2 = ink_box(ink)
    tags = {
        "even": digit % 2 == 0,
        "odd": digit % 2 == 1,
        "loop": digit in LOOPS,
        "large": (y2 - y1) / len(ink) >= 0.4,
        "left": x < len(ink) / 2,
        "right": x >= len(ink) / 2,
        "faint": scene.faint,
    }
    return {
        "digit": digit,
        "tags": " ".join(tag for tag in TAGS if tags[tag]),
        "centre": f"{x:.2f} {y:.2f}",
        "box": f"{x1} {y1} {x2} {y2}",
        "source": scene.sources[0],
    }


def _row(scene: Scene, name: str, params: SceneParams) -> dict[str, object]:
    "Make one row of the CSV."
    single, pair = params.digits_per_scene == (1, 1), params.overlap is not None
    return {
        "image": f"images/{name}",
        "mask": f"masks/{name}",
        **(_single(scene) if single else {}),
        **(dict(zip(("left", "right"), scene.digits)) if pair else {}),
        "ink": round(_ink_mm2(scene.inks), 2),
        "count": len(scene.digits),
        "boxes": json.dumps([ink_box(ink) for ink in scene.inks]),
        "labels": json.dumps(scene.digits),
        "sources": json.dumps(scene.sources),
        "is_valid": scene.is_valid,
    }


def _write(path: Path, params: SceneParams) -> None:
    "Write images, masks, the CSV and, last, the record."
    (path / "images").mkdir()
    (path / "masks").mkdir()
    rows = []
    for i, scene in enumerate(scenes(params)):
        name = f"{i:05d}.png"
        Image.fromarray(scene.image).save(path / "images" / name, compress_level=1)
        Image.fromarray(_codes(scene)).save(path / "masks" / name, compress_level=1)
        rows.append(_row(scene, name, params))
    pd.DataFrame(rows).to_csv(path / "labels.csv", index=False)
    (path / RECORD).write_text(json.dumps(asdict(params)))


def _is_there(path: Path, params: SceneParams) -> bool:
    "Tell whether `path` holds these very scenes. Raises `HeadsError` where it holds anything else."
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    record = path / RECORD
    if not record.is_file():
        raise HeadsError(f"`path` {path} is in use and holds no digit scenes; give an empty or a new folder.")
    new = json.loads(json.dumps(asdict(params)))
    old = {"overlap": None} | json.loads(record.read_text())  # older records do not name it
    other = [f"{k}={old.get(k)} there, {k}={v} asked for" for k, v in new.items() if old.get(k) != v]
    if other:
        raise HeadsError(f"`path` {path} holds other digit scenes ({'; '.join(other)}); give another folder.")
    return True


def _params(
    n: int = 2400,
    size: int = 64,
    digits_per_scene: int | tuple[int, int] = 1,
    seed: int = 0,
    overlap: float | None = None,
) -> SceneParams:
    "Collect the parameters of `digit_scenes`. Both forms of `digits_per_scene` become a pair."
    span = (digits_per_scene,) * 2 if isinstance(digits_per_scene, int) else tuple(digits_per_scene)
    return SceneParams(n, size, span, seed, None if overlap is None else float(overlap))


def _default_path(params: SceneParams) -> Path:
    "Choose a folder below fastai's data folder. Every set of parameters has its own."
    least, most = params.digits_per_scene
    name = f"n{params.n}-size{params.size}-digits{least}to{most}-seed{params.seed}"
    if params.overlap is not None:
        name += f"-overlap{params.overlap:g}"
    return fastai_cfg().path("data") / "digit_scenes" / name


def digit_scenes(
    path: str | Path,  # folder to write to, made if it is not there
    n: int = 2400,  # scenes, the last fifth of them for validation
    size: int = 64,  # width and height in pixels, 32 at least
    digits_per_scene: int | tuple[int, int] = 1,  # number of digits on one canvas, or fewest and most
    seed: int = 0,  # the same scenes for the same seed
    overlap: float | None = None,  # None: digits stand apart; for two digits, the share of a width that both cover
) -> pd.DataFrame:  # `labels.csv`, one row per scene
    """Write scenes of real handwritten digits (scikit-learn's `load_digits`) to `path`: `images/`, `masks/`,
    `labels.csv`.

    The columns are `image` and `mask` (paths below `path`), `ink` (the area that ink covers, in mm² on a canvas 64 mm
    wide), `count` (digits), `boxes`, `labels` and `sources` (JSON lists, one entry per digit), and `is_valid`. Scenes
    of one digit also have:

    - `digit`: '0' … '9'
    - `tags`: see `TAGS`. `loop` is for 0, 6, 8, 9, `large` for a box at least 0.4 of the canvas high, `left` and
      `right` go by the centre, `faint` is for pale ink
    - `centre`: 'x y', the ink's centre of gravity
    - `box`: 'x1 y1 x2 y2', tight around the mask
    - `source`: the one entry of `sources`

    Coordinates are pixels: pixel i runs from i to i + 1. Mask codes are `MASK_CODES`. No handwritten digit (`source`)
    is in both a training and a validation scene. Digits do not overlap.

    With `digits_per_scene=2` and `overlap` from 0 to 0.8 two digits stand side by side, as in MultiMNIST (Sabour et al.
    2017). Their squares share that part of their width. The right digit lies over the left one, in picture and mask.
    Each digit has its own box. The columns `left` and `right` ('0' … '9') say which digit is where.

    A folder that holds these very scenes is read and not written again. A folder that holds anything else raises
    `HeadsError`."""
    params, path = _params(n, size, digits_per_scene, seed, overlap), Path(path)
    if not _is_there(path, params):
        with beside(path) as aside:
            _write(aside, params)
            aside.chmod(0o755)
            try:
                aside.replace(path)
            except OSError:
                if not _is_there(path, params):  # another process may have written them meanwhile
                    raise
    return pd.read_csv(path / "labels.csv", dtype=dict.fromkeys(("digit", "left", "right"), str))


def blank_labels(
    scenes: pd.DataFrame,  # left as it is
    columns: Iterable[str],  # the columns that lose labels
    missing: float,  # share of the training rows that lose their label, 0 to below 1
    seed: int = 0,  # the choice of rows depends on it and on the column's name alone
) -> pd.DataFrame:
    """Copy a table and take labels away. Each column loses a share of the training rows (`is_valid` false), drawn for
    that column alone."""
    if not 0 <= missing < 1:
        raise HeadsError(f"`missing`: expected a share from 0 to below 1, found {missing}.")
    blanked, train = scenes.copy(), np.flatnonzero(~scenes["is_valid"].to_numpy(dtype=bool))
    for column in columns:
        if pd.api.types.is_integer_dtype(blanked[column]):  # else pandas turns 3 into 3.0
            blanked[column] = blanked[column].astype(object)
        rng = np.random.default_rng([seed, zlib.crc32(column.encode())])
        gone = rng.choice(train, round(missing * len(train)), replace=False)
        blanked.iloc[gone, blanked.columns.get_loc(column)] = None
    return blanked


def _check_targets(targets: Sequence[str], columns: Iterable[str] | None = None) -> None:
    """Refuse an unknown name, a name given twice, and no name at all. With `columns`, refuse what these scenes do not
    have."""
    for name in targets:
        if name not in TARGETS:
            raise HeadsError(
                f"`targets`: unknown target {name!r}.{did_you_mean(name, TARGETS)} Known: {', '.join(TARGETS)}."
            )
        if columns is not None and name not in columns:
            there = ", ".join(target for target in TARGETS if target in columns)
            side = " Two digits side by side, `digits_per_scene=2, overlap=0.3`, have it."
            raise HeadsError(
                f"`targets`: these scenes have no {name!r}, only {there}.{side if name in ('left', 'right') else ''}"
            )
    if not targets or len(set(targets)) < len(targets):
        raise HeadsError(f"`targets`: expected one name or more, each once, found {tuple(targets)}.")


def digits_block(
    path: str | Path,  # the folder of the scenes
    targets: Sequence[str] = ("digit",),  # of digit, tags, ink, centre, box, mask, count, boxes, left, right
    partial: bool = False,  # labels may be missing: each block is put in a `PartialBlock`
    item_tfms: Sequence | None = None,  # as in `DataBlock`
    batch_tfms: Sequence | None = None,  # as in `DataBlock`; flips and zooms make `tags` and `ink` untrue
) -> DataBlock:
    "Make the ordinary `DataBlock` over the rows of `labels.csv`: `ColReader`s, a `ColSplitter`, one block per target."
    _check_targets(targets)
    chosen = [TARGETS[name] for name in targets]
    blocks = [PartialBlock(t.block()) if partial else t.block() for t in chosen]
    return DataBlock(
        blocks=[ImageBlock, *blocks],
        getters=[ColReader("image", pref=Path(path)), *(t.reader(Path(path)) for t in chosen)],
        n_inp=1,
        splitter=ColSplitter("is_valid"),
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
    )


@delegates(digit_scenes)
def digits_dls(
    targets: str | Sequence[str] = ("digit",),  # any of digit, tags, ink, centre, box, mask, count, boxes, left, right
    bs: int = 64,  # batch size
    missing: float = 0.0,  # share of the training rows without a label, drawn for each target alone
    path: str | Path | None = None,  # folder of the scenes; by default one below fastai's data folder
    batch_tfms: Sequence | None = None,  # as in `DataBlock`, e.g. `aug_transforms(do_flip=False, max_zoom=1.)`
    **scene_kwargs: Any,  # `n`, `size`, `digits_per_scene`, `seed`, `overlap` of `digit_scenes`
) -> DataLoaders:
    """Make `DataLoaders` over digit scenes with the chosen targets, in that order. Images are not normalised, and there
    are no workers.

    With `missing`, `seed` also says which labels are taken away (`blank_labels`), and the blocks are `PartialBlock`s.
    The validation set keeps all its labels."""
    listed = isinstance(targets, str | Sequence)
    check_value("targets", "digits_dls", targets, listed, "a target's name or a list of them")
    check_value("bs", "digits_dls", bs, is_whole(bs), "how many scenes a batch has, at least 1")
    check_value("path", "digits_dls", path, path is None or isinstance(path, str | Path), "a folder")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    _check_targets(targets)
    path = _default_path(_params(**scene_kwargs)) if path is None else Path(path)
    table = digit_scenes(path, **scene_kwargs)
    _check_targets(targets, table.columns)
    table = blank_labels(table, targets, missing, scene_kwargs.get("seed", 0))
    block = digits_block(path, targets, partial=missing > 0, batch_tfms=batch_tfms)
    return block.dataloaders(table, bs=bs, num_workers=0, path=path)
