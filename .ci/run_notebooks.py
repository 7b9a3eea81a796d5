"""Runs notebooks in full and keeps their outputs: `run_notebooks.py nbs/*.ipynb`. A notebook that fails stays."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run_notebook(
    path: Path,  # of a notebook, written in place
) -> None:
    "Run a notebook in its own folder. The budget that tests set does not hold, and its metadata have no times."
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    NotebookClient(
        notebook,
        timeout=1800,  # seconds for one cell
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.pop("FASTAI_HEADS_BUDGET", None)
    for name in sys.argv[1:]:
        print(f"{name} …", flush=True)
        run_notebook(Path(name))
