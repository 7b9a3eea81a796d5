"""Images as a bundle's network sees them, made by Pillow alone, and places in them brought back to the image as given.

No module that this one imports imports torch."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastai_heads.errors import HeadsError

__all__ = ["MAX_PIXELS", "View", "open_image", "see_image"]

MAX_PIXELS = 178_956_970  # of an image that is opened: Pillow's own limit, beyond which it takes a file for a bomb
PAD_MODES = {"zeros": None, "border": "edge", "reflection": "reflect"}


@dataclass(frozen=True)
class View:
    "Where the pixels that the network sees lie in the image as given: `given = start + seen * scale`, x before y."

    given: tuple[int, int]  # width and height of the image as given
    seen: tuple[int, int]  # width and height of what the network sees
    start: tuple[float, float] = (0.0, 0.0)  # in pixels of the image as given
    scale: tuple[float, float] = (1.0, 1.0)  # pixels of the image as given for one of the network's

    def then(
        self,
        corner: Sequence[float],  # of the part that is taken, in pixels of what was seen; negative: padded
        part: Sequence[float],  # its width and height
        size: tuple[int, int],  # that it is resized to
    ) -> "View":
        "Take a part of what is seen, and resize it."
        start = tuple(s + c * k for s, c, k in zip(self.start, corner, self.scale))
        scale = tuple(k * p / n for k, p, n in zip(self.scale, part, size))
        return replace(self, seen=size, start=start, scale=scale)

    @property
    def whole(self) -> bool:
        "Whether the network sees the image just as it is given."
        return self.given == self.seen and self.start == (0.0, 0.0) and self.scale == (1.0, 1.0)

    def pixels(
        self,
        places: np.ndarray,  # (…, 2k) x, y, x, y, … from −1 to 1 over what the network sees
    ) -> np.ndarray:  # the same in pixels of the image as given
        "Bring places back to the image as given."
        n = places.shape[-1] // 2
        size, start, scale = (np.tile(np.asarray(v, dtype=np.float64), n) for v in (self.seen, self.start, self.scale))
        return (((places.astype(np.float32) + 1) * size.astype(np.float32) / 2) * scale + start).astype(np.float32)

    def mask(
        self,
        codes: np.ndarray,  # (…, h, w) as the network gives them
        void: int,  # the code of a pixel that the network has not seen
    ) -> np.ndarray:  # (…, H, W) of the image as given
        "Bring a mask back to the image as given, each pixel from the nearest one that was seen."
        if self.whole:
            return codes
        at, there = [], []
        for axis in (1, 0):
            seen = ((np.arange(self.given[axis]) + 0.5) - self.start[axis]) / self.scale[axis]
            there.append((seen >= 0) & (seen < self.seen[axis]))
            at.append(np.clip(np.floor(seen).astype(int), 0, self.seen[axis] - 1))
        found = codes[..., at[0][:, None], at[1][None, :]]
        return np.where(there[0][:, None] & there[1][None, :], found, np.asarray(void, dtype=codes.dtype))


def open_image(
    given: Any,  # a path, the bytes of a file, a PIL image, an array (H, W) or (H, W, C) of uint8
    mode: str,  # Pillow's, 'RGB' or 'L'
    name: str = "image",  # of the input, for messages
) -> Image.Image:
    "Open an image. Refuses what is none, and one of too many pixels before they are read."
    if isinstance(given, np.ndarray) or (hasattr(given, "numpy") and hasattr(given, "permute")):
        given = Image.fromarray(_as_array(given, name))
    if isinstance(given, Image.Image):
        return given if given.mode == mode else given.convert(mode)
    if isinstance(given, bytes | bytearray | memoryview):
        source: Any = io.BytesIO(given)
    elif isinstance(given, str | Path):
        source = given
    else:
        raise HeadsError(
            f"input {name!r}: an image is a path, the bytes of a file, a PIL image or an array (H, W, C) of uint8, "
            f"found {type(given).__name__}."
        )
    try:
        with Image.open(source) as found:
            if found.width * found.height > MAX_PIXELS:
                raise HeadsError(
                    f"input {name!r}: an image has {MAX_PIXELS} pixels at most, found {found.width}×{found.height}."
                )
            return found.convert(mode)
    except FileNotFoundError:
        raise HeadsError(f"input {name!r}: there is no file {given}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, HeadsError):
            raise
        what = f"{len(given)} bytes" if not isinstance(given, str | Path) else str(given)
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise HeadsError(f"input {name!r}: {what} cannot be read as an image{why}.") from error


def _as_array(given: Any, name: str) -> np.ndarray:
    "Give (H, W) or (H, W, C) of uint8; of a tensor as fastai has images, (C, H, W)."
    array = given if isinstance(given, np.ndarray) else given.permute(*([1, 2, 0] if given.ndim == 3 else [])).numpy()
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise HeadsError(
            f"input {name!r}: an array of an image is (H, W) or (H, W, C) of uint8, found {array.shape} {array.dtype}."
        )
    return array


def see_image(
    image: Image.Image,  # of the mode that the network takes
    steps: Sequence[Mapping[str, Any]],  # the item transforms, as a manifest says them
) -> tuple[np.ndarray, View]:  # (H, W, C) uint8, and where it lies in the image as given
    "Do what the item transforms do to a validation image."
    view = View(image.size, image.size)
    for step in steps:
        image, view = STEPS[step["name"]](image, view, **{k: v for k, v in step.items() if k != "name"})
    array = np.asarray(image)
    return (array[..., None] if array.ndim == 2 else array), view


def _crop_pad(
    image: Image.Image,
    view: View,
    corner: Sequence[int],
    part: Sequence[int],
    pad_mode: str = "zeros",
    size: Sequence[int] | None = None,
    resample: int = 2,
) -> tuple[Image.Image, View]:
    "Take a part of an image, padded where it stands out, and resize it: fastai's `crop_pad`."
    (w, h), (x, y), (pw, ph) = image.size, corner, part
    if x >= 0 or y >= 0 or x + pw <= w or y + ph <= h:
        image = image.crop((max(x, 0), max(y, 0), min(x + pw, w), min(y + ph, h)))
    if x < 0 or y < 0 or x + pw >= w or y + ph >= h:
        sides = (max(-x, 0), max(-y, 0), max(pw - w + x, 0), max(ph - h + y, 0))
        image = _pad(image, sides, pad_mode)
    if size is not None:
        image = image.resize(tuple(size), resample)
    return image, view.then(corner, part, image.size)


def _pad(image: Image.Image, sides: tuple[int, int, int, int], pad_mode: str) -> Image.Image:
    "Pad at the left, the top, the right and the bottom."
    if not any(sides):
        return image
    if PAD_MODES[pad_mode] is None:
        return ImageOps.expand(image, sides, fill=0)
    left, top, right, bottom = sides
    more = ((top, bottom), (left, right), *([(0, 0)] if len(image.getbands()) > 1 else []))
    return Image.fromarray(np.pad(np.asarray(image), more, mode=PAD_MODES[pad_mode]))


def _resize(
    image: Image.Image, view: View, size: Sequence[int], method: str, pad_mode: str, resample: int
) -> tuple[Image.Image, View]:
    "Do what fastai's `Resize` does to a validation image."
    w, h = image.size
    if method == "squish":
        return _crop_pad(image, view, (0, 0), (w, h), pad_mode, size, resample)
    wide = w / size[0] > h / size[1] if method == "pad" else w / size[0] < h / size[1]
    m = w / size[0] if wide else h / size[1]
    part = (int(m * size[0]), int(m * size[1]))
    corner = (int(0.5 * (w - part[0])), int(0.5 * (h - part[1])))
    return _crop_pad(image, view, corner, part, pad_mode, size, resample)


def _crop(image: Image.Image, view: View, size: Sequence[int], pad_mode: str = "zeros") -> tuple[Image.Image, View]:
    "Do what fastai's `CropPad` does, and its `RandomCrop` to a validation image."
    corner = ((image.width - size[0]) // 2, (image.height - size[1]) // 2)
    return _crop_pad(image, view, corner, size, pad_mode)


def _resized_crop(
    image: Image.Image, view: View, size: Sequence[int], val_xtra: float, resample: int
) -> tuple[Image.Image, View]:
    "Do what fastai's `RandomResizedCrop` does to a validation image."
    more = math.ceil(max(size) * val_xtra / 8) * 8
    larger = (size[0] + more, size[1] + more)
    image, view = _crop_pad(image, view, (0, 0), image.size, "zeros", larger, resample)
    return (image, view) if tuple(size) == larger else _crop(image, view, size)


STEPS = {"resize": _resize, "crop": _crop, "resized_crop": _resized_crop}
"What a manifest may name, and what it does."
