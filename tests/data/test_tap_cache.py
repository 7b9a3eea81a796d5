"""A folder of stored taps: its limit, its size, what is broken off."""

import os

import numpy as np
import pytest
import torch

from fastai_heads.data.stored import Column
from fastai_heads.data.stored_dl import Stored
from fastai_heads.data.tap_cache import GIB, TapCache, in_bytes, write_said
from fastai_heads.errors import HeadsError

KIB = 1024


@pytest.fixture
def cache(tmp_path):
    return TapCache(tmp_path / "taps", limit=3.5 * 64 * KIB / GIB)


def put(cache, key, n_bytes=64 * KIB, age=0):
    "Store a kilobyte or so under a key."
    with cache.lock(key), cache.part(key, n_bytes) as path:
        values = torch.randn(n_bytes // 4 - 300, 1)
        column = Column.empty(len(values), values, path / "0.npy")
        column[np.arange(len(values))] = values
        write_said(path, Stored({("features", "avg"): column}, ()))
    os.utime(cache.folder / key, (1000 - age, 1000 - age))
    return values


def test_what_is_stored_is_found(cache):
    values = put(cache, "a")
    found = cache.find("a")
    assert torch.equal(found.taps["features", "avg"][np.arange(3)], values[:3]) and found.views == 1
    assert cache.find("b") is None


def test_what_was_used_longest_ago_makes_room(cache):
    for age, key in enumerate("abc"):
        put(cache, key, age=age)
    cache.find("c")  # used now
    put(cache, "d")
    assert {p.name for p in cache.entries()} == {"a", "c", "d"} and cache.size <= cache.limit * GIB
    assert "3 sets of taps, 18" in str(cache) and "of 224 KiB" in str(cache)
    cache.clear()
    assert not cache.entries() and cache.size == 0


def test_what_has_no_room_is_refused(cache, monkeypatch):
    put(cache, "a")
    with pytest.raises(HeadsError, match=r"`cache`: the taps take 320 KiB, and the folder .* may take 224 KiB"):
        put(cache, "b", 5 * 64 * KIB)
    assert [p.name for p in cache.entries()] == ["a"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1})())
    with pytest.raises(HeadsError, match=r"the disk of .* has 1 bytes left"):
        put(cache, "b")


def test_what_is_broken_off_leaves_nothing(cache):
    with pytest.raises(KeyboardInterrupt), cache.lock("a"), cache.part("a", 10) as path:
        (path / "0.npy").write_bytes(b"x")
        raise KeyboardInterrupt
    assert cache.find("a") is None and not cache.entries()
    (cache.folder / "a.part").mkdir()  # of a process that was killed
    put(cache, "a")
    assert cache.find("a") is not None and [p.name for p in cache.entries()] == ["a"]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"memory": -1}, "`memory` of TapCache is a number of GiB, found -1"),
        ({"limit": "20"}, "`limit` of TapCache is a number of GiB, found '20'"),
        ({"folder": 3}, "`folder` of TapCache is a folder"),
    ],
)
def test_bad_settings_are_refused(kwargs, said):
    with pytest.raises(HeadsError, match=said):
        TapCache(**kwargs)


def test_sizes_are_said():
    assert [in_bytes(n) for n in (3, 2048, 5 * KIB**2, 20 * GIB)] == ["3 bytes", "2 KiB", "5 MiB", "20 GiB"]
