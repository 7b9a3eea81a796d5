"""Items read within the limits: files, rows and texts of a request become what stands in a batch."""

import base64
import binascii
import io
import time
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.export.images import View
from fastai_heads.export.inputs import InputReader
from fastai_heads.export.predictor import Predictor, ReadItem
from fastai_heads.serve.body import Body, parse_json
from fastai_heads.serve.limits import Limits, Refused

__all__ = ["ItemReader"]

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"The formats that are decoded: the more a decoder can do, the more can go wrong in it."


class ItemReader:
    "Reads the items of requests, as a predictor's network takes them. Raises `Refused` for what it does not take."

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
    ):
        self.readers, self.limits = predictor.readers, limits

    @property
    def only(self) -> InputReader | None:
        "The input, where there is one alone."
        return next(iter(self.readers.values())) if len(self.readers) == 1 else None

    def read(
        self,
        body: Body,  # of `POST /predict`
    ) -> tuple[list[ReadItem], Any]:  # the items, and the heads that the body asks for; None: it does not say
        "Read one image as it is, the files of a form, or JSON."
        values, heads = {"json": self._json, "form": self._form, "file": self._file}[body.kind](body.content)
        self.check_count(len(values))
        end = time.monotonic() + self.limits.seconds
        items = []
        for place, value in values:
            if time.monotonic() > end:
                raise Refused(504, f"no answer within {self.limits.seconds:g} seconds")
            items.append(self.item(value, place))
        return items, heads

    def check_count(
        self,
        n: int,  # items of a request
    ) -> None:
        "Refuse no item, and too many."
        if not n:
            raise Refused(422, "the request holds no item")
        if n > self.limits.items:
            raise Refused(413, f"a request holds at most {self.limits.items} items, found {n}")

    def item(
        self,
        value: Any,  # of JSON or a form; with several inputs a dict of input → value
        place: str,  # in the request, for messages
    ) -> ReadItem:
        "Read one item."
        if self.only is None and not isinstance(value, Mapping):
            raise Refused(422, f"{place} is an object of {', '.join(self.readers)}")
        given = value if self.only is None else {self.only.name: value}
        self.check_names(given, place)
        return self.join(self.part(reader, given.get(name), place) for name, reader in self.readers.items())

    def check_names(
        self,
        names: Iterable[str],
        place: str,  # in the request, for messages
    ) -> None:
        "Refuse a name that no input has."
        for name in names:
            if name not in self.readers:
                near = did_you_mean(name[:80], list(self.readers))
                raise Refused(422, f"{place}: there is no input {name[:80]!r}.{near}")

    def join(
        self,
        parts: Iterable[tuple[Any, View | None]],  # of each input, in order
    ) -> ReadItem:
        "Make an item of its parts."
        stood, views = zip(*parts)
        return ReadItem(stood, next((view for view in views if view is not None), None))

    def part(
        self,
        reader: InputReader,
        value: Any,  # a file as bytes or in base64, an object of a row, a text; None: missing
        place: str,  # in the request, for messages
    ) -> tuple[Any, View | None]:  # what stands in a batch, and where the pixels of an image lie
        "Read one input of an item."
        place = place if self.only else f"{place}.{reader.name}"
        if value is not None:
            value = _TAKE[reader.said["kind"]](self, value, place, reader)
        try:
            return reader.read(value)
        except HeadsError as error:
            raise Refused(422, f"{place}: {error}") from None

    def _json(self, content: bytes) -> tuple[list[tuple[str, Any]], Any]:
        body = parse_json(content, self.limits)
        if not isinstance(body, dict) or not isinstance(body.get("items"), list):
            raise Refused(422, 'send {"items": […]}, and "heads": […] for some heads alone')
        unknown = body.keys() - {"items", "heads"}
        if unknown:
            raise Refused(422, f"{min(unknown)[:80]!r} is neither items nor heads")
        self.check_count(len(body["items"]))
        return [(f"items[{i}]", item) for i, item in enumerate(body["items"])], body.get("heads")

    def _form(self, fields: list[tuple[str, Any]]) -> tuple[list[tuple[str, Any]], None]:
        "Take each file as an item where an image is the only input; else the form is one item, a field an input."
        if self.only is not None and self.only.said["kind"] == "image":
            return [(f"file {i + 1}", value) for i, (_, value) in enumerate(fields)], None
        self.check_names((name for name, _ in fields), "the form")
        given = {n: v if self.readers[n].said["kind"] == "image" else _as_text(v, n) for n, v in fields}
        for name, value in given.items():
            if self.readers[name].said["kind"] == "row":
                given[name] = parse_json(value.encode(errors="replace"), self.limits)
        return [("the form", given if self.only is None else given.get(self.only.name))], None

    def _file(self, content: bytes) -> tuple[list[tuple[str, Any]], None]:
        if self.only is None or self.only.said["kind"] != "image":
            told = ", ".join(f"{name} ({reader.said['kind']})" for name, reader in self.readers.items())
            raise Refused(415, f"the body is one file, and the network reads {told}: send JSON or a form")
        return [("the image", content)], None

    def _image(self, value: Any, place: str, reader: InputReader) -> Image.Image:
        "Decode a file, if its header tells that the image is small enough."
        data = value if isinstance(value, bytes) else _from_base64(value, place)
        most = self.limits.pixels if reader.said["resized"] else min(self.limits.pixels, self.limits.unresized)
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > most:
                    raise Refused(413, f"{place} has {width} × {height} pixels; at most {most:,} are taken")
                return image.convert(reader.said["mode"])
        except Refused:
            raise
        except Exception as error:  # decoders raise what they like for a broken file
            reason = str(error)[:200] if str(error) and not isinstance(error, OSError) else "it is damaged or no image"
            raise Refused(422, f"{place} cannot be read as {', '.join(_FORMATS)}: {reason}") from None

    def _row(self, value: Any, place: str, _reader: InputReader) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise Refused(422, f"{place} is an object of column → value")
        return value

    def _text(self, value: Any, place: str, _reader: InputReader) -> str:
        if not isinstance(value, str):
            raise Refused(422, f"{place} is a text")
        if len(value) > self.limits.text:
            raise Refused(413, f"{place} has {len(value):,} characters; at most {self.limits.text:,} are taken")
        return value


_TAKE = {"image": ItemReader._image, "row": ItemReader._row, "text": ItemReader._text}


def _as_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(422, f"field {name!r} is a text, and no file")
    return value


def _from_base64(value: Any, place: str) -> bytes:
    "Decode base64, with the prefix of a data URL or without."
    if not isinstance(value, str):
        raise Refused(422, f"{place} is an image: its file in base64")
    try:
        return base64.b64decode(value.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{place} is an image: its file in base64, and this is none") from None
