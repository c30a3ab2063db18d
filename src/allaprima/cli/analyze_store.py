"""The folder of an analysis: whose it is, and its painted batches, each kept as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from allaprima.core.errors import RunFolderError
from allaprima.data.images import write_bytes_atomically

MARKER = "run.json"


class AnalysisFolder:
    """`run.json`, `painted/` and `measured/`. A stopped run goes on; another run's folder is refused."""

    def __init__(self, path: Path) -> None:
        self.path, self.painted, self.measured = path, path / "painted", path / "measured"

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's. Raises `RunFolderError` naming the first difference from the run it belongs to."""
        wanted, marker = json.loads(json.dumps(identity)), self.path / MARKER
        if marker.exists():
            try:
                found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise RunFolderError(f"{marker} cannot be read: {e}. Choose another --out.") from e
            odd = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
            if odd:
                raise RunFolderError(
                    f"{self.path} belongs to another analysis ({odd[0]} was {_brief(found.get(odd[0]))}, is now"
                    f" {_brief(wanted.get(odd[0]))}). Choose another --out."
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(f"{self.path} exists and is not an analysis. Choose another --out.")
        try:
            self.painted.mkdir(parents=True, exist_ok=True)
            self.measured.mkdir(exist_ok=True)
        except OSError as e:
            raise RunFolderError(f"{self.path} cannot be made: {e.strerror}. Choose another --out.") from e
        if not marker.exists():
            write_bytes_atomically(marker, (json.dumps(wanted, indent=1) + "\n").encode())

    def batch(self, number: int, needs: Sequence[str]) -> dict[str, Tensor] | None:
        """A painted batch, or None where it isn't there or lacks what is now asked for."""
        return read(self.painted / f"{number:05d}.safetensors", needs)

    def keep(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a painted batch, whole or not at all."""
        self._write(self.painted / f"{number:05d}.safetensors", tensors)

    def column(self, key: str) -> Tensor | None:
        """A measure's values, kept under a key that names everything they follow from."""
        found = read(self.measured / f"{key}.safetensors", ("values",))
        return None if found is None else found["values"]

    def keep_column(self, key: str, values: Tensor) -> None:
        """Keep a measure's values `(N,)`."""
        self._write(self.measured / f"{key}.safetensors", {"values": values})

    @staticmethod
    def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        write_bytes_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}))


def read(path: Path, needs: Sequence[str]) -> dict[str, Tensor] | None:
    """A file's tensors; None for one that isn't there, is broken or lacks some of `needs`: it is made again."""
    if not path.exists():
        return None
    try:
        found = load_file(path)
    except (SafetensorError, OSError):
        return None
    return found if set(needs) <= set(found) else None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
