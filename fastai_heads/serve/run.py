"""`python -m fastai_heads serve`: a bundle behind a port."""

from pathlib import Path

from fastai_heads.errors import HeadsError
from fastai_heads.serve.limits import Limits

__all__ = ["make_from_environment", "serve"]

_FOLDER, _HEADS = "FASTAI_HEADS_FOLDER", "FASTAI_HEADS_SERVED"


def serve(
    folder: str | Path,  # a bundle, or an ONNX file
    host: str = "127.0.0.1",  # this machine alone; '0.0.0.0': everybody who reaches it
    port: int = 8000,
    workers: int = 1,  # processes, each with the network
    heads: str | None = None,  # those that are served, with commas; None: all
) -> None:
    """Serve a bundle until it is stopped. Raises `HeadsError` where the bundle cannot be read, or the extra `serve` is
    missing."""
    try:
        import uvicorn
    except ImportError as error:
        raise HeadsError("serving needs starlette and uvicorn: pip install 'fastai_heads[serve]'") from error
    import os

    os.environ[_FOLDER] = str(folder)
    os.environ[_HEADS] = heads or ""
    make_from_environment()  # so that a wrong folder is said here and once
    uvicorn.run(
        "fastai_heads.serve.run:make_from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_level="info",
    )


def make_from_environment():
    "Make the service that the environment describes: how uvicorn's processes are told."
    import os

    from fastai_heads.serve.app import make_app
    from fastai_heads.serve.reading import split_heads

    folder = Path(os.environ[_FOLDER])
    return make_app(_open(folder), folder.stem, Limits(), split_heads(os.environ[_HEADS]))


def _open(folder: Path):
    if folder.suffix == ".onnx":
        from fastai_heads.export.predictor import Predictor

        return Predictor.from_onnx(folder)
    from fastai_heads.export.bundle import load_bundle

    return load_bundle(folder)
