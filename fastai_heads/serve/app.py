"""A service over one `Predictor`: one call answers for every head."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fastai_heads.errors import did_you_mean
from fastai_heads.export.predictor import Predictor, ReadItem
from fastai_heads.serve.answers import Json, say_answer
from fastai_heads.serve.batches import Batcher
from fastai_heads.serve.body import LimitBody, receive_body
from fastai_heads.serve.limits import Limits, Refused
from fastai_heads.serve.metrics import Metrics
from fastai_heads.serve.protocol import VERSION, Protocol, describe_server
from fastai_heads.serve.reading import ItemReader

__all__ = ["make_app"]

_THREADS = 4  # that decode requests and write answers
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    predictor: Predictor,
    name: str = "model",  # in the routes of the Open Inference Protocol
    limits: Limits | None = None,  # None: the defaults
    heads: str | Sequence[str] | None = None,  # those that are served; None: all
) -> Starlette:
    """Make the service.

    `POST /predict` takes images as files, and rows and texts as JSON; `/v2/…` is the Open Inference Protocol, version
    2; `/` is a page where one drops a picture; `/metrics` counts. Wrong input gets a status of 4xx and the reason."""
    service = _Service(predictor, name, limits or Limits(), predictor.choose(heads))
    model = "/v2/models/{name}"
    routes = {
        "/": service.page,
        "/page.js": service.script,
        "/page.css": service.style,
        "/about": service.about,
        "/predict": service.predict,
        "/metrics": service.count,
        "/v2": service.server,
        "/v2/health/live": service.live,
        "/v2/health/ready": service.ready,
    }
    for path in (model, model + "/versions/{version}"):
        routes |= {path: service.model, f"{path}/ready": service.model_ready, f"{path}/infer": service.infer}
    posts = (service.predict, service.infer)
    app = Starlette(
        routes=[
            Route(path, service.watch(path, run), methods=["POST" if run in posts else "GET"])
            for path, run in routes.items()
        ],
        lifespan=service.lifespan,
        exception_handlers={HTTPException: _refuse_route, Exception: _say_fault},
    )
    app.add_middleware(LimitBody, limit=service.limits.body)
    return app


class _Service:
    "The routes, and what they share."

    def __init__(self, predictor: Predictor, name: str, limits: Limits, heads: tuple[str, ...]):
        self.predictor, self.name, self.limits, self.heads = predictor, name, limits, heads
        self.reader = ItemReader(predictor, limits)
        self.protocol = Protocol(predictor, name, heads, self.reader)  # tries the network, which warms it up
        self.metrics = Metrics()
        # while the service runs
        self.threads: ThreadPoolExecutor | None = None
        self.batcher: Batcher | None = None
        self.task: asyncio.Task | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        "Run the task that calls the network, as long as the service runs."
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="requests")
        self.batcher = Batcher(self.predictor, self.limits, self.metrics.batch.observe)
        self.task = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.threads.shutdown(wait=False)

    async def _in_thread(self, function: Callable, *args: Any) -> Any:
        "Run what takes a while where it holds up nobody else."
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    def watch(self, path: str, run: Callable[[Request], Awaitable[Response]]) -> Callable:
        "Count and time a route, and turn what it refuses into a status and a reason."

        async def route(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response = await asyncio.wait_for(run(request), self.limits.seconds)
            except asyncio.TimeoutError:
                response = _say_error(504, f"no answer within {self.limits.seconds:g} seconds")
            except ClientDisconnect:
                response = _say_error(400, "the request ended early")
            except Refused as refused:
                response = _say_error(refused.status, refused.reason)
            except HTTPException as error:  # of starlette's own form
                response = _say_error(error.status_code, str(error.detail))
            except Exception:
                self.metrics.requests.labels(path, 500).inc()
                raise
            self.metrics.requests.labels(path, response.status_code).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            return response

        return route

    async def predict(self, request: Request) -> Response:
        body = await receive_body(request, self.limits)
        items, asked = await self._in_thread(self.reader.read, body)
        heads = self._choose(request.query_params.get("heads") if asked is None else asked)
        found = await self.batcher.answer(items, heads)
        return await self._in_thread(self._say, items, found)

    def _choose(self, asked: Any) -> tuple[str, ...]:
        "Choose the heads that are asked for: a name, names with commas, or a list of them; None: all that are served."
        if asked is None:
            return self.heads
        names = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else asked
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise Refused(422, f"`heads` is a list of names among {', '.join(self.heads)}")
        for name in names:
            if name not in self.heads:
                raise Refused(422, f"there is no head {name[:80]!r}.{did_you_mean(name[:80], self.heads)}")
        return tuple(head for head in self.heads if head in names)

    def _say(self, items: Sequence[ReadItem], found: Sequence[dict[str, np.ndarray]]) -> Response:
        answers = [say_answer(self.predictor.say(one, item)) for one, item in zip(found, items)]
        return Json({"answers": answers}, headers=_HEADERS)

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        content = await request.body()
        asked = await self._in_thread(self.protocol.read, content)
        found = await self.batcher.answer(asked.items, asked.heads)
        return await self._in_thread(lambda: Json(self.protocol.write(asked, found), headers=_HEADERS))

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self.name:
            raise Refused(404, f"there is no model {name[:80]!r}; there is {self.name!r}")
        if version != VERSION:
            raise Refused(404, f"there is no version {version[:80]!r} of {self.name!r}; there is {VERSION!r}")

    async def server(self, request: Request) -> Response:
        return Json(describe_server())

    async def live(self, request: Request) -> Response:
        return Json({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._say_ready({"live": True})

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return self._say_ready({"name": self.name})

    def _say_ready(self, said: dict[str, Any]) -> Response:
        ready = self.task is not None and not self.task.done()
        return Json({**said, "ready": ready}, status_code=200 if ready else 503)

    async def model(self, request: Request) -> Response:
        self._check_model(request)
        return Json(self.protocol.describe())

    async def count(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def about(self, request: Request) -> Response:
        inputs = [
            {"name": said["name"], "kind": said["kind"]}
            | ({"columns": {c: c in said["conts"] for c in (*said["cats"], *said["conts"])}} if "cats" in said else {})
            for said in self.predictor.manifest["inputs"]
        ]
        heads = {head: self.predictor.manifest["answers"][head]["answer"] for head in self.heads}
        return Json({"name": self.name, "inputs": inputs, "heads": heads})

    async def page(self, request: Request) -> Response:
        return Response(_read("page.html"), media_type="text/html", headers=_HEADERS)

    async def script(self, request: Request) -> Response:
        return Response(_read("page.js"), media_type="text/javascript", headers=_HEADERS)

    async def style(self, request: Request) -> Response:
        return Response(_read("page.css"), media_type="text/css", headers=_HEADERS)


@cache
def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _say_error(status: int, reason: str) -> Response:
    return Json({"error": reason}, status_code=status, headers=_HEADERS)


async def _refuse_route(request: Request, error: HTTPException) -> Response:
    "Say what is wrong with a path or a method, in the form of every other refusal."
    return Json({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)


async def _say_fault(request: Request, error: Exception) -> Response:
    "Say that the service failed, and no more: the traceback is in its log."
    return _say_error(500, "the service failed; its log says how")
