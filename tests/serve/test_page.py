"""The page in a browser: a picture is dropped, and every head's answer is drawn.

Chromium is told what to do over a pipe, by the Chrome DevTools Protocol."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from fastai_heads.export.predictor import Predictor
from fastai_heads.serve.app import make_app

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(BROWSER is None or os.name != "posix", reason="needs Chromium")


class Browser:
    "A headless Chromium with one page."

    def __init__(self, home: Path):
        read, self.out = os.pipe()
        self.inn, write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={home}"]
        code = f"import os, sys; os.dup2({read}, 3); os.dup2({write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, BROWSER, *flags],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(read), os.close(write)
        self.count, self.left, self.session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        "Give an order, and wait for what came of it."
        self.count += 1
        order = {"id": self.count, "method": method, "params": params}
        order |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(order).encode() + b"\0")
        while True:
            while b"\0" not in self.left:
                part = os.read(self.inn, 1 << 20)
                assert part, "the browser has ended"
                self.left += part
            message, _, self.left = self.left.partition(b"\0")
            said = json.loads(message)
            if said.get("id") == self.count:
                assert "error" not in said, said
                return said["result"]

    def run(self, script: str) -> Any:
        "Run a script in the page, and give its value."
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, script: str) -> Any:
        "Wait until a script gives something."
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.02)
        pytest.fail(f"{script}: {self.run('document.body.innerText')}")

    def open(self, url: str) -> None:
        "Open the page."
        self.call("Page.navigate", url=url)
        self.wait('document.querySelector("#inputs > *") !== null')

    def drop(self, file: bytes, kind: str = "image/png") -> str:
        "Drop a picture, and give the text of the page once it has answered."
        self.run(f"""(() => {{
            const bytes = Uint8Array.from(atob("{base64.b64encode(file).decode()}"), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "picture", {{ type: "{kind}" }}));
            document.getElementById("answers").replaceChildren();
            document.querySelector("label.drop").dispatchEvent(
                new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }}));
        }})()""")
        self.wait('document.querySelector("#answers tr, .error") !== null')
        return self.run("document.body.innerText")

    def picture(self) -> Image.Image:
        "Take what is drawn on the canvas."
        data = self.run('document.getElementById("picture").toDataURL()')
        return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")

    def screenshot(self) -> Image.Image:
        "Take a picture of the page."
        return Image.open(io.BytesIO(base64.b64decode(self.call("Page.captureScreenshot")["data"]))).convert("RGB")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    "Start Chromium once."
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.process.kill()
    started.process.wait()
    os.close(started.out), os.close(started.inn)


@pytest.fixture
def at_port() -> Iterator[Any]:
    "Give a function that serves a predictor on a port of its own, and gives the address."
    running = []

    def start(predictor: Predictor) -> str:
        config = uvicorn.Config(make_app(predictor, "<digits>"), port=0, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def test_every_heads_answer_is_drawn_on_a_picture_that_is_dropped(browser, at_port, predictor, pictures, tmp_path):
    answer = predictor(pictures[0])
    browser.open(at_port(predictor))
    said = browser.drop(pictures[0].read_bytes())
    assert all(head in said for head in predictor.heads) and "<digits>" in said
    assert f"{answer.digit.label} {100 * answer.digit.probability:.1f} %" in said
    assert f"{answer.ink:.4g}" in said and all(tag in said for tag in answer.tags.probabilities)
    given = Image.open(pictures[0]).convert("RGB")
    drawn = browser.picture()
    zoom = drawn.width // given.width
    assert drawn.size == (given.width * zoom, given.height * zoom) and zoom > 1
    changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(given.resize(drawn.size, 0))).max(-1) > 8
    x, y = answer.centre[0] * zoom
    assert changed[int(y), int(x)] and changed.mean() > 0.005
    shot = browser.screenshot()
    assert shot.width >= 600 and len(shot.getcolors(1 << 24)) > 50


def test_a_picture_is_drawn_as_the_network_reads_it_though_its_exif_turns_it(browser, at_port, predictor):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (250, 0, 0)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, quality=95)
    browser.open(at_port(predictor))
    browser.drop(file.getvalue(), "image/jpeg")
    drawn = browser.picture()
    assert drawn.width == 2 * drawn.height


def test_what_is_no_picture_is_said_on_the_page(browser, at_port, predictor):
    browser.open(at_port(predictor))
    assert "cannot be read as BMP, GIF, JPEG" in browser.drop(b"no picture")


def test_rows_and_texts_have_fields(browser, at_port, several, pictures):
    image, row, note = several.inputs
    browser.open(at_port(several))
    fields = browser.run("""[...document.querySelectorAll("fieldset input, textarea")].map((field, i) => {
        field.value = ["odd", "7.5", "odd even"][i];
        field.dispatchEvent(new Event("input"));
        return field.tagName;
    })""")
    assert fields == ["INPUT", "INPUT", "TEXTAREA"]
    browser.run('document.querySelector("button").click()')
    browser.wait('document.querySelectorAll("#answers tr").length === 2')
    answer = several({image: None, row: {"note": "odd", "ink": 7.5}, note: "odd even"})
    assert f"{answer.digit.label} {100 * answer.digit.probability:.1f} %" in browser.run("document.body.innerText")
