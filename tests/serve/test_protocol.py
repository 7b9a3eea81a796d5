"""The Open Inference Protocol, version 2, spoken by a client that is written from its specification alone."""

import base64
import json
import math
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

DATATYPES = {
    "BOOL": bool, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
    "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BYTES": object,
}  # fmt: skip


class V2Client:
    """A client of the specification's REST half. It knows nothing of fastai_heads.

    Every answer is held against the specification: its objects, their fields and types, and the sizes of tensors.
    Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md."""

    def __init__(self, http: Any, model: str, version: str | None = None):
        self.http = http
        self.path = f"/v2/models/{quote(model)}" + (f"/versions/{version}" if version else "")
        self.model = model

    def call(self, verb: str, path: str, status: int = 200, **sent: Any) -> dict[str, Any]:
        "Send a request, and take an object of JSON; of an error one with its description."
        answer = self.http.request(verb, path, **sent)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        said = answer.json()
        assert isinstance(said, dict) and (status == 200 or isinstance(said["error"], str))
        return said

    def live(self) -> bool:
        "Ask whether the server is live."
        return self.call("GET", "/v2/health/live")["live"]

    def ready(self) -> bool:
        "Ask whether the server is ready, whose answer the specification calls `live`, too."
        return self.call("GET", "/v2/health/ready")["live"]

    def model_ready(self) -> bool:
        "Ask whether the model is ready."
        said = self.call("GET", f"{self.path}/ready")
        assert said["name"] == self.model
        return said["ready"]

    def server(self) -> dict[str, Any]:
        "Ask what the server is."
        said = self.call("GET", "/v2")
        assert isinstance(said["name"], str) and isinstance(said["version"], str)
        assert all(isinstance(e, str) for e in said["extensions"])
        return said

    def metadata(self) -> dict[str, Any]:
        "Ask what the model reads and gives."
        said = self.call("GET", self.path)
        assert said["name"] == self.model and isinstance(said["platform"], str)
        assert all(isinstance(v, str) for v in said.get("versions", []))
        for tensor in (*said["inputs"], *said["outputs"]):
            assert isinstance(tensor["name"], str) and tensor["datatype"] in DATATYPES
            assert all(type(n) is int and n >= -1 for n in tensor["shape"])
        return said

    def infer(self, inputs: dict[str, np.ndarray], outputs=None, request_id=None, nested=False) -> dict[str, Any]:
        "Send tensors, and take those that were asked for."
        names = {np.dtype(d): n for n, d in DATATYPES.items()}
        body: dict[str, Any] = {
            "inputs": [
                {"name": n, "shape": list(a.shape), "datatype": names[a.dtype],
                 "data": a.tolist() if nested else a.reshape(-1).tolist()}
                for n, a in inputs.items()
            ]
        }  # fmt: skip
        if outputs is not None:
            body["outputs"] = [o if isinstance(o, dict) else {"name": o} for o in outputs]
        if request_id is not None:
            body["id"] = request_id
        said = self.call("POST", f"{self.path}/infer", json=body)
        assert said["model_name"] == self.model and said.get("id") == request_id
        found = {}
        for tensor in said["outputs"]:
            data = np.array(tensor["data"], dtype=DATATYPES[tensor["datatype"]])
            assert data.size == math.prod(tensor["shape"])
            found[tensor["name"]] = data.reshape(tensor["shape"])
        assert outputs is None or len(found) == len(outputs)
        return found


@pytest.fixture
def v2(client):
    return V2Client(client, "digits")


@pytest.fixture
def exported(onnx_file):
    "Open the same network as an ONNX file."
    import onnxruntime

    return onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])


@pytest.fixture
def images(pictures):
    "Give two images, resized as the network reads them."
    return np.stack([np.asarray(Image.open(p).convert("RGB").resize((32, 32), 2)) for p in pictures[:2]])


