"""The finished runs of a comparison, kept in a folder so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fastai_heads.disk import whole_file
from fastai_heads.errors import HeadsError, writing

__all__ = ["Runs"]


class Runs:
    """Rows of finished runs: in `runs.csv` of a folder, beside `setup.json`, which says what was run; or in memory.

    A row is written whole or not at all, so that a run that was interrupted is not there."""

    def __init__(
        self,
        folder: str | Path | None,  # made if it is not there; None: nothing is kept
        setup: Mapping[str, Any],  # what all runs have in common; plain values
        strategies: Mapping[str, str],  # label → what it is, in words
    ):
        self.folder, self._rows = None if folder is None else Path(folder), []
        if self.folder is None:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / "setup.json"
        old = json.loads(written.read_text()) if written.is_file() else {"setup": setup, "strategies": {}}
        self._check("setup", old["setup"], json.loads(json.dumps(setup)))
        known = {label: what for label, what in old["strategies"].items() if label in strategies}
        self._check("strategies", known, {label: strategies[label] for label in known})
        _write(written, json.dumps({"setup": setup, "strategies": old["strategies"] | dict(strategies)}, indent=1))
        if (self.folder / "runs.csv").is_file():
            kept = pd.read_csv(self.folder / "runs.csv", dtype=_NAMES, keep_default_na=False, na_values=[""])
            self._rows = kept.to_dict("records")

    def _check(self, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        other = [f"{key}: {old.get(key)} there, {value} now" for key, value in new.items() if old.get(key) != value]
        if other:
            raise HeadsError(
                f"`folder` {self.folder} holds runs of another comparison ({what} {'; '.join(other)}): "
                "give another folder, or remove this one."
            )

    def has(
        self,
        **key: Any,  # column → value
    ) -> bool:
        "Tell whether such a run is finished."
        return any(all(row[column] == value for column, value in key.items()) for row in self._rows)

    def add(
        self,
        row: Mapping[str, Any],  # column → value of one finished run
    ) -> None:
        "Keep a run."
        self._rows.append(dict(row))
        if self.folder is not None:
            _write(self.folder / "runs.csv", self.frame().to_csv(index=False))

    def frame(self) -> pd.DataFrame:
        "Give all runs, a row each."
        return pd.DataFrame(self._rows)


_NAMES = {"strategy": str, "head": str}  # or pandas takes a head `nan` for a gap


def _write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text)
