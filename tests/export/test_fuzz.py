"""500 broken bundles: each is refused by a `HeadsError`, or loads and answers. None crashes, hangs or takes memory."""

import copy
import hashlib
import json
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import load_bundle
from fastai_heads.export.files import MANIFEST, WEIGHTS

WHOLE = Path(__file__).parent / "bundle_1"
MANIFEST_BYTES, WEIGHTS_BYTES = (WHOLE / MANIFEST).read_bytes(), (WHOLE / WEIGHTS).read_bytes()
N = 500
SAYS_NOTHING = ("versions", "license", "notes")  # what no answer hangs on


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**40, 2**62, -(2**62), 2**70, 1e308, -1e-308, 0.5, "", "0", "digit",
    "image",
    "../../etc/passwd", "/etc/passwd", "C:\\windows", "a\x00b", "os:system", "torch.nn:exec",
    "timm:vit_giant_patch14_clip_224", "x" * 100_000, [], {},
    [[]], {"a": 1}, [None] * 50, list(range(1000)), {"called": "os:system"}, nested(30), nested(60),
]  # fmt: skip
"Values that a field does not expect."


def broken_bytes(rng: random.Random, data: bytes) -> bytes:
    "Flip bits, cut, repeat or insert."
    data, at = bytearray(data), rng.randrange(len(data))
    how = rng.randrange(4)
    if how == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del data[at:]
    elif how == 2:
        data[at:at] = data[at : at + rng.randint(1, 200)]
    else:
        data[at:at] = rng.randbytes(rng.randint(1, 50))
    return bytes(data)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    "List every place in dicts and lists: what holds it, and its key."
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def twisted(rng: random.Random, said: Any) -> Any:
    "Exchange, remove, double, rename or wrap a value or a few."
    said = copy.deepcopy(said)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        found = list(places(said))
        if not found:
            return said
        holder, key = rng.choice(found)
        how = rng.randrange(6)
        if how < 3:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 3:
            del holder[key]
        elif how == 4 and isinstance(holder, dict):
            holder[str(rng.choice(ODD))[:50]] = holder.pop(key)
        else:
            holder[key] = [holder[key], holder[key]] if isinstance(holder, dict) else holder[rng.randrange(len(holder))]
    return said


def other_header(rng: random.Random, data: bytes) -> bytes:
    "Twist the list of tensors in a file of safetensors."
    n = int.from_bytes(data[:8], "little")
    header = json.dumps(twisted(rng, json.loads(data[8 : 8 + n]))).encode()
    n = rng.choice((len(header), len(header), 0, 2**40, 2**63))
    return n.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


def mutate(rng: random.Random) -> tuple[bytes, bytes, bool]:  # manifest, weights, whether the answer is the old one
    "Break one bundle."
    said, how = json.loads(MANIFEST_BYTES), rng.randrange(10)
    if how == 0:
        return broken_bytes(rng, MANIFEST_BYTES), WEIGHTS_BYTES, False
    if how == 1:
        return MANIFEST_BYTES, broken_bytes(rng, WEIGHTS_BYTES), False
    if how == 2:  # weights that the manifest vouches for
        weights = (broken_bytes if rng.random() < 0.5 else other_header)(rng, WEIGHTS_BYTES)
        said["weights"]["sha256"] = hashlib.sha256(weights).hexdigest()
        return json.dumps(said).encode(), weights, False
    if how == 3:
        part = rng.choice(SAYS_NOTHING)
        said[part] = copy.deepcopy(rng.choice(ODD))
        return json.dumps(said).encode(), WEIGHTS_BYTES, True
    if how < 8:  # where answers hang on it
        part = rng.choice(("inputs", "network", "answers"))
        said[part] = twisted(rng, said[part])
    else:
        said = twisted(rng, said)
    text = json.dumps(said)
    if rng.random() < 0.05:
        text = text.replace('"kind"', '"kind": 1, "kind"', 1)  # a key twice
    return text.encode(), WEIGHTS_BYTES, False


@contextmanager
def no_hang(seconds: int) -> Iterator[None]:
    "Raise in what hangs."

    def stop(*_: Any) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
def test_500_broken_bundles_are_refused_or_answer(tmp_path):
    picture = WHOLE / "digit.png"
    expected = load_bundle(WHOLE)(picture)
    rng, seen, peak = random.Random(0), Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shutil.copytree(WHOLE, tmp_path / "bundle")
    for i in range(N):
        manifest, weights, equal = mutate(rng)
        (tmp_path / "bundle" / MANIFEST).write_bytes(manifest)
        (tmp_path / "bundle" / WEIGHTS).write_bytes(weights)
        untouched = (manifest, weights) == (MANIFEST_BYTES, WEIGHTS_BYTES)
        try:
            with no_hang(60):
                predictor = load_bundle(tmp_path / "bundle")
                answer = predictor(picture)
        except HeadsError:
            seen["refused"] += 1
            assert not untouched
            continue
        except Exception as error:
            raise AssertionError(f"bundle {i}: {type(error).__name__}: {error}") from error
        same = repr(answer) == repr(expected)
        assert same or not (equal or untouched), i
        seen["the same answer" if same else "an answer"] += 1
    assert sum(seen.values()) == N and seen["refused"] > N / 2 and seen["the same answer"] > N / 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 300 * 1024, f"{grown} KiB"
