"""The Hub, for which a folder stands: what goes there, and what comes back."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from fastai_heads.errors import HeadsError
from fastai_heads.export.bundle import save_bundle
from fastai_heads.export.files import MANIFEST, WEIGHTS
from fastai_heads.export.hub import from_hub, push_to_hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    "Let a folder stand for the Hub."
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, root / repo_id / name)
            return f"hub/{repo_id}"

    def snapshot_download(repo_id, revision, allow_patterns):
        if not (root / repo_id).is_dir():
            raise FileNotFoundError(f"no {repo_id}")
        found = tmp_path / "cache" / "snapshots"
        (tmp_path / "cache" / "blobs").mkdir(parents=True)
        found.mkdir()
        for name in allow_patterns:  # the Hub's cache holds links to files elsewhere in it
            blob = tmp_path / "cache" / "blobs" / name
            shutil.copy(root / repo_id / name, blob)
            (found / name).symlink_to(blob)
        return str(found)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_there_and_back(hub, make_images, tmp_path, scenes, rows):
    learn = make_images(("digit",))
    folder = save_bundle(learn, tmp_path / "b")
    (folder / "secret.txt").write_text("mine")
    assert push_to_hub(folder, "me/digits") == "hub/me/digits"
    assert sorted(p.name for p in (hub / "me" / "digits").iterdir()) == ["README.md", MANIFEST, WEIGHTS]
    predictor = from_hub("me/digits")
    assert predictor(scenes / rows.image[0]).digit.label == learn.predict(rows.iloc[0])[0].digit


def test_what_goes_wrong_is_said(hub, tmp_path):
    with pytest.raises(HeadsError, match="could not be read: no me/nothing"):
        from_hub("me/nothing")
    with pytest.raises(HeadsError, match="`repo_id` is a repository's name"):
        from_hub("me/")
    with pytest.raises(HeadsError, match="there is no folder"):
        push_to_hub(tmp_path / "none", "me/digits")
