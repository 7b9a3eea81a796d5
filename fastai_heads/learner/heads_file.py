"""Heads that are said as data: dicts in the place of specs, or a TOML or JSON file of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastai_heads.errors import HeadsError
from fastai_heads.export.files import check_plain, read_json
from fastai_heads.heads.spec import HeadSpec

__all__ = ["read_heads"]

_MOST = 1 << 20  # bytes of a file of heads


def read_heads(
    heads: Any,  # as for `multihead_learner`
) -> Any:  # the same with specs in the place of dicts
    "Read heads that are said as data: a file's, and dicts with their `kind`. Everything else stays as it is."
    if isinstance(heads, Path) or (isinstance(heads, str) and Path(heads).suffix in (".toml", ".json")):
        heads = _read_file(Path(heads))
    if not isinstance(heads, Mapping):
        return heads
    return {name: _spec(name, said) for name, said in heads.items()}


def _spec(name: Any, said: Any) -> Any:
    if said is False:  # TOML has no None
        return None
    if not isinstance(said, Mapping):
        return said
    try:
        return HeadSpec.from_dict(said)
    except HeadsError as error:
        raise error.within(f"`heads[{name!r}]`") from error.__cause__


def _read_file(path: Path) -> Mapping[str, Any]:
    "Read a file whose entries are heads: `[digit]`, `kind = 'classification'`. `false` leaves a target out."
    if path.suffix not in (".toml", ".json"):
        raise HeadsError(f"`heads` is a file of heads in TOML or JSON, found {path}.")
    if not path.is_file():
        raise HeadsError(f"`heads`: there is no file {path}.")
    if path.stat().st_size > _MOST:
        raise HeadsError(f"`heads`: {path} has {path.stat().st_size:,} bytes, and {_MOST:,} at most are read.")
    said = read_json(path.read_bytes(), str(path)) if path.suffix == ".json" else _read_toml(path)
    if not isinstance(said, Mapping):
        raise HeadsError(f"`heads`: {path} holds a table of name to head, found {type(said).__name__}.")
    return said


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        import tomllib
    except ImportError as error:  # Python 3.10
        raise HeadsError(f"`heads`: {path}: this Python reads no TOML; write the heads as JSON.") from error
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HeadsError(f"`heads`: {path} cannot be read as TOML: {error}.") from None
    check_plain(said, str(path))
    return said
