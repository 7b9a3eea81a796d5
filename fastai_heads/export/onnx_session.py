"""An ONNX file that runs by onnxruntime. No module that this one imports imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastai_heads.errors import HeadsError, first_line
from fastai_heads.export.files import read_json
from fastai_heads.export.given import take

__all__ = ["KEY", "OnnxNetwork", "open_onnx", "output_names"]

KEY = "fastai_heads"  # of what an ONNX file says of itself, in its metadata


class OnnxNetwork:
    "Runs an ONNX file. Threads may share it."

    def __init__(
        self,
        session: Any,  # of onnxruntime
        answers: Mapping[str, Mapping[str, Any]],  # head → what its answer is called
    ):
        self.session, self.answers = session, answers

    def run(
        self,
        arrays: Mapping[str, np.ndarray],  # name → array
        heads: tuple[str, ...],  # those that are wanted
    ) -> dict[str, np.ndarray]:  # head → (B, …)
        "Compute what some heads say of a batch. What they do not need is computed as well: the graph is one."
        wanted = [name for head in heads for name in _read_names(head, self.answers[head]["answer"])]
        found = dict(zip(wanted, self.session.run(wanted, dict(arrays))))
        return {head: _value(head, self.answers[head]["answer"], found) for head in heads}


def output_names(
    head: str,  # its name
    answer: str,  # what its answer is called
) -> tuple[str, ...]:
    "Name the outputs of a head: its own name, and of a class its index, of detections their scores and labels."
    more = {"label": ("label",), "detections": ("scores", "labels")}.get(answer, ())
    return (head, *(f"{head}_{part}" for part in more))


def _read_names(head: str, answer: str) -> tuple[str, ...]:
    return output_names(head, answer) if answer == "detections" else (head,)


def _value(head: str, answer: str, found: Mapping[str, np.ndarray]) -> np.ndarray:
    if answer != "detections":
        return found[head]
    boxes, scores, labels = (found[name] for name in output_names(head, answer))
    return np.concatenate([boxes, labels[..., None].astype(boxes.dtype), scores[..., None]], -1)


def open_onnx(
    file: str | Path,  # what `export_onnx` wrote
    providers: Sequence[str] | None = None,  # onnxruntime's; None: the CPU
    threads: int | None = None,  # that one call uses; None: onnxruntime's choice
) -> tuple[dict[str, Any], OnnxNetwork]:  # what the file says of its inputs and answers, and the network
    "Open an ONNX file. Refuses one that does not say what its outputs mean."
    try:
        import onnxruntime
    except ImportError as error:
        raise HeadsError("ONNX files are run by onnxruntime: pip install fastai_heads[onnx]") from error
    if not isinstance(file, str | Path) or not Path(file).is_file():
        raise HeadsError(f"`file`: there is no file {file}.")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=list(providers or ["CPUExecutionProvider"])
        )
    except Exception as error:  # onnxruntime raises classes of its own
        raise HeadsError(f"`file`: {file} cannot be opened as ONNX: {first_line(error)}.") from error
    said = session.get_modelmeta().custom_metadata_map.get(KEY)
    if said is None:
        raise HeadsError(f"`file`: {file} was not written by `export_onnx`: it does not say what its outputs mean.")
    manifest = read_json(said.encode(), f"{file}: metadata")
    take(manifest, "inputs", list), take(manifest, "answers", dict)
    if manifest.get("takes") != "uint8":
        raise HeadsError(f"`file`: {file} takes what the body takes; a Predictor runs one of `takes='uint8'`.")
    return manifest, OnnxNetwork(session, manifest["answers"])
