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

from allaprima.cascade.record import CHUNK
from allaprima.core.errors import RunFolderError, SettingError
from allaprima.data.images import read_chunks, write_bytes_atomically


def _first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            return f"{key} was {a.get(key)!r}, is now {b.get(key)!r}"
    return "nothing"


class RunFolder:
    """`images/`, `drafts/`, `sources/` (of edits), `results.jsonl`, `sheet.png` and `run.json` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images, self.drafts, self.sources = path / "images", path / "drafts", path / "sources"

    def claim(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Make the folder this run's, or raise `RunFolderError` if it is another's. Nothing is ever overwritten."""
        marker = self.path / "run.json"
        wanted: dict[str, Any] = json.loads(json.dumps(identity))
        if marker.exists():
            try:
                found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise RunFolderError(f"{marker} cannot be read: {e}. Choose another --out.") from e
            if found != wanted:
                raise RunFolderError(
                    f"{self.path} belongs to another run ({_first_difference(found, wanted)}). Choose another --out."
                )
            if not resume:
                raise RunFolderError(
                    f"{self.path} already holds this run. Add --resume to finish it, or choose another --out."
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(f"{self.path} exists and is not a run of allaprima's. Choose another --out.")
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            self.drafts.mkdir(exist_ok=True)
        except OSError as e:
            raise RunFolderError(f"{self.path} cannot be made: {e.strerror}. Choose another --out.") from e
        if not marker.exists():
            self.write("run.json", json.dumps(wanted, indent=1) + "\n")

    def source(self, digest: str) -> Path:
        """Where a picture that is edited, or a mask, is kept."""
        return self.sources / f"{digest}.png"

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder atomically."""
        write_bytes_atomically(self.path / name, text.encode("utf-8"))

    def write_lines(self, name: str, lines: Iterable[str]) -> None:
        """The same for a file of lines, which are written as they come."""
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
        """The account of a picture that is finished, read from the picture; None if it isn't there."""
        path = self.images / f"{index:05d}.png"
        if not path.exists():
            return None
        try:
            return json.loads(read_chunks(path)[CHUNK])
        except (SettingError, KeyError, ValueError):
            return None