def test_health_and_metadata(v2):
    assert v2.live() and v2.ready() and v2.model_ready()
    assert v2.server()["name"] == "fastai_heads"
    assert v2.metadata()["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]


def test_its_tensors_are_those_of_the_onnx_file(v2, exported, images):
    kinds = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8"}
    said = v2.metadata()
    for tensors, nodes in ((said["inputs"], exported.get_inputs()), (said["outputs"], exported.get_outputs())):
        told = {t["name"]: (t["datatype"], t["shape"]) for t in tensors if not t["name"].startswith("boxes")}
        assert told == {n.name: (kinds[n.type], [-1, *(n.shape[1:] or [1])]) for n in nodes}
    want = dict(zip([o.name for o in exported.get_outputs()], exported.run(None, {"image": images})))
    found = v2.infer({"image": images}, request_id="42")
    assert found.keys() - want.keys() == {"boxes", "boxes_scores", "boxes_labels"}
    for name, value in want.items():
        value = value[:, None] if value.ndim == 1 else value
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert np.allclose(found[name], value, atol=1e-4)
    assert [found[name].shape for name in ("boxes", "boxes_scores", "boxes_labels")] == [(2, 100, 4), *[(2, 100)] * 2]


def test_outputs_choose_heads(v2, predictor, images):
    ran = []
    hook = predictor.network.network.heads.register_forward_hook(lambda *_: ran.append("all"))
    v2.infer({"image": images})
    assert ran == ["all"]
    found = v2.infer({"image": images}, outputs=["ink", "digit_label"], nested=True)
    hook.remove()
    assert ran == ["all"] and list(found) == ["ink", "digit_label"]
    assert set(predictor.network._cut) >= {("digit", "ink")}


def test_names_of_classes_by_tritons_extension(v2, predictor, images):
    assert "classification" in v2.server()["extensions"]
    asked = [{"name": "digit", "parameters": {"classification": 3}}, {"name": "tags", "parameters": {}}]
    found, plain = v2.infer({"image": images}, outputs=asked), v2.infer({"image": images})
    assert found["digit"].shape == (2, 3) and np.array_equal(found["tags"], plain["tags"])
    for row, numbers in zip(found["digit"], plain["digit"]):
        for text, code in zip(row, np.argsort(-numbers)):
            probability, index, label = text.split(":")
            assert int(index) == code and label == predictor.manifest["answers"]["digit"]["vocab"][code]
            assert float(probability) == pytest.approx(numbers[code], abs=1e-6)


def test_files_rows_and_texts_as_bytes(serve, v2, predictor, several, pictures):
    file = base64.b64encode(pictures[0].read_bytes()).decode()
    found = v2.infer({"image": np.array([file], dtype=object)}, outputs=["ink"])
    assert found["ink"][0, 0] == pytest.approx(predictor(pictures[0]).ink, rel=1e-6)
    image, row, note = several.inputs
    client = V2Client(serve(several, "many"), "many", version="1")
    texts = {image: [file, ""], row: [json.dumps({"note": "odd", "ink": 7.5})] * 2, note: ["odd even", "even"]}
    found = client.infer({name: np.array(values, dtype=object) for name, values in texts.items()})
    want = several([{image: pictures[0], row: {"note": "odd", "ink": 7.5}, note: "odd even"},
                    {image: None, row: {"note": "odd", "ink": 7.5}, note: "even"}])  # fmt: skip
    assert np.allclose(found["ink"][:, 0], [answer.ink for answer in want], rtol=1e-5)


def test_rows_and_texts_as_the_network_reads_them(serve, several, pictures):
    image, row, note = several.inputs
    client = V2Client(serve(several, "many"), "many")
    assert [t["name"] for t in client.metadata()["inputs"]] == [image, f"{row}_categories", f"{row}_numbers", note]
    item = several.read({image: pictures[0], row: {"note": "odd", "ink": 7.5}, note: "odd even"})
    pixels, (codes, numbers), ids = item.parts
    given = {image: pixels, f"{row}_categories": codes, f"{row}_numbers": numbers, note: ids}
    found = client.infer({name: array[None] for name, array in given.items()}, outputs=["ink"])
    assert found["ink"][0, 0] == several.compute([item], ("ink",))[0]["ink"][0]
    for name, wrong in ((f"{row}_categories", codes + 9), (f"{row}_categories", codes - 9), (note, ids + 9)):
        body = {**given, name: wrong}
        kinds = {"u": "UINT8", "i": "INT64", "f": "FP32"}
        tensors = [
            {"name": n, "shape": [1, *a.shape], "datatype": kinds[a.dtype.kind], "data": a.tolist()}
            for n, a in body.items()
        ]
        client.call("POST", f"{client.path}/infer", 422, json={"inputs": tensors})


GOOD = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "is a list of tensors"),
        ({"inputs": []}, "is empty"),
        ({"inputs": [3]}, "with name, shape, datatype and data"),
        ({"inputs": [{**GOOD, "name": "imag"}]}, "Did you mean 'image'"),
        ({"inputs": [GOOD, GOOD]}, "is there twice"),
        ({"inputs": [{**GOOD, "datatype": "FP32"}]}, "`datatype` of 'image' is UINT8, found 'FP32'"),
        ({"inputs": [{**GOOD, "shape": [1, 31, 32, 3]}]}, "`shape` of 'image' is [-1, 32, 32, 3]"),
        ({"inputs": [{**GOOD, "shape": [-1, 32, 32, 3]}]}, "whole numbers of at least 0"),
        ({"inputs": [{**GOOD, "shape": [0, 32, 32, 3], "data": []}]}, "holds no item"),
        ({"inputs": [{**GOOD, "shape": [65, 32, 32, 3], "data": [7] * 65 * 3072}]}, "at most 64 items"),
        ({"inputs": [{**GOOD, "data": [7]}]}, "has 1 values, and its shape 3072"),
        ({"inputs": [{**GOOD, "data": [256] * 3072}]}, "values that are no UINT8"),
        ({"inputs": [{**GOOD, "data": [0.5] * 3072}]}, "values that are no UINT8"),
        ({"inputs": [{**GOOD, "data": ["7"] * 3072}]}, "values that are no UINT8"),
        ({"inputs": [{**GOOD, "data": [[7], [7, 7]]}]}, "values that are no UINT8"),
        ({"inputs": [{**GOOD, "data": {}}]}, "is a list"),
        ({"inputs": [{**GOOD, "datatype": "BYTES", "shape": [1], "data": [3]}]}, "is a list of texts"),
        ({"inputs": [{**GOOD, "datatype": "BYTES", "shape": [2], "data": ["x"]}]}, "has 1 texts"),
        ({"inputs": [GOOD], "outputs": 3}, "is a list of objects"),
        ({"inputs": [GOOD], "outputs": [{"name": "digt"}]}, "Did you mean 'digit"),
        ({"inputs": [GOOD], "outputs": [{"name": "ink", "parameters": {"classification": 2}}]}, "a class or of tags"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_an_error_with_its_description(v2, body, said):
    status = 422 if "no item" in said else 413 if "at most" in said else 400
    assert said in v2.call("POST", f"{v2.path}/infer", status, json=body)["error"]


def test_models_and_versions_that_are_none(client, v2):
    for model, version in (("digit", None), ("digits", "2")):
        other = V2Client(client, model, version)
        for verb, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
            assert "there is" in other.call(verb, other.path + path, 404)["error"]
    assert V2Client(client, "digits", "1").model_ready()
