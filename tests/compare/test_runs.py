"""What is kept of a comparison in a folder."""

import pytest

from fastai_heads.compare.runs import Runs
from fastai_heads.errors import HeadsError

SETUP = {"epochs": 2, "heads": {"digit": "a head"}}


def test_runs_are_there_again(tmp_path):
    runs = Runs(tmp_path / "new" / "folder", SETUP, {"sum": "None"})
    assert not runs.has(strategy="sum", seed=0)
    runs.add({"strategy": "sum", "head": "nan", "seed": 0, "seconds": 0.1 + 0.2})  # a head may be called that
    again = Runs(tmp_path / "new" / "folder", SETUP, {"sum": "None", "UW": "UW"})
    assert again.has(strategy="sum", head="nan", seed=0) and not again.has(strategy="sum", head="nan", seed=1)
    again.add({"strategy": "UW", "head": "all", "seed": 0, "seconds": 1.0, "digit_accuracy": 0.5})
    frame = Runs(tmp_path / "new" / "folder", SETUP, {"UW": "UW"}).frame()
    assert frame["seconds"].tolist() == [0.1 + 0.2, 1.0] and frame["digit_accuracy"].isna().tolist() == [True, False]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["runs.csv", "setup.json"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = Runs(None, SETUP, {})
    runs.add({"seed": 0})
    assert runs.has(seed=0) and not list(tmp_path.iterdir())


def test_another_comparison_is_refused(tmp_path):
    Runs(tmp_path, SETUP, {"sum": "None", "UW": "UW(2)"})
    with pytest.raises(HeadsError, match="epochs: 2 there, 3 now"):
        Runs(tmp_path, SETUP | {"epochs": 3}, {})
    with pytest.raises(HeadsError, match=r"UW: UW\(2\) there, UW\(3\) now"):
        Runs(tmp_path, SETUP, {"UW": "UW(3)"})
    Runs(tmp_path, SETUP, {"UW": "UW(2)"})
