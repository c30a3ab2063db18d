"""The run folder: who it belongs to, what is in it already, and its files at the end.

Every picture is written with all that is known of it inside; the tables are made from the pictures when the run ends.
So a kill at any instant loses at most the pictures in flight, and a resumed folder is byte-identical.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from allaprima.cascade.metadata import CHUNK
from allaprima.core.errors import RunFolderError, SettingError
from allaprima.data.images import read_chunks, write_bytes_atomically

MARKER = "run.json"


def _first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    key = next((k for k in sorted({*a, *b}) if a.get(k) != b.get(k)), None)
    if key is None:
        return "nothing"
    return f"{key} was {_brief(a.get(key))}, is now {_brief(b.get(key))}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def claimed(path: Path, what: str, whose: str, identity: Mapping[str, Any], folders: Iterable[Path]) -> bool:
    """Make a folder the job's that `identity` tells, with `folders` in it; whether it was before.

    Raises `RunFolderError` for another job's, naming the first difference, and for what isn't `whose`. Nothing is ever
    overwritten.
    """
    marker, wanted = path / MARKER, json.loads(json.dumps(identity))
    there = marker.exists()
    if there:
        try:
            found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise RunFolderError(f"{marker} cannot be read: {e}. Choose another --out.") from e
        if found != wanted:
            raise RunFolderError(
                f"{path} belongs to another {what} ({_first_difference(found, wanted)}). Choose another --out."
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunFolderError(f"{path} exists and is not {whose}. Choose another --out.")
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunFolderError(f"{path} cannot be made: {e.strerror}. Choose another --out.") from e
    if not there:
        write_bytes_atomically(marker, (json.dumps(wanted, indent=1) + "\n").encode())
    return there


class RunFolder:
    """`images/`, `drafts/`, `sources/` (of edits), `results.jsonl`, `sheet.png` and `run.json` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images, self.drafts, self.sources = path / "images", path / "drafts", path / "sources"

    def claim(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Make the folder this run's, or raise `RunFolderError` if it is another's. Nothing is ever overwritten."""
        if claimed(self.path, "run", "a run of allaprima's", identity, (self.images, self.drafts)) and not resume:
            raise RunFolderError(f"{self.path} already holds this run. Add --resume to finish it, or choose another --out.")

    def source(self, digest: str) -> Path:
        """Where a picture that is edited, or a mask, is kept."""
        return self.sources / f"{digest}.png"

    def write_lines(self, name: str, lines: Iterable[str]) -> None:
        """Write a file of lines, which are written as they come."""
        part = self.path / f"{name}.part"
        try:
            with part.open("w", encoding="utf-8") as f:
                f.writelines(f"{line}\n" for line in lines)
                f.flush()
                os.fsync(f.fileno())
            part.replace(self.path / name)
        except OSError as e:
            raise RunFolderError(f"{self.path / name} cannot be written: {e.strerror}. Free some space.") from e

    def done(self, index: int) -> dict[str, Any] | None:
        """Return the account of a picture that is finished, read from the picture; None if it isn't there."""
        path = self.images / f"{index:05d}.png"
        if not path.exists():
            return None
        try:
            return json.loads(read_chunks(path)[CHUNK])
        except (SettingError, KeyError, ValueError):
            return None
