"""Heads that are said as data: dicts in the place of specs, and files of them."""

import json

import pytest

from fastai_heads.errors import HeadsError

HEADS = {"digit": {"kind": "classification", "tap": "layer1", "lin_ftrs": []}, "ink": {"kind": "regression"}}
TOML = "[digit]\nkind = 'classification'\ntap = 'layer1'\nlin_ftrs = []\n[ink]\nkind = 'regression'\n"


def test_dicts_and_files(make_learner, make_dls, tmp_path):
    (tmp_path / "h.toml").write_text(TOML)
    (tmp_path / "h.json").write_text(json.dumps(HEADS))
    dls = make_dls("digit", "ink")
    said = [make_learner(dls=dls, heads=h) for h in (HEADS, tmp_path / "h.toml", str(tmp_path / "h.json"))]
    for learn in said:
        assert learn.heads.digit.spec.tap == "layer1" and learn.heads.digit.spec.to_dict()["lin_ftrs"] == []
    assert said[0].heads.digit.spec.n_out == 10
    (tmp_path / "h.toml").write_text("ink = false\n")
    assert make_learner(dls=dls, heads=tmp_path / "h.toml").heads.names == ("digit",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"digit": {"kind": "clasification"}}', r"heads\['digit'\]`: there is no kind of head"),
        ("b.json", "{", "cannot be read as JSON"),
        ("c.json", "[]", "holds a table of name to head"),
        ("d.toml", "x", "cannot be read as TOML"),
        ("e.yaml", "x", "a file of heads in TOML or JSON"),
        (None, "", "there is no file"),
    ],
)
def test_a_file_that_is_wrong(make_learner, tmp_path, name, text, message):
    path = tmp_path / (name or "none.toml")
    if name:
        path.write_text(text)
    with pytest.raises(HeadsError, match=message):
        make_learner("digit", heads=path)
