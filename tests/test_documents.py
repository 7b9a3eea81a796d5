"""The README and the pages in docs/: their code runs, their links lead somewhere, their names exist."""

import configparser
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from fastai_heads import __all__ as PUBLIC

ROOT = Path(__file__).parents[1]
SITE = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
REFERENCE = [page for page in SITE if page.parent.name == "reference"]
CODE = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    links = [link.replace("tutorials/", "../nbs/") for link in links]  # where the site has them
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
    assert told == set(setup["options.extras_require"]) - {"test", "docs", "dev"}


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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "Let a folder stand for the Hub, which the examples call."
    import huggingface_hub

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            pass

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub", ignore=lambda _, names: {*names} - {*allow_patterns})
            return repo_id

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "hub"))


@pytest.mark.parametrize("page", [p for p in SITE if CODE.search(p.read_text(encoding="utf-8"))], ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:Exception ignored in.*config.ini")  # fastai leaves its configuration open
def test_the_code_of_a_page_runs(page, hub, tmp_path, monkeypatch):
    "Run what a page has between ```python and ```, from top to bottom. `py` is what is shown alone."
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(encoding="utf-8"), {"__name__": "page"}
    with redirect_stdout(io.StringIO()):
        for block in CODE.finditer(text):
            above = text.count("\n", 0, block.start(1))  # so that an error names the line of the page
            exec(compile("\n" * above + block[1], str(page), "exec"), names)


def test_every_public_name_has_its_section_with_an_example():
    sections = {}
    for page in REFERENCE:
        for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            name, said, code = section.split("\n")[0], re.findall(r"{public} (\w+)", section), CODE.findall(section)
            assert said == [name] and name not in sections, name
            sections[name] = "".join(code)
    assert sorted(sections) == sorted(PUBLIC)
    # what is not called by its name is used as an object that stands on the page already
    objects = {"HeadTuple": "preds", "MultiHeadLearner": "learn.", "TapReport": "report.", "Predictor": "predictor("}
    assert [name for name, code in sections.items() if objects.get(name, name) not in code] == []


class Links(HTMLParser):
    "The places to which a page leads, and those in it that can be led to."

    def __init__(self, page):
        super().__init__()
        self.page, self.to, self.ids = page, [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        where = attrs.get("href" if tag in ("a", "link") else "src")
        if where and "://" not in where and not where.startswith(("data:", "mailto:")):
            self.to.append(where)


def broken_links(site):
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    for page, links in pages.items():
        for where in links.to:
            path, _, anchor = unquote(where).partition("#")
            goal = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not goal.exists() or (anchor and goal in pages and anchor not in pages[goal].ids):
                yield f"{page.relative_to(site.resolve())}: {where}"


@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "read"]
    command += ["-b", "html", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert list(broken_links(tmp_path / "site")) == []
    learner = (tmp_path / "site" / "reference" / "learner.html").read_text(encoding="utf-8")
    assert "step fastai's" in learner  # a docment of `fused`


@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_reference_calls_methods_as_users_do(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from api_page import write_public

    learner = "\n".join(write_public("MultiHeadLearner", True))
    assert "{py:method} fine_tune(epochs, " in learner  # a function whose first argument is before the dot
    assert "{py:method} fit_one_cycle(n_epoch, lr_max=None, " in learner  # fastai's own, without a type
    assert "| `n_epoch` |  |" not in learner
    assert "{py:method} from_learner(learn, " in "\n".join(write_public("HeadsInterpretation", True))
