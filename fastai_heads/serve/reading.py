"""What a request holds, read within the limits: images from files, rows and texts from JSON."""

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastai_heads.errors import did_you_mean
from fastai_heads.export.predictor import Predictor
from fastai_heads.serve.limits import Limits, Refused

__all__ = [
    "LimitBody",
    "choose_heads",
    "decode_image",
    "list_columns",
    "list_inputs",
    "read_items",
    "read_json",
    "read_value",
]

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"The formats that are decoded: the more a decoder can do, the more can go wrong in it."


class LimitBody:
    "Refuses a body of more bytes than the limit, by its header where that is true, and else while it comes."

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        received = int(length) if length.isdigit() else 0
        if received > self.limit:
            refused = self._refusal()
            return await JSONResponse({"error": refused.reason}, refused.status)(scope, receive, send)
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise self._refusal()
            return message

        await self.app(scope, count, send)

    def _refusal(self) -> Refused:
        return Refused(413, f"a request holds at most {self.limit:,} bytes")


def list_inputs(
    predictor: Predictor,
) -> dict[str, str]:  # name → 'image', 'row' or 'text'
    "List what an item holds."
    return {said["name"]: said["kind"] for said in predictor.manifest["inputs"]}


def list_columns(
    said: Mapping[str, Any],  # an input of rows, as a manifest describes it
) -> dict[str, bool]:  # name → whether it holds numbers
    "List the columns of a row."
    return {**dict.fromkeys(said["cats"], False), **dict.fromkeys(said["conts"], True)}


async def read_json(request: Request) -> Any:
    "Read a body of JSON."
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:200]}") from None


