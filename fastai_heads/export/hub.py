"""Bundles on the Hugging Face Hub."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastai_heads.errors import HeadsError, first_line
from fastai_heads.export.bundle import load_bundle
from fastai_heads.export.files import CARD, MANIFEST, WEIGHTS, read_bundle

__all__ = ["from_hub", "push_to_hub"]


def push_to_hub(
    folder: str | Path,  # what `save_bundle` wrote
    repo_id: str,  # 'owner/name'
    private: bool = False,  # seen by the owner alone, where the repository is made now
    message: str = "Upload a bundle of fastai_heads",  # of the commit
) -> str:  # where it can be seen
    "Put a bundle on the Hub: weights, manifest and model card. It is read first, so that no damaged one leaves."
    read_bundle(folder)
    api = _hub().HfApi()
    _check_repo(repo_id)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        names = [MANIFEST, WEIGHTS, CARD]
        found = api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), allow_patterns=names, commit_message=message
        )
    except Exception as error:  # of the network, or of the Hub
        raise HeadsError(f"`repo_id`: {repo_id} could not be written: {first_line(error)}.") from error
    return str(found)


def from_hub(
    repo_id: str,  # 'owner/name'
    revision: str | None = None,  # a branch, a tag or a commit
    **load_kwargs: Any,  # of `load_bundle`: `device`, `learner`, `dls`, `arch`
) -> Any:  # as of `load_bundle`
    "Load a bundle from the Hub: its weights and its manifest, and no other file."
    _check_repo(repo_id)
    try:
        folder = _hub().snapshot_download(repo_id, revision=revision, allow_patterns=[MANIFEST, WEIGHTS])
    except Exception as error:  # of the network, or of the Hub
        raise HeadsError(f"`repo_id`: {repo_id} could not be read: {first_line(error)}.") from error
    # the Hub's cache holds links out of its folders, which no bundle may have
    with tempfile.TemporaryDirectory() as plain:
        for name in (MANIFEST, WEIGHTS):
            if (Path(folder) / name).is_file():
                shutil.copy(Path(folder) / name, Path(plain) / name)
        return load_bundle(plain, **load_kwargs)


def _check_repo(repo_id: Any) -> None:
    if not isinstance(repo_id, str) or not all(repo_id.split("/")):
        raise HeadsError(f"`repo_id` is a repository's name, 'owner/name', found {repo_id!r}.")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HeadsError("the Hub is reached by huggingface_hub: pip install fastai_heads[hub]") from error
    return huggingface_hub
