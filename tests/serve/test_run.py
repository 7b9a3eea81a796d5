"""A server in a process of its own: it answers, it takes 500 hostile requests without harm, and it ends when told."""

import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastai_heads.__main__ import main
from fastai_heads.serve.run import serve as run_serve

JSON, PNG = {"Content-Type": "application/json"}, {"Content-Type": "image/png"}


class Server:
    "The command, and a client of it that sends exactly what it is told."

    def __init__(self, bundle: Path, log: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "fastai_heads", "serve", str(bundle), "--port", str(self.port)]
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen([*command, *options], stdout=out, stderr=out)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        "Ask until it answers."
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                assert self.ask("GET", "/v2/health/ready")[0] == 200
                return
            except ConnectionError:
                time.sleep(0.05)
        pytest.fail(self.log.read_text())

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        "Send a request, and give the status and the JSON of the answer."
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=False, skip_accept_encoding=True)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            is_json = answer.headers["content-type"].startswith("application/json")
            said = answer.read()  # what is no HTTP at all is answered by uvicorn, in plain text
            return answer.status, json.loads(said) if is_json else {"error": said.decode()}
        finally:
            connection.close()

    def send_raw(self, data: bytes) -> bytes:
        "Send bytes as they are, say that no more come, and take what is answered."
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while part := connection.recv(65536):
                found += part
            return found

    @property
    def memory(self) -> int:
        "How many bytes the process holds."
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory) -> Iterator[Server]:
    "Start the command once."
    options = ("--pixels", "1000000", "--heads", "digit,tags,ink,mask")
    started = Server(bundle, tmp_path_factory.mktemp("log") / "log.txt", *options)
    yield started
    started.process.kill()
    started.process.wait()


def test_it_answers_as_the_predictor_does(server, predictor, pictures):
    status, said = server.ask("POST", "/predict", pictures[0].read_bytes(), PNG)
    answer = predictor(pictures[0])
    assert status == 200 and said["answers"][0]["digit"]["label"] == answer.digit.label
    assert said["answers"][0]["ink"] == pytest.approx(answer.ink, rel=1e-6)
    assert server.ask("GET", "/v2/models/all%20kinds/ready") == (200, {"name": "all kinds", "ready": True})


# hostile requests


def chunk(kind: bytes, data: bytes) -> bytes:
    "Write a part of a PNG file."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    "Write a small PNG file of very many pixels."
    pixels = zlib.compress(bytes(10**6), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def broken(rng: random.Random, data: bytes) -> bytes:
    "Cut a file off, or change some of its bytes."
    if rng.random() < 0.4:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 5, 50))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


ODD = (None, True, -1, 0.5, 1e308, 10**30, "", "x", "/etc/passwd", "../../../../etc/passwd", "\ud800", "\x00", [], {},
       [[]], [None], {"a": 1}, "9" * 9999, "data:image/png;base64,AAAA", [3] * 99, "file:///etc/passwd")  # fmt: skip


def twisted(rng: random.Random, value: Any) -> Any:
    "Put something odd in the place of some part of a body of JSON."
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return rng.choice(ODD)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        return [*value[:i], twisted(rng, value[i]), *value[i + 1 :]]
    key = rng.choice(list(value))
    if rng.random() < 0.2:
        return {k: v for k, v in value.items() if k != key} | {rng.choice(("x", "\ud800", "")): 3}
    return value | {key: twisted(rng, value[key])}


