"""The command line."""

import pytest

from fastai_heads.__main__ import main


@pytest.mark.slow
def test_demo_trains_prints_and_draws(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1", "--scenes", "120"]) == 0
    said = capsys.readouterr().out
    assert "Removed: " in said and "digit_accuracy" in said and "box_iou" in said
    for picture in ("results.png", "losses.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
        assert f"wrote {tmp_path / picture}" in said


def test_archs_lists_what_matches(capsys):
    assert main(["archs", "resnet10*"]) == 0
    said = capsys.readouterr().out.split()
    assert "resnet10t" in said and all(name.startswith("resnet10") for name in said)


def test_cut_prints_the_taps(capsys):
    assert main(["cut", "resnet10t"]) == 0
    said = capsys.readouterr().out
    assert "layer3" in said and "pre_logits" in said


def test_unknown_arch_is_one_line_and_exit_code_2(capsys):
    assert main(["cut", "resnet10x"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "resnet10t" in said.err
