"""ONNX: a learner or a predictor as one graph with named outputs, checked against torch before it is kept."""

import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner
from torch import Tensor, nn

from fastai_heads.disk import beside, settle
from fastai_heads.errors import HeadsError, first_line
from fastai_heads.export.bundle import predictor_of
from fastai_heads.export.detections import FixedDetections, nms_translation
from fastai_heads.export.example import draw_batch
from fastai_heads.export.graph import Graph
from fastai_heads.export.onnx_session import KEY, output_names
from fastai_heads.export.predictor import Predictor

__all__ = ["export_onnx"]

_TOLERANCE = 1e-5
_BATCHES = (1, 2, 5)  # sizes at which the file is checked


class NamedOutputs(nn.Module):
    "A graph whose outputs are a tuple, in the order of their names."

    def __init__(
        self,
        graph: Graph,  # in evaluation mode
        example: tuple[Tensor, ...],  # the arrays of a batch
    ):
        super().__init__()
        self.inner = graph
        names = graph.network.heads.names
        self.fixed = nn.ModuleDict()
        with torch.no_grad():
            preds = graph.network(*graph.parts(example))
        for name, pred in zip(names, preds):
            if graph.tasks[name][1] == "detections":
                self.fixed[f"head_{name}"] = FixedDetections(graph.tasks[name][0], pred)

    @property
    def names(self) -> list[str]:
        "The outputs' names."
        return [n for head in self.inner.network.heads.names for n in output_names(head, self.inner.tasks[head][1])]

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        "Give every output."
        preds = self.inner.network(*self.inner.parts(arrays))
        found: list[Tensor] = []
        for name, pred in zip(self.inner.network.heads.names, preds):
            answer = self.inner.tasks[name][1]
            if answer == "detections":
                rows = self.fixed[f"head_{name}"](pred)
                found += [rows[..., :4], rows[..., 5], rows[..., 4].long()]
                continue
            value = self.inner.answer(name, pred)
            found += [value, value.argmax(-1)] if answer == "label" else [value]
        return tuple(found)


def export_onnx(
    file: str | Path,  # that is written
    source: Learner | Predictor,  # a `MultiHeadLearner`, or what `load_bundle` gave
    heads: str | Sequence[str] | None = None,  # those that leave; None: all but auxiliary ones
    takes: str = "uint8",  # images as (B, H, W, C) of uint8; 'body': what the body takes, floats (B, C, H, W)
    int8: bool = False,  # weights of linear layers in 8 bits; smaller, and not as exact
    overwrite: bool = False,  # take the place of a file that is there
) -> Path:  # the file
    """Write one graph for all heads, by torch's exporter. Normalisation, activations and the suppression of boxes are
    inside; opening and resizing images, and tokenizing texts, are outside, and `Predictor.from_onnx` does them.

    The outputs bear the heads' names: probabilities, numbers, places from −1 to 1 over the image, codes of a mask. A
    class has its index as `digit_label`; detections are `boxes`, `boxes_scores`, `boxes_labels` (−1: none), the best
    first. The file is compared with torch on three batch sizes before it is kept; with `int8` the difference is in its
    metadata instead."""
    file = _check(file, takes, int8, overwrite)
    predictor = source if isinstance(source, Predictor) else predictor_of(source)
    if not hasattr(predictor.network, "graph"):
        raise HeadsError("`source` runs an ONNX file already: copy that file.")
    chosen = predictor.choose(heads)
    _check_inputs(predictor)
    said = {
        "takes": takes,
        "inputs": predictor.manifest["inputs"],
        "answers": {name: predictor.manifest["answers"][name] for name in chosen},
        "versions": predictor.manifest["versions"],
    }
    graph = Graph(predictor.network.graph(chosen).network, predictor.network.inputs, predictor.network.tasks, takes)
    graph = graph.cpu().eval()
    examples = [_example(predictor, n, takes) for n in (3, *_BATCHES)]
    module = NamedOutputs(graph, tuple(examples[0].values())).eval()
    with beside(file) as folder:
        part = folder / "model.onnx"
        _export(module, examples[0], part)
        worst = _difference(part, module, examples, predictor)
        if worst > 1:
            raise HeadsError(f"the ONNX graph does not agree with torch: it is off by {worst * _TOLERANCE:.2g}.")
        if int8:
            part = _quantized(part)
            said["int8_difference"] = _difference(part, module, examples, predictor, codes=False) * _TOLERANCE
        _describe(part, said)
        settle(part)
        part.replace(file)
    return file


def _check(file: Any, takes: Any, int8: Any, overwrite: Any) -> Path:
    if not isinstance(file, str | Path) or not str(file):
        raise HeadsError(f"`file` is a path, found {file!r}.")
    if takes not in ("uint8", "body"):
        raise HeadsError(f"`takes` is 'uint8' or 'body', found {takes!r}.")
    if not isinstance(int8, bool) or not isinstance(overwrite, bool):
        raise HeadsError(f"`int8` and `overwrite` are True or False, found {int8!r} and {overwrite!r}.")
    if Path(file).exists() and not overwrite:
        raise HeadsError(f"`file`: there is {file} already; pass `overwrite=True`, or another name.")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise HeadsError(f"`export_onnx` needs {error.name}: pip install fastai_heads[onnx]") from error
    return Path(file)