PATHS = (
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v2/models/..%2f..%2f/infer", "/page.js/../../setup.cfg",
    "//", "/v2/models/%00/infer", "/predict/" + "a" * 5000, "/static/../../../etc/shadow", "/predict?heads=%ff",
    "/v2/models/all%20kinds/../infer", "/predict?heads=../x", "/predict?" + "heads=digit&" * 500, "/predict?heads=",
    "/v2/models/{name}/infer", "/v2/repository/models/x/load", "/.git/config",
    "/v2/models/all%20kinds/versions/-1/infer",
)  # fmt: skip
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
RAW = (
    b"", b"\x00" * 50, b"GET", b"GET / HTTP/9.9\r\n\r\n", POST + b"Content-Length: -5\r\n\r\n",
    POST + b"Content-Length: 10\r\nContent-Type: image/png\r\n\r\nabc",
    POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    b"GET /" + b"a" * 99999 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip


def form(rng: random.Random, files: list[bytes]) -> tuple[bytes, dict[str, str]]:
    "Write a form, and break it."
    parts = [
        b'--xx\r\nContent-Disposition: form-data; name="a"; filename="../../etc/%d"\r\n\r\n%b\r\n' % (i, file)
        for i, file in enumerate(files)
    ]
    whole = b"".join(parts) + b"--xx--\r\n"
    boundary = rng.choice(("; boundary=xx", "; boundary=yy", "", "; boundary=" + "x" * 999))
    return rng.choice((whole, broken(rng, whole))), {"Content-Type": f"multipart/form-data{boundary}"}


def hostile(rng: random.Random, files: list[bytes]) -> tuple[str, str, bytes, dict[str, str]]:
    "Draw a request: method, path, body, headers."
    kind = rng.choice(("file", "form", "json", "infer", "bytes", "bomb", "path"))
    file, infer = rng.choice(files), "/v2/models/all%20kinds/infer"
    if kind == "file":
        return "POST", "/predict", broken(rng, file), PNG
    if kind == "form":
        return "POST", "/predict", *form(rng, [file] * rng.choice((0, 1, 3, 3, 70)))
    if kind == "path":
        return rng.choice(("GET", "POST", "PUT", "DELETE", "TRACE", "X")), rng.choice(PATHS), b"{}", JSON
    if kind == "bytes":
        return "POST", rng.choice(("/predict", infer)), rng.randbytes(rng.choice((0, 1, 99, 9999))), JSON
    if kind == "bomb":
        bombs = (b"[" * 200_000, b'{"items":[' + b"[]," * 400_000 + b"3]}", b'{"a":' * 50_000, b"9" * 400_000)
        bomb_file = base64.b64encode(bomb(30_000)).decode()
        one = json.dumps({"items": [bomb_file] * 20}).encode()
        return rng.choice((("POST", "/predict", bomb(30_000), PNG), ("POST", "/predict", one, JSON),
                           ("POST", rng.choice(("/predict", infer)), rng.choice(bombs), JSON)))  # fmt: skip
    text = base64.b64encode(file).decode()
    bodies = {
        "json": {"items": [text, text], "heads": ["digit"]},
        "infer": {"id": "1", "outputs": [{"name": "ink", "parameters": {"classification": 1}}, {"name": "digit"}],
                  "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]},
    }  # fmt: skip
    return "POST", "/predict" if kind == "json" else infer, json.dumps(twisted(rng, bodies[kind])).encode(), JSON


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory from /proc")
def test_500_hostile_requests_get_clean_answers_and_take_no_memory(server, pictures):
    rng, seen = random.Random(0), {}
    jpeg = io.BytesIO()
    Image.open(pictures[1]).convert("RGB").save(jpeg, "JPEG")
    files = [pictures[0].read_bytes(), jpeg.getvalue()]
    for i in range(500):
        if i == 250:
            before = server.memory
        if i % 20 == 0:
            answer = server.send_raw(RAW[i // 20 % len(RAW)])
            assert b"Traceback" not in answer and (not answer or answer.split(b" ", 2)[1][:1] in b"234"), answer
            continue
        request = hostile(rng, files)
        status, said = server.ask(*request)
        assert status == 200 or (400 <= status < 500 and list(said) == ["error"]), (request[:2], status, said)
        assert "Traceback" not in str(said)
        seen[status] = seen.get(status, 0) + 1
    assert server.memory - before < 32 * 2**20
    assert set(seen) == {200, 400, 404, 405, 413, 422}
    assert "Traceback" not in server.log.read_text()
    status, said = server.ask("POST", "/predict", files[0], PNG)
    assert status == 200 and len(said["answers"]) == 1


def test_it_ends_when_it_is_told(server):
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) in (0, -signal.SIGINT)
    assert "Traceback" not in server.log.read_text()


def test_several_processes_serve_an_onnx_file_and_count_together(onnx_file, predictor, pictures, tmp_path):
    server = Server(onnx_file, tmp_path / "log.txt", "--workers", "2", "--heads", "digit,ink")
    try:
        for picture in pictures[:6]:
            status, said = server.ask("POST", "/predict", picture.read_bytes(), PNG)
            assert status == 200 and list(said["answers"][0]) == ["digit", "ink"]
            assert said["answers"][0]["ink"] == pytest.approx(predictor(picture).ink, rel=1e-4)
        counted = server.ask("GET", "/metrics")[1]["error"]
        assert 'fastai_heads_requests_total{route="/predict",status="200"} 6.0' in counted
        assert server.ask("GET", "/v2/models/digits/ready")[0] == 200
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) in (0, -signal.SIGINT)


def test_an_onnx_file_is_served_without_torch(onnx_file):
    code = (
        "import sys, fastai_heads.__main__\n"
        "from fastai_heads.export.predictor import open_predictor\n"
        "from fastai_heads.serve.app import make_app\n"
        f"make_app(open_predictor({str(onnx_file)!r}))\n"
        "print([m for m in ('torch', 'fastai', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# what is refused before a port is opened


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "there is no folder"),
        (["nowhere.onnx"], "there is no file"),
        (["{bundle}", "--heads", "digt"], "Did you mean 'digit'"),
        (["{bundle}", "--items", "0"], "`items` is a whole number"),
        (["{bundle}", "--device", "gpu"], "`device` is one of torch's"),
        (["{bundle}", "--port", "70000"], "`port` is"),
        (["{bundle}", "--workers", "2", "--heads", "digt"], "Did you mean 'digit'"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(bundle, args, said, capsys):
    assert main(["serve", *(arg.format(bundle=bundle) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_package_that_is_missing_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(Exception, match=r"serving needs starlette: pip install fastai_heads\[serve\]"):
        run_serve(bundle)
