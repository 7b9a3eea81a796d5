"""What a service costs: 8 clients for a minute, against the bare predictor; K heads in one request against one each.

    python -m benchmarks.serve [seconds]

The server runs in a process of its own, the clients in another. The bare predictor reads and answers the same files
in batches of the size that the server's had, before and after. Goals: no error; at least 0.9 of its throughput."""

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fastai.vision.all  # noqa: F401
import numpy as np

from fastai_heads import digits_dls, load_bundle, multihead_learner
from fastai_heads.export.predictor import Predictor

TARGETS = ("digit", "tags", "ink", "box")
CLIENTS = 8


def make_bundle(folder: Path, arch: str, size: int) -> list[bytes]:
    "Save a learner, and give the files of its images."
    warnings.simplefilter("ignore")
    dls = digits_dls(TARGETS, bs=32, path=folder / "scenes", n=200, size=size)
    multihead_learner(dls, arch, pretrained=False).save_bundle(folder / "bundle")
    return [path.read_bytes() for path in sorted((folder / "scenes" / "images").iterdir())]


@contextmanager
def serving(bundle: Path) -> Iterator[int]:
    "Serve a bundle, and give its port."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fastai_heads", "serve", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/v2/health/ready")
                break
            except ConnectionError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    "Send a request. Raises `RuntimeError` for an answer that is none."
    connection.request(method, path, body, {"Content-Type": "image/png"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {said[:200]!r}")
    return said


def load(port: int, files: list[bytes], seconds: float, paths: tuple[str, ...] = ("/predict",)) -> list[float]:
    "Let clients ask at the same time, each a request after the other, and give the time of every one."
    end, times, errors = time.perf_counter() + seconds, [], []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        i = number
        while (start := time.perf_counter()) < end:
            try:
                for path in paths:
                    ask(connection, "POST", path, files[i % len(files)])
            except Exception as error:
                errors.append(error)
                connection.close()
            times.append(time.perf_counter() - start)
            i += CLIENTS

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"  {len(times)} items, {len(errors)} errors {errors[:1] or ''}")
    return times


def batch_size(port: int) -> float:
    "Read the mean size of the server's batches."
    said = ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/metrics").decode()
    total, count = (float(re.search(rf"batch_items_{what} (\S+)", said)[1]) for what in ("sum", "count"))
    return total / count


def bare(predictor: Predictor, files: list[bytes], bs: int, seconds: float) -> float:
    "Measure how many items a second the predictor reads and answers by itself."
    start, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        predictor([files[(n + i) % len(files)] for i in range(bs)], bs=bs)
        n += bs
    return n / spent


def main(seconds: float = 60, arch: str = "resnet18", size: int = 64) -> None:
    "Print the figures."
    folder = Path(tempfile.mkdtemp())
    files = make_bundle(folder, arch, size)
    predictor = load_bundle(folder / "bundle")
    rate: Callable[[int], float] = lambda bs: bare(predictor, files, bs, max(3, seconds / 6))  # noqa: E731
    rate(CLIENTS)
    with serving(folder / "bundle") as port:
        load(port, files, 2)
        print(f"{arch}, {len(TARGETS)} heads, {size} px, {os.cpu_count()} cores, {CLIENTS} clients, {seconds:g} s")
        before = rate(CLIENTS)
        times = load(port, files, seconds)
        after = rate(CLIENTS)
        mean = batch_size(port)
        p50, p99 = np.percentile(times, (50, 99)) * 1000
        print(f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(times) / seconds:.0f} items a second in batches of {mean:.1f}")
        ratio = len(times) / seconds / np.mean([before, after])
        print(f"throughput / bare predictor at batches of {CLIENTS}: {ratio:.2f}")
        together = len(load(port, files, seconds / 4))
        apart = len(load(port, files, seconds / 4, tuple(f"/predict?heads={head}" for head in TARGETS)))
        print(f"{len(TARGETS)} heads in one request / in one request each, items answered: {together / apart:.1f}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
