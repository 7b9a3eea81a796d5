"""The README and the pages in docs/: their code runs, their links lead somewhere, their names exist."""

import configparser
import re
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_notebooks_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"nbs/\d\d_\w+\.ipynb", text) + re.findall(r"examples/\w+\.py", text)
    named += [f"{module.replace('.', '/')}.py" for module in re.findall(r"-m (benchmarks\.\w+)", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_extras_of_the_readme_are_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| extra |") : readme.index("## Ten lines")]
    told = {name for row in re.findall(r"^\| (`.+?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert told == set(setup["options.extras_require"]) - {"test", "dev"}


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


def test_the_ten_lines_run(torch_home, tmp_path, monkeypatch):
    "Run the code of the README on few scenes, for an epoch, with weights where a download would have left them."
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet18().state_dict(), folder / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.S).group(1)
    short = code.replace('digit_scenes("scenes")', 'digit_scenes("scenes", n=80)')
    short = short.replace("fine_tune(8,", "fine_tune(1,")
    assert short.count("n=80") == 1 and short.count("fine_tune(1,") == 1
    *lines, last = short.strip().splitlines()
    names = {}
    exec("\n".join(lines), names)
    answer = eval(last, names)
    assert answer.names == ("digit", "ink", "box")
