"""Compiled graphs on disk, found by everything they follow from; what is missing or broken is made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from allaprima._version import __version__
from allaprima.core.errors import SettingError
from allaprima.models.backends.backend import Backend, Run
from allaprima.models.backends.flat import Call, Flat, Plan, check_faithful, flattened

PLAN = "plan.json"


def default_cache() -> Path:
    """`ALLAPRIMA_CACHE`, else the user's cache folder."""
    given = os.environ.get("ALLAPRIMA_CACHE")
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allaprima"
    return base / "compiled"


@dataclass(frozen=True)
class Graph:
    """A network compiled for one kind of call."""

    run: Run
    outputs: Plan


@dataclass(frozen=True)
class GraphStore:
    """A folder of graphs; `folder` may be deleted at any time."""

    backend: Backend
    folder: Path

    def key(self, name: str, fingerprint: str, call: Call) -> str:
        """Backend and versions, the network's weights, the method and the shapes."""
        libraries = [__version__, torch.__version__, *(version(name) for name in ("diffusers", "transformers"))]
        backend = [self.backend.signature, self.backend.dtype, torch.get_num_threads()]
        parts = [backend, libraries, name, fingerprint, call.shape]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def graph(self, name: str, fingerprint: str, call: Call, network: Callable[[], tuple[Any, Callable[..., Any]]]) -> Graph:
        """Return the graph of `name`; `network()` gives module and method, and is called only where there is none yet.

        Raises `SettingError` where the folder can't be written, `ModelError` where a graph isn't the network.
        """
        entry = self.folder / self.key(name, fingerprint, call)
        if entry.is_dir():
            # Anything may be wrong with a file, and all of it is mended alike.
            with contextlib.suppress(Exception):
                return Graph(self.backend.load(entry), json.loads((entry / PLAN).read_text()))
            shutil.rmtree(entry, ignore_errors=True)
        return self._made(entry, name, call, *network())

    def _made(self, entry: Path, name: str, call: Call, module: Any, function: Callable[..., Any]) -> Graph:
        flat = Flat(module, function, call).eval()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=self.folder))
        except OSError as e:
            raise SettingError(f"compiled models can't be kept in {self.folder}: {e}. Name another folder (cache=).") from e
        try:
            structure = _outputs(function, call)
            self.backend.convert(flat, call.tensors, beside)
            with contextlib.suppress(OSError):
                # Another process may have been first: its graph is the same.
                beside.rename(entry)
            run = self.backend.load(entry)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        try:
            check_faithful(flat, run, call, f"{name} ({self.backend.signature})", self.backend.tolerance)
        except Exception:
            shutil.rmtree(entry, ignore_errors=True)
            raise
        # Last, and renamed: a graph without its plan was never checked, and is made again.
        written = entry / f"{PLAN}.{os.getpid()}"
        written.write_text(json.dumps(structure))
        written.replace(entry / PLAN)
        return Graph(run, structure)


@torch.no_grad()
def _outputs(function: Callable[..., Any], call: Call) -> Plan:
    return flattened(call.made(function, [x.clone() for x in call.tensors]), [])
