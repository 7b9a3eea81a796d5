"""`python -m fastai_heads serve`: a bundle behind a port."""

import gc
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastai_heads.errors import HeadsError
from fastai_heads.export.predictor import open_predictor
from fastai_heads.serve.limits import Limits

__all__ = ["make_from_environment", "serve"]

_KEY = "FASTAI_HEADS_SERVE"  # of the environment: what uvicorn's processes are told


def serve(
    source: str | Path,  # a bundle, or an ONNX file
    host: str = "127.0.0.1",  # this machine alone; '0.0.0.0': everybody who reaches it
    port: int = 8000,
    workers: int = 1,  # processes, each with the network
    heads: Sequence[str] | None = None,  # those that are served; None: all
    name: str | None = None,  # of the model; None: the name of the folder or file
    device: str = "cpu",  # where a bundle's network computes
    limits: Limits | None = None,  # None: the defaults
) -> None:
    "Serve a bundle until it is stopped. Refuses one that cannot be read, and says what to install."
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise HeadsError(f"serving needs {error.name}: pip install fastai_heads[serve]") from error
    if not 0 <= port < 2**16:
        raise HeadsError(f"`port` is a whole number from 0 to {2**16 - 1}, found {port}.")
    path, limits = Path(source).resolve(), limits or Limits()
    name = name or (path.stem if path.is_file() else path.name)
    said = {"source": str(path), "heads": heads, "name": name, "device": device, "limits": asdict(limits)}
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": workers,
        "limit_concurrency": limits.connections,
        "access_log": False,
    }
    if workers == 1:
        uvicorn.run(_make(said), **options)
        return
    open_predictor(path, device).choose(heads)  # so that what is wrong is said here, and once
    with tempfile.TemporaryDirectory() as counted:
        os.environ |= {_KEY: json.dumps(said | {"threads": _share(workers)}), "PROMETHEUS_MULTIPROC_DIR": counted}
        uvicorn.run("fastai_heads.serve.run:make_from_environment", factory=True, **options)


def _share(workers: int) -> int:
    "Count the threads that each process has, so that together they use each core once."
    return max(1, (os.cpu_count() or 1) // workers)


def make_from_environment() -> Any:
    "Make the service that the environment describes."
    return _make(json.loads(os.environ[_KEY]))


def _make(said: dict[str, Any]) -> Any:
    from fastai_heads.serve.app import make_app  # here, as it imports what is optional

    predictor = open_predictor(said["source"], said["device"], said.get("threads"))
    app = make_app(predictor, said["name"], Limits(**said["limits"]), said["heads"])
    gc.freeze()  # what is there now stays: the collector need not walk it for each request
    return app
