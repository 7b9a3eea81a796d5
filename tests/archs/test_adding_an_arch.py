"""docs/adding_an_arch.md: its code, as it is written there, runs and proves what it says."""

import importlib
import re
import textwrap
from pathlib import Path

import pytest

from fastai_heads.archs import registry as rows

PAGE = Path(__file__).parents[2] / "docs" / "adding_an_arch.md"
GIVEN = """
import torch
from torch import nn

from benchmarks.sweep.training import random_dls
from fastai_heads import cut_body

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(5)))

    def forward(self, x):
        return {"out": self.blocks(self.stem(x))}

net, dls = Own(), random_dls(3, 64)
"""
"What the page takes for granted: a network of one's own, and data."


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(rows, "_ARCHS", dict(rows._ARCHS))
    monkeypatch.setattr(rows, "_FAMILIES", dict(rows._FAMILIES))


def test_the_page_runs_as_it_is_written(own_registry, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE.read_text(), re.MULTILINE)
    assert len(blocks) == 5
    (tmp_path / "page_of_archs.py").write_text(GIVEN + "\n".join(textwrap.dedent(b) for b in blocks))
    monkeypatch.syspath_prepend(tmp_path)
    page = importlib.import_module("page_of_archs")
    assert list(page.body.taps) == ["stem", "blocks.3"]
    assert page.learn.model[0].arch == "two_stage"
    assert set(page.report.results.values()) == {"ok"}
    assert "last_relu" in capsys.readouterr().out
