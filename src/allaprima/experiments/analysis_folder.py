"""The folder of an analysis: whose it is, and its painted batches, each kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from allaprima.data.images import write_bytes_atomically
from allaprima.experiments.run_folder import claimed


class AnalysisFolder:
    """`run.json`, `painted/` and `measured/`. A stopped run goes on; another run's folder is refused."""

    def __init__(self, path: Path) -> None:
        self.path, self.painted, self.measured = path, path / "painted", path / "measured"

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's. Raises `RunFolderError` naming the first difference from the run it belongs to."""
        claimed(self.path, "analysis", "an analysis", identity, (self.painted, self.measured))

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
