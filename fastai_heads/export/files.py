"""The files of a bundle: written whole or not at all, read with limits and without running anything.

No module that this one imports imports torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastai_heads.disk import in_place, whole_folder
from fastai_heads.errors import HeadsError, did_you_mean, writing

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "WEIGHTS",
    "Tensors",
    "check_plain",
    "read_bundle",
    "read_json",
    "write_folder",
]

SCHEMA = 1  # of the manifest; a newer one is refused, an older one is read
MANIFEST, WEIGHTS, CARD = "manifest.json", "model.safetensors", "README.md"
MAX_MANIFEST = 64 << 20  # bytes
MAX_WEIGHTS = 64 << 30  # bytes
MAX_HEADER = 64 << 20  # bytes, of the weights' list of tensors
MAX_DEPTH = 40  # of dicts and lists in each other
MAX_ITEMS = 2_000_000  # values in all
MAX_TEXT = 32 << 20  # characters of one text: a tokenizer is one
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"The name of every tensor, its dtype and its shape."


def write_folder(
    folder: Path,  # that is written; its parent is made
    files: Mapping[str, bytes],  # name → content
    overwrite: bool = False,  # take the place of a bundle that is there
) -> None:
    "Write a folder whole or not at all: beside its place first, and then renamed."
    if folder.exists() and not overwrite:
        raise HeadsError(f"`folder`: there is {folder} already; pass `overwrite=True`, or another folder.")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise HeadsError(f"`folder`: {folder} is no bundle, and is not overwritten; pass another folder.")
    with whole_folder(folder) as aside, writing(folder):
        for name, content in files.items():
            (aside / name).write_bytes(content)


def read_bundle(
    folder: str | Path,  # what `save_bundle` wrote
) -> tuple[dict[str, Any], bytes]:  # the manifest, and the weights' file, which is what the manifest says of it
    "Read a bundle's two files. Refuses what is too large, too deep, damaged, or of a later version."
    if not isinstance(folder, str | Path):
        raise HeadsError(f"`folder` is a path of a bundle, found {folder!r}.")
    folder = in_place(Path(folder))
    if not folder.is_dir():
        raise HeadsError(f"`folder`: there is no folder {folder}.")
    said = read_json(_inside(folder, MANIFEST, MAX_MANIFEST).read_bytes(), MANIFEST)
    schema = said.get("schema") if isinstance(said, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise HeadsError(f"{MANIFEST} is no manifest of fastai_heads: its `schema` is {schema!r}.")
    if schema > SCHEMA:
        raise HeadsError(
            f"{MANIFEST} is of version {schema}, and this fastai_heads reads {SCHEMA}: install a later one."
        )
    weights = _inside(folder, WEIGHTS, MAX_WEIGHTS).read_bytes()
    _check_weights(said, weights)
    return said, weights


def _inside(folder: Path, name: str, most: int) -> Path:
    "Find a file of the folder itself. A link that leads out of it is refused, and so is a file that is too large."
    path = folder / name
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir())[:20]
        raise HeadsError(f"`folder`: {folder} has no {name}.{did_you_mean(name, there)} It has {', '.join(there)}.")
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise HeadsError(f"`folder`: {name} is a link that leads out of {folder}.")
    size = path.stat().st_size
    if size > most:
        raise HeadsError(f"`folder`: {name} has {size:,} bytes, and {most:,} at most are read.")
    return path


def read_json(
    content: bytes,  # UTF-8
    name: str,  # for messages
) -> Any:
    "Read JSON within the limits. Refuses a key that is given twice, and numbers that are not finite."
    try:
        said = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise HeadsError(f"{name} is deeper than {MAX_DEPTH} levels.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, ValueError) as error:
        raise HeadsError(f"{name} cannot be read as JSON: {error}.") from None
    check_plain(said, name)
    return said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [k for k, _ in pairs]
        raise HeadsError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise HeadsError(f"{name} is no number of JSON")


def check_plain(
    said: Any,  # of JSON or TOML
    name: str,  # for messages
) -> None:
    "Refuse what is too deep, too long or too much."
    todo, count = [(said, 1)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise HeadsError(f"{name} is deeper than {MAX_DEPTH} levels.")
        if count + len(todo) > MAX_ITEMS:
            raise HeadsError(f"{name} holds more than {MAX_ITEMS:,} values.")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise HeadsError(f"{name} holds a text of {len(value):,} characters; {MAX_TEXT:,} at most are read.")
        if isinstance(value, int) and abs(value) > 2**63:
            raise HeadsError(f"{name} holds a whole number of more than 64 bits.")
        if isinstance(value, dict):
            todo += [(v, depth + 1) for pair in value.items() for v in pair]
        elif isinstance(value, list):
            todo += [(v, depth + 1) for v in value]


def _check_weights(said: Mapping[str, Any], weights: bytes) -> None:
    "Refuse weights that are not those of the manifest: their list of tensors, their sizes, and their hash."
    tensors = read_tensors(weights)
    known = said.get("weights")
    if not isinstance(known, dict) or not isinstance(known.get("sha256"), str):
        raise HeadsError(f"{MANIFEST} does not say the SHA-256 of its weights.")
    if known.get("tensors") != {name: [dtype, list(shape)] for name, (dtype, shape) in tensors.items()}:
        raise HeadsError(f"{WEIGHTS} does not hold the tensors that {MANIFEST} lists.")
    found = hashlib.sha256(weights).hexdigest()
    if found != known["sha256"]:
        raise HeadsError(f"{WEIGHTS} is damaged or was exchanged: its SHA-256 is {found}, expected {known['sha256']}.")


def read_tensors(
    weights: bytes,  # of safetensors
) -> Tensors:
    "List the tensors of a file, whose places fill it without a gap."
    if len(weights) < 8:
        raise HeadsError(f"{WEIGHTS} has {len(weights)} bytes, and is no file of safetensors.")
    n = int.from_bytes(weights[:8], "little")
    if n > min(MAX_HEADER, len(weights) - 8):
        raise HeadsError(f"{WEIGHTS} is cut off, or no file of safetensors: its header is of {n:,} bytes.")
    header = read_json(weights[8 : 8 + n], WEIGHTS)
    if not isinstance(header, dict):
        raise HeadsError(f"{WEIGHTS} has no list of tensors.")
    found: Tensors = {}
    places: list[tuple[int, int]] = []
    for name, one in header.items():
        if name == "__metadata__":
            continue
        shape, place = (one.get("shape"), one.get("data_offsets")) if isinstance(one, dict) else (None, None)
        whole = all(isinstance(v, list) and all(type(i) is int and i >= 0 for i in v) for v in (shape, place))
        if not whole or len(place) != 2 or len(shape) > 16 or one.get("dtype") not in _SIZES:
            raise HeadsError(f"{WEIGHTS}: tensor {name!r} is not described as safetensors does: {str(one)[:200]}.")
        size = _SIZES[one["dtype"]]
        for side in shape:
            size *= side
        if place[1] - place[0] != size:
            raise HeadsError(
                f"{WEIGHTS}: tensor {name!r} of shape {shape} has {place[1] - place[0]} bytes, not {size}."
            )
        found[name] = one["dtype"], tuple(shape)
        places.append((place[0], place[1]))
    ends = [0, *(end for _, end in sorted(places))]
    if [start for start, _ in sorted(places)] != ends[:-1] or ends[-1] != len(weights) - 8 - n:
        raise HeadsError(f"{WEIGHTS}: its tensors do not fill the file; it is damaged or cut off.")
    return found
