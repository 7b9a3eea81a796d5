"""How Sphinx builds the site: `make docs`."""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "fastai_heads"
author = "the authors of fastai_heads"
extensions = ["myst_nb", "api_page"]
exclude_patterns = ["tutorials/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "fastai_heads"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
templates_path = []
toc_object_entries = False
add_module_names = False
smartquotes = False  # 'auto' in a docment is a value
pygments_style = "tango"
pygments_dark_style = "github-dark"
nb_execution_mode = "off"  # the notebooks keep their outputs, and the tests run them
nb_merge_streams = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# pages that are written for the repository lead to these places of the site
PLACES = {"../nbs/": "tutorials/", "../README.md": "index.md", "../CHANGELOG.md": "changelog.md"}


def copy_notebooks() -> None:
    "Put the notebooks beside the pages, where Sphinx reads them."
    folder = HERE / "tutorials"
    folder.mkdir(exist_ok=True)
    notebooks = {path.name: path for path in HERE.parent.glob("nbs/*.ipynb")}
    for old in folder.glob("*.ipynb"):
        if old.name not in notebooks:
            old.unlink()
    for name, path in notebooks.items():
        text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (folder / name).write_text(text, encoding="utf-8")
        shutil.copystat(path, folder / name)  # so that only those that have changed are read again


def lead_to_the_site(app: Sphinx, docname: str, source: list[str]) -> None:
    "Let links that leave the folder of the pages lead to the same thing in the site."
    if docname.startswith("tutorials/"):
        return
    for place, ours in PLACES.items():
        source[0] = re.sub(rf"\]\({re.escape(place)}", f"]({ours}", source[0])


def setup(app: Sphinx) -> None:
    "Copy what is read from elsewhere, and mend the links to it."
    copy_notebooks()
    app.connect("source-read", lead_to_the_site)
