"""What is written whole or not at all."""

import os

import pytest

from fastai_heads.disk import HOUR, beside, in_place, whole_file, whole_folder
from fastai_heads.errors import FileError, HeadsError


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "a file"
    file.write_text("old")
    (tmp_path / "a file.part").write_text("what a killed process has left")
    with whole_file(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(KeyError), whole_file(file) as part:
        part.write_text("half")
        raise KeyError
    with whole_file(file):
        pass  # nothing was written
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_folder_takes_the_place_of_another(tmp_path):
    place = tmp_path / "b"
    for text in ("old", "new"):
        with whole_folder(place) as folder:
            (folder / "f").write_text(text)
    with pytest.raises(KeyError), whole_folder(place) as folder:
        raise KeyError
    assert (place / "f").read_text() == "new" and list(tmp_path.iterdir()) == [place]


def test_a_folder_that_was_moved_aside_is_found_and_comes_back(tmp_path):
    place, old = tmp_path / "b", tmp_path / ".b-old"
    old.mkdir()
    (old / "f").write_text("old")
    assert in_place(place) == old
    with whole_folder(place) as folder:
        (folder / "f").write_text("new")
    assert in_place(place) == place and (place / "f").read_text() == "new" and list(tmp_path.iterdir()) == [place]


def test_what_killed_processes_have_left_is_removed_once_it_is_old(tmp_path):
    names = [".b-abcdefgh", ".b-abc_efg1", ".b-other-abcdefgh", ".b-short", ".b-stilldone"]
    for name in names:
        (tmp_path / name).mkdir()
    for name in names[:-1]:
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".b-12345678").mkdir()  # of a process that is writing
    with beside(tmp_path / "b"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {*names[2:], ".b-12345678"} and HOUR > 60


def test_an_error_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (whole_file, whole_folder, beside):
        with pytest.raises(FileError, match="cannot be written") as raised, call(tmp_path / "file" / "x") as part:
            part.write_text("")
        assert str(tmp_path / "file" / "x") in str(raised.value) and isinstance(raised.value, HeadsError)
