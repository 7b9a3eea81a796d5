"""A model repository of the Triton Inference Server: the ONNX file, and what it reads and gives."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastai.learner import Learner

from fastai_heads.disk import whole_folder
from fastai_heads.errors import HeadsError
from fastai_heads.export.onnx import export_onnx
from fastai_heads.export.predictor import Predictor

__all__ = ["export_triton"]

CONFIG = "config.pbtxt"
_TYPES = {"uint8": "UINT8", "int64": "INT64", "float": "FP32", "bool": "BOOL"}  # ONNX → Triton


def export_triton(
    folder: str | Path,  # the model repository, which may hold other models
    source: Learner | Predictor | str | Path,  # a learner, what `load_bundle` gave, or what `export_onnx` wrote
    name: str = "model",  # of the model, as clients call it
    heads: str | Sequence[str] | None = None,  # those that leave; None: all but auxiliary ones, or all of a file
    batch: int = 32,  # the most items of one call of the network
    wait: float = 0.005,  # seconds that a request waits for others
    overwrite: bool = False,  # take the place of a model of that name
) -> Path:  # the model's folder
    """Write a model repository for Triton, which joins requests into batches, and answers the same tensors by the same
    names as `python -m fastai_heads serve`. Labels of classes and tags stand beside, for its classification extension.

    Images are resized outside, as for `export_onnx`."""
    folder, place = Path(folder), Path(folder) / _check(name, batch, wait)
    if place.exists() and (not overwrite or not (place / CONFIG).is_file()):
        hint = "it is no model of Triton; pass another name" if overwrite else "pass `overwrite=True`, or another name"
        raise HeadsError(f"`folder`: there is {place} already; {hint}.")
    with whole_folder(place) as aside:
        file = _write_graph(aside / "1" / "model.onnx", source, heads)
        answers = Predictor.from_onnx(file).manifest["answers"]
        labels = {head: f"{head}_labels.txt" for head, said in answers.items() if _is_named(said)}
        for head, label_file in labels.items():
            lines = [" ".join(str(label).split()) for label in answers[head]["vocab"]]
            (aside / label_file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (aside / CONFIG).write_text(_write_config(file, name, batch, wait, labels), encoding="utf-8")
    return place


def _write_graph(file: Path, source: Any, heads: Any) -> Path:
    "Export a learner or a predictor, or copy a file that was exported."
    if not isinstance(source, str | Path):
        return export_onnx(file, source, heads)
    if heads is not None:
        raise HeadsError("`heads` of a file are those that it was exported with: pass the learner, or leave it out.")
    Predictor.from_onnx(source)  # which refuses a file that is not this package's
    file.parent.mkdir()
    return Path(shutil.copy(source, file))


def _check(name: Any, batch: Any, wait: Any) -> str:
    if not isinstance(name, str) or not name.isprintable() or name.strip(".") == "" or set(name) & set('/\\"'):
        raise HeadsError(f"`name` is the name of a folder, found {name!r}.")
    if type(batch) is not int or batch < 1:
        raise HeadsError(f"`batch` is a whole number of at least 1, found {batch!r}.")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < 60:
        raise HeadsError(f"`wait` is a number of seconds from 0 to 60, found {wait!r}.")
    return name


def _is_named(said: dict[str, Any]) -> bool:
    return said["answer"] in ("label", "tags") and bool(said["vocab"])


def _write_config(file: Path, name: str, batch: int, wait: float, labels: dict[str, str]) -> str:
    "Write the configuration in protobuf's text format. Source: message ModelConfig of Triton's model_config.proto."
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = [_write_tensor(node) for node in session.get_inputs()]
    outputs = [_write_tensor(node, labels.get(node.name)) for node in session.get_outputs()]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {batch}",
            "input [\n" + ",\n".join(inputs) + "\n]",
            "output [\n" + ",\n".join(outputs) + "\n]",
            f"dynamic_batching {{ max_queue_delay_microseconds: {round(wait * 1e6)} }}",
            "",
        ]
    )


def _write_tensor(node: Any, label_file: str | None = None) -> str:
    "Write a tensor without its batch. A size that varies is −1."
    kind = _TYPES[node.type.removeprefix("tensor(").removesuffix(")")]
    dims = [n if isinstance(n, int) else -1 for n in node.shape[1:]]
    if 0 in dims:
        raise HeadsError(f"input {node.name!r} has no column, and Triton takes no tensor without one.")
    fields = [f'name: "{node.name}"', f"data_type: TYPE_{kind}", f"dims: {dims or [1]}"]
    fields += [] if dims else ["reshape { shape: [] }"]
    fields += [f'label_filename: "{label_file}"'] if label_file else []
    return "  { " + " ".join(fields) + " }"