def _check_inputs(predictor: Predictor) -> None:
    "Refuse inputs that no graph can take."
    for said in predictor.manifest["inputs"]:
        if said.get("partial"):
            raise HeadsError(f"input {said['name']!r} may be missing, and a graph has no place for that.")
        if said.get("tokenizer", {}).get("name") == "fastai":
            raise HeadsError(
                f"input {said['name']!r} is read by AWD_LSTM, whose loop over a text's parts no graph holds: export a "
                "`TextBody` of transformers, or serve the bundle."
            )


def _example(predictor: Predictor, n: int, takes: str) -> dict[str, Tensor]:
    "Draw a batch, the same each time."
    drawn = draw_batch(predictor.manifest["inputs"], n, takes)
    return {name: torch.from_numpy(array) for name, array in drawn.items()}


def _export(module: NamedOutputs, example: Mapping[str, Tensor], file: Path) -> None:
    "Run torch's exporter, and let it say nothing."
    batch = torch.export.Dim("batch", min=1, max=1 << 14)
    texts = {said["name"] for said in module.inner.inputs if said["kind"] == "text"}
    length = torch.export.Dim("length", min=2, max=_longest(module))
    shapes = tuple({0: batch, 1: length} if name in texts else {0: batch} for name in example)
    table = nms_translation() if len(module.fixed) else None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=list(example),
                output_names=module.names,
                custom_translation_table=table,
                verbose=False,
            )
        program.save(str(file))
    except Exception as error:  # the exporter raises classes of its own
        raise HeadsError(f"torch's exporter could not write the network as ONNX: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    "Find what the exporter met first: it wraps errors in each other, under general advice."
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _longest(module: NamedOutputs) -> int:
    "Find how many tokens of a text the bodies read."
    limits = [m.limit for m in module.modules() if isinstance(getattr(m, "limit", None), int)]
    return min([4096, *limits])


def _difference(
    file: Path,
    module: NamedOutputs,
    examples: Sequence[Mapping[str, Tensor]],
    predictor: Predictor,
    codes: bool = True,  # classes and codes are compared, too
) -> float:
    "Compare the file with torch: the largest difference in tolerances, of numbers in their deviations."
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for example in examples[1:]:
        found = session.run(module.names, {name: t.numpy() for name, t in example.items()})
        with torch.no_grad():
            wanted = dict(zip(module.names, module(*example.values())))
        given = dict(zip(module.names, found))
        sure = _sure_rows(module, {name: t.numpy() for name, t in wanted.items()})
        for name, value in given.items():
            if not codes and not np.issubdtype(value.dtype, np.floating):
                continue
            rows = sure.get(name, ...)
            worst = max(worst, _off(value[rows], wanted[name].numpy()[rows], _unit(predictor, name)) / _TOLERANCE)
    return worst


def _sure_rows(module: NamedOutputs, wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    "Tell (B, D) which detections have a rank that does not hang on the last bit of a score, by the output's name."
    found: dict[str, np.ndarray] = {}
    for head in module.inner.network.heads.names:
        if module.inner.tasks[head][1] == "detections":
            boxes, scores, labels = output_names(head, "detections")
            near = np.diff(wanted[scores], axis=1, append=-1) > -_TOLERANCE
            near |= np.roll(near, 1, axis=1)
            found |= dict.fromkeys((boxes, labels), ~near)
    return found


def _unit(predictor: Predictor, output: str) -> float | np.ndarray:
    "Give what a difference is measured in: the deviations of standardised numbers, else 1."
    head = predictor.manifest["network"]["heads"].get(output, {}) if "network" in predictor.manifest else {}
    standardize = head.get("spec", {}).get("standardize")
    return np.array(standardize[1]) if isinstance(standardize, list) else 1.0


def _off(found: np.ndarray, wanted: np.ndarray, unit: float | np.ndarray) -> float:
    "Tell how far two outputs are apart; of codes, the share that differs by a thousand pixels."
    if found.shape != wanted.shape or not found.size:
        return float("inf") if found.shape != wanted.shape else 0.0
    if not np.issubdtype(found.dtype, np.floating):
        return float((found != wanted).mean()) * 1e-3 if found.size > 1000 else float((found != wanted).mean())
    scale = np.maximum(1.0, np.abs(wanted))
    return float((np.abs(found.astype(np.float64) - wanted) / unit / scale).max())


def _quantized(file: Path) -> Path:
    "Bring the weights of linear layers to 8 bits."
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = file.with_name("small.onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_dynamic(str(file), str(small), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return small


def _describe(file: Path, said: Mapping[str, Any]) -> None:
    "Write into a file what its inputs and outputs mean."
    import onnx

    model = onnx.load(str(file))
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(said, ensure_ascii=False, allow_nan=False)
    onnx.save(model, str(file))