async def read_items(
    request: Request,
    inputs: Mapping[str, str],  # name → kind: 'image', 'row' or 'text'
    limits: Limits,
) -> tuple[list[Any], Any]:  # an item each, as a `Predictor` takes them; the heads that are asked for, None: all
    "Read the items of a request: one image as it is, files of a form, or JSON."
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    heads = request.query_params.get("heads")
    if kind == "application/json":
        items, told = _from_json(await read_json(request), inputs, limits)
        heads = told if told is not None else heads
    elif kind == "multipart/form-data":
        items = await _from_form(request, inputs, limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        _only_images(inputs, "the body is one image")
        items = [decode_image(await request.body(), limits, "the image")]
    else:
        raise Refused(415, "send an image (image/jpeg, image/png, …), a form of files, or JSON (application/json)")
    if not items:
        raise Refused(422, "the request holds no item")
    if len(items) > limits.items:
        raise Refused(413, f"a request holds at most {limits.items} items, found {len(items)}")
    return items, heads


def choose_heads(
    asked: Any,  # None: all; a name, names with commas, or a list of them
    names: Sequence[str],  # of all heads
) -> tuple[str, ...]:  # in the order of the heads
    "Choose the heads that are asked for. Refuses names that no head has."
    if asked is None:
        return tuple(names)
    asked = asked.split(",") if isinstance(asked, str) else asked
    if not isinstance(asked, list) or not asked or not all(isinstance(name, str) for name in asked):
        raise Refused(422, f"`heads` is a list of names among {', '.join(names)}")
    for name in asked:
        if name not in names:
            raise Refused(422, f"there is no head {name[:80]!r}.{did_you_mean(name[:80], names)}")
    return tuple(name for name in names if name in asked)


def decode_image(
    data: bytes,  # a file
    limits: Limits,
    where: str,  # of the request, for messages
) -> Image.Image:
    "Decode an image, if its header tells that it is small enough."
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > limits.pixels:
            raise Refused(413, f"{where} has {width} × {height} pixels; at most {limits.pixels:,} are taken")
        image.load()
    except Refused:
        raise
    except Exception as error:  # decoders raise what they like for a broken file
        raise Refused(
            422, f"{where} is no image that can be read: {str(error)[:200] or type(error).__name__}"
        ) from None
    return image


async def _from_form(request: Request, inputs: Mapping[str, str], limits: Limits) -> list[Any]:
    "Read a form: with one input of images each file is an item; otherwise the form is one item, a field an input."
    async with request.form(max_files=limits.items, max_fields=limits.items, max_part_size=limits.body) as form:
        if list(inputs.values()) == ["image"]:
            files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            return [decode_image(await file.read(), limits, f"file {file.filename!r}") for _, file in files]
        item = {}
        for name, value in form.multi_items():
            if name not in inputs:
                raise Refused(422, f"there is no input {name[:80]!r}.{did_you_mean(name[:80], list(inputs))}")
            if isinstance(value, UploadFile):
                item[name] = decode_image(await value.read(), limits, f"file {value.filename!r}")
            else:
                item[name] = _parse_row(value, name) if inputs[name] == "row" else value
        return [_unwrap(item, inputs)]


def _parse_row(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(422, f'field {name!r} is a row: an object of JSON, as in {{"age": 3}}') from None


def _from_json(body: Any, inputs: Mapping[str, str], limits: Limits) -> tuple[list[Any], Any]:
    "Read `{'items': […], 'heads': […]}`. An image is its file in base64."
    if not isinstance(body, dict) or not isinstance(body.get("items"), list):
        raise Refused(422, 'send {"items": […]}, and "heads": […] for some heads alone')
    unknown = body.keys() - {"items", "heads"}
    if unknown:
        raise Refused(422, f"{sorted(unknown)[0][:80]!r} is neither items nor heads")
    if len(body["items"]) > limits.items:
        raise Refused(413, f"a request holds at most {limits.items} items, found {len(body['items'])}")
    return [read_item(item, inputs, limits, f"items[{i}]") for i, item in enumerate(body["items"])], body.get("heads")


def read_item(
    item: Any,  # of JSON: with several inputs a dict of input → value
    inputs: Mapping[str, str],
    limits: Limits,
    where: str,  # of the request, for messages
) -> Any:  # as a `Predictor` takes it
    "Read one item of JSON."
    if len(inputs) == 1:
        (kind,) = inputs.values()
        return read_value(item, kind, limits, where)
    if not isinstance(item, dict):
        raise Refused(422, f"{where} is an object with {', '.join(inputs)}")
    for name in item:
        if name not in inputs:
            raise Refused(422, f"{where}: there is no input {name[:80]!r}.{did_you_mean(name[:80], list(inputs))}")
    return {name: read_value(value, inputs[name], limits, f"{where}.{name}") for name, value in item.items()}


def read_value(
    value: Any,  # of JSON
    kind: str,  # 'image', 'row' or 'text'
    limits: Limits,
    where: str,  # of the request, for messages
) -> Any:
    "Read what stands for one input."
    if value is None:
        return None  # a missing input, which the network takes or refuses by name
    if kind == "image":
        return decode_image(decode_base64(value, where), limits, where)
    wanted = {"row": dict, "text": str}[kind]
    if not isinstance(value, wanted):
        raise Refused(422, f"{where} is {'an object of column → value' if kind == 'row' else 'a text'}")
    return value


def decode_base64(value: Any, where: str) -> bytes:
    "Decode base64, with the prefix of a data URL or without."
    if not isinstance(value, str):
        raise Refused(422, f"{where} is an image: its file in base64")
    try:
        return base64.b64decode(value.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{where} is no base64") from None


def _only_images(inputs: Mapping[str, str], what: str) -> None:
    if list(inputs.values()) != ["image"]:
        told = ", ".join(f"{name} ({kind})" for name, kind in inputs.items())
        raise Refused(415, f"{what}, and the network reads {told}: send JSON")


def _unwrap(item: dict[str, Any], inputs: Mapping[str, str]) -> Any:
    return item if len(inputs) > 1 else next(iter(item.values()), None)
