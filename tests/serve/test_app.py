"""One call answers for every head, in the predictor's words; what is wrong is 4xx, and the service lives on."""

import base64
import io
import json
from threading import Event

import numpy as np
import pytest
from PIL import Image

from fastai_heads.errors import HeadsError
from fastai_heads.export.answers import as_plain
from fastai_heads.serve.app import make_app
from fastai_heads.serve.limits import Limits

JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


def blank(width: int, height: int) -> bytes:
    "Write a file of a white image."
    file = io.BytesIO()
    Image.new("L", (width, height), 255).save(file, "PNG")
    return file.getvalue()


def codes_of(png: str) -> np.ndarray:
    "Read a mask that is sent as a picture."
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def check_answer(found, answer):
    "Compare an answer of the service with the predictor's."
    said = answer.asdict()
    mask = said.pop("mask", None)
    if mask is not None:
        found = dict(found)
        sent = found.pop("mask")
        assert np.array_equal(codes_of(sent["png"]), mask.codes) and sent["vocab"] == list(mask.vocab)
    assert found == json.loads(json.dumps({name: as_plain(value) for name, value in said.items()}))


def test_a_file_the_files_of_a_form_and_json_are_answered_as_the_predictor_does(client, predictor, pictures):
    want = predictor(pictures[0])
    assert len(want.boxes.labels) > 0
    answered = client.post("/predict", content=pictures[0].read_bytes(), headers=PNG)
    assert answered.status_code == 200
    check_answer(answered.json()["answers"][0], want)
    together = predictor(pictures[:3])
    for sent in (
        {"files": [("image", (path.name, path.read_bytes())) for path in pictures[:3]]},
        {"json": {"items": [base64.b64encode(path.read_bytes()).decode() for path in pictures[:3]]}},
    ):
        answers = client.post("/predict", **sent).json()["answers"]
        assert len(answers) == 3
        for found, answer in zip(answers, together):
            check_answer(found, answer)


def test_some_heads_alone(client, predictor, pictures):
    body = pictures[0].read_bytes()
    by_query = client.post("/predict?heads=ink, digit", content=body, headers=PNG).json()["answers"][0]
    by_json = {"items": [base64.b64encode(body).decode()], "heads": ["ink", "digit"]}
    assert client.post("/predict", json=by_json).json()["answers"][0] == by_query
    assert list(by_query) == ["digit", "ink"]
    check_answer(by_query, predictor(pictures[0], heads=("digit", "ink")))


def test_a_service_of_some_heads(serve, predictor, pictures):
    client = serve(predictor, heads=["ink"])
    files = [("image", pictures[0].read_bytes())]
    assert list(client.post("/predict", files=files).json()["answers"][0]) == ["ink"]
    refused = client.post("/predict?heads=digit", files=files)
    assert refused.status_code == 422 and "there is no head 'digit'" in refused.json()["error"]
    with pytest.raises(HeadsError, match="Did you mean 'ink'"):
        make_app(predictor, heads=["inkk"])


def test_several_inputs_of_which_one_may_be_missing(serve, several, pictures):
    client, (image, row, note) = serve(several), several.inputs
    picture = pictures[0].read_bytes()
    item = {image: base64.b64encode(picture).decode(), row: {"note": "odd", "ink": 7.5}, note: "odd even"}
    want = several([{**item, image: pictures[0]}, {**item, image: None}])
    answers = client.post("/predict", json={"items": [item, {**item, image: None}]}).json()["answers"]
    assert want[0] != want[1] and len(answers) == 2
    for found, answer in zip(answers, want):
        check_answer(found, answer)
    form = client.post("/predict", files={image: picture}, data={row: json.dumps(item[row]), note: item[note]})
    check_answer(form.json()["answers"][0], several({**item, image: pictures[0]}))
    for wrong, said in (
        ({**item, "picture": "x"}, "there is no input 'picture'"),
        ({k: v for k, v in item.items() if k != note}, f"input {note!r} is missing"),
        ({**item, row: {"note": "odd"}}, "there is no column 'ink'"),
        ({**item, row: {"note": "odd", "ink": 10**400}}, "is to hold finite numbers"),
        ({**item, note: "\ud800"}, "holds half a character"),
        ({**item, note: 3}, "is a text"),
        ({**item, note: "a" * 20_001}, "at most 20,000"),
        (3, "is an object of"),
    ):
        refused = client.post("/predict", content=json.dumps({"items": [wrong]}), headers=JSON)
        assert refused.status_code in (413, 422) and said in refused.json()["error"], refused.json()
    assert client.post("/predict", content=picture, headers=PNG).status_code == 415


