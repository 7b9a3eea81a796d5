"""A service over one `Predictor`: one call answers for every head."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fastai_heads.errors import HeadsError
from fastai_heads.export.predictor import Predictor
from fastai_heads.serve.answers import say_answers
from fastai_heads.serve.batches import Batcher
from fastai_heads.serve.limits import Limits, Refused
from fastai_heads.serve.metrics import Metrics
from fastai_heads.serve.protocol import describe_model, describe_server, read_infer, write_infer
from fastai_heads.serve.reading import LimitBody, choose_heads, list_columns, list_inputs, read_items, read_json

__all__ = ["make_app"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    predictor: Predictor,
    name: str = "model",  # in the routes of the Open Inference Protocol
    limits: Limits | None = None,  # None: the defaults
    heads: tuple[str, ...] | None = None,  # those that are served; None: all
) -> Starlette:
    """Make the service.

    `POST /predict` takes images as files or rows and texts as JSON; `/v2/…` is the Open Inference Protocol, version 2;
    `/` is a page where one drops a picture; `/metrics` counts. Wrong input gets a status of 4xx and the reason."""
    service = _Service(predictor, name, limits or Limits(), heads)
    model = f"/v2/models/{name}"
    routes = {
        ("/", "GET"): service.page,
        ("/page.js", "GET"): service.script,
        ("/page.css", "GET"): service.style,
        ("/about", "GET"): service.about,
        ("/predict", "POST"): service.predict,
        ("/metrics", "GET"): service.counted,
        ("/v2", "GET"): service.server,
        ("/v2/health/live", "GET"): service.live,
        ("/v2/health/ready", "GET"): service.ready,
        (model, "GET"): service.model,
        (f"{model}/ready", "GET"): service.ready,
        (f"{model}/infer", "POST"): service.infer,
    }
    app = Starlette(
        routes=[Route(path, service.watch(path, run), methods=[method]) for (path, method), run in routes.items()],
        lifespan=service.lifespan,
        exception_handlers={HTTPException: _refuse_route, Exception: _say_fault},
    )
    app.add_middleware(LimitBody, limit=service.limits.body)
    return app


class _Service:
    "The routes, and what they share."

    def __init__(self, predictor: Predictor, name: str, limits: Limits, heads: tuple[str, ...] | None):
        self.predictor, self.name, self.limits = predictor, name, limits
        self.heads = choose_heads(None if heads is None else list(heads), predictor.heads)
        self.kinds = list_inputs(predictor)
        self.metrics = Metrics()
        self.batcher: Batcher | None = None  # while the service runs

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        "Run the task that calls the network, as long as the service runs."
        self.batcher = Batcher(self.predictor.answer, self.limits, self.metrics.batch.observe)
        task = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.batcher = None

    async def _answer(self, items: Sequence[Any], heads: tuple[str, ...]) -> list[Any]:
        "Read items in a thread, so that others are served meanwhile, and have them answered."
        try:
            read = await asyncio.to_thread(lambda: [self.predictor.read(item) for item in items])
        except HeadsError as error:
            raise Refused(422, str(error)) from None
        return await self.batcher.answer(read, heads)

    def watch(self, path: str, run: Callable[[Request], Awaitable[Response]]) -> Callable:
        "Count and time a route, and turn what it refuses into a status and a reason."

        async def route(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response = await run(request)
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
        items, asked = await read_items(request, self.kinds, self.limits)
        heads = choose_heads(asked, self.heads)
        answers = await self._answer(items, heads)
        return JSONResponse({"answers": say_answers(answers)}, headers=_HEADERS)

    async def infer(self, request: Request) -> Response:
        asked = read_infer(await read_json(request), self.predictor, self.heads, self.limits)
        answers = await self._answer(asked.items, asked.heads)
        return JSONResponse(write_infer(asked, answers, self.predictor, self.name), headers=_HEADERS)

    async def server(self, request: Request) -> Response:
        return JSONResponse(describe_server())

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        return JSONResponse({"name": self.name, "ready": self.batcher is not None})

    async def model(self, request: Request) -> Response:
        return JSONResponse(describe_model(self.predictor, self.name, self.heads))

    async def counted(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def about(self, request: Request) -> Response:
        inputs = [
            {"name": said["name"], "kind": said["kind"]}
            | ({"columns": list_columns(said)} if said["kind"] == "row" else {})
            for said in self.predictor.manifest["inputs"]
        ]
        heads = {head: self.predictor.manifest["answers"][head]["answer"] for head in self.heads}
        return JSONResponse({"name": self.name, "inputs": inputs, "heads": heads})

    async def page(self, request: Request) -> Response:
        return HTMLResponse(_read("page.html"), headers=_HEADERS)

    async def script(self, request: Request) -> Response:
        return Response(_read("page.js"), media_type="text/javascript", headers=_HEADERS)

    async def style(self, request: Request) -> Response:
        return Response(_read("page.css"), media_type="text/css", headers=_HEADERS)


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _say_error(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status, headers=_HEADERS)


async def _refuse_route(request: Request, error: HTTPException) -> Response:
    "Say what is wrong with a path or a method, in the form of every other refusal."
    return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)


async def _say_fault(request: Request, error: Exception) -> Response:
    "Say that the service failed, and no more: the traceback is in its log."
    return _say_error(500, "the service failed; its log says how")
