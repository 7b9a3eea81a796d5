"""The body of a request: bytes and forms, within the limits."""

import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastai_heads.serve.limits import Limits, Refused

__all__ = ["Body", "LimitBody", "parse_json", "receive_body"]


class LimitBody:
    "Refuses a body of more bytes than the limit, by its header where that is true, and else while it comes."

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit:
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


@dataclass(frozen=True)
class Body:
    "What a request holds, before it is decoded."

    kind: str  # 'json', 'file' or 'form'
    content: Any  # bytes, or of a form its fields: (name, bytes of a file or text)


async def receive_body(
    request: Request,
    limits: Limits,
) -> Body:
    "Receive one file, a form, or JSON."
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return Body("json", await request.body())
    if kind == "multipart/form-data":
        most = max(limits.items, 16) + 1
        async with request.form(max_files=most, max_fields=most, max_part_size=limits.body) as form:
            fields = [(n, await v.read() if isinstance(v, UploadFile) else v) for n, v in form.multi_items()]
        return Body("form", fields)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Body("file", await request.body())
    raise Refused(415, "send an image (image/jpeg, image/png, …), a form of files, or JSON (application/json)")


def parse_json(
    content: bytes,
    limits: Limits,
) -> Any:
    "Read JSON. What would become too many objects is refused before any is made."
    values = sum(map(content.count, (b",", b"[", b"{")))
    if values > limits.values:
        raise Refused(413, f"a request holds at most {limits.values:,} values of JSON")
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:200]}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