def test_what_breaks_a_limit_is_refused(serve, predictor):
    client = serve(predictor, limits=Limits(body=5000, items=2, pixels=2000, values=10))

    def refused(**sent) -> str:
        answer = client.post("/predict", **sent)
        assert answer.status_code == 413
        return answer.json()["error"]

    assert "5,000 bytes" in refused(files={"a": b"x" * 6000})
    assert "5,000 bytes" in refused(content=iter([b"x" * 3000, b"x" * 3000]), headers=PNG)
    assert "at most 2 items" in refused(files=[("a", blank(2, 2))] * 3)
    assert "10 values" in refused(content=b'{"items": [' + b"[]," * 10 + b"3]}", headers=JSON)
    assert "at most 2,000 are taken" in refused(files={"a": blank(100, 100)})
    assert client.post("/predict", files={"a": blank(9, 9)}).status_code == 200


def test_images_of_any_size_have_a_limit_of_their_own(serve, unresized):
    client = serve(unresized, limits=Limits(unresized=2000))
    sent = {n: client.post("/predict", files={"a": blank(n, 50)}) for n in (1, 30, 40, 50)}
    assert [answer.status_code for answer in sent.values()] == [200, 200, 200, 413]
    together = client.post("/predict", files=[("a", blank(30, 50)), ("a", blank(40, 50))]).json()["answers"]
    assert together == [sent[n].json()["answers"][0] for n in (30, 40)]


def test_a_fault_is_500_without_a_traceback_and_the_service_lives_on(serve, predictor, pictures, monkeypatch):
    client, files = serve(predictor), [("image", pictures[0].read_bytes())]
    with monkeypatch.context() as patch:
        patch.setattr(predictor.network, "run", lambda *_: 1 / 0)
        failed = client.post("/predict", files=files)
    assert failed.status_code == 500 and failed.json() == {"error": "the service failed; its log says how"}
    assert client.post("/predict", files=files).status_code == 200
    assert 'status="500"' in client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_504(serve, predictor, pictures, monkeypatch):
    client, go, compute = serve(predictor, limits=Limits(seconds=0.1)), Event(), predictor.compute
    monkeypatch.setattr(predictor, "compute", lambda *args: go.wait() and compute(*args))
    late = client.post("/predict", files=[("image", pictures[0].read_bytes())])
    go.set()
    assert late.status_code == 504 and "within 0.1 seconds" in late.json()["error"]


def test_numbers_that_are_not_finite_are_null(serve, predictor, pictures, monkeypatch):
    client, run = serve(predictor, heads="ink"), predictor.network.run
    monkeypatch.setattr(predictor.network, "run", lambda *args: {h: v * np.nan for h, v in run(*args).items()})
    answered = client.post("/predict", files=[("image", pictures[0].read_bytes())])
    assert answered.json() == {"answers": [{"ink": None}]}


def test_it_counts(client, pictures):
    for _ in range(2):
        client.post("/predict", files=[("image", pictures[0].read_bytes())] * 3)
    client.post("/predict")
    said = client.get("/metrics").text
    assert 'fastai_heads_requests_total{route="/predict",status="200"} 2.0' in said
    assert 'fastai_heads_requests_total{route="/predict",status="415"} 1.0' in said
    assert 'fastai_heads_request_seconds_count{route="/predict"} 3.0' in said
    assert "fastai_heads_batch_items_sum 6.0" in said


def test_paths_and_methods_that_are_none(client):
    for method, path, status in (
        ("GET", "/predict", 405),
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
        ("GET", "/../setup.cfg", 404),
        ("GET", "/page.html", 404),
        ("GET", "/v2/models/..%2f..%2fetc", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]


def test_the_page_and_what_it_asks(client, predictor):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "default-src 'none'" in str(page.headers)
    assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
    about = client.get("/about").json()
    assert about["name"] == "digits" and about["inputs"] == [{"name": "image", "kind": "image"}]
    assert about["heads"]["boxes"] == "detections" and list(about["heads"]) == list(predictor.heads)
