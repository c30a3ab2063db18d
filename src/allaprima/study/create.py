"""A study's folder: its pictures, stripped of everything that names a method, and its database.

study/pictures/<random>.png    pixels alone: no text chunks, names that tell nothing
study/study.json               where the database is
study/study.db                 unless it is Postgres
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from allaprima.core.errors import RunFolderError, SettingError
from allaprima.data.images import write_bytes_atomically
from allaprima.data.pictures import PictureSet
from allaprima.study.design import ImagePair, Rules, alike, matched, slots_of, with_bands
from allaprima.study.known_pairs import Counts, known_pairs
from allaprima.study.questions import question_set
from allaprima.study.store.store import StudyStore

MARKER, PICTURES, DATABASE = "study.json", "pictures", "study.db"


@dataclass(frozen=True)
class StudyPlan:
    """What `create` makes."""

    name: str = "study"
    questions: str = "preference"
    pairs: int | None = None
    seed: int = 0
    rules: Rules = field(default_factory=Rules)
    counts: Counts = field(default_factory=Counts)


def create(folder: Path, sets: Mapping[str, PictureSet], plan: StudyPlan, url: str | None = None,
           distances: Mapping[tuple[str, int], float] | None = None) -> dict[str, int]:  # fmt: skip
    """Make a study of these methods' pictures; says how many pairs of each kind it has.

    `distances`: of each prompt and seed; without them the pixels' root mean square difference stands in. Raises
    `SettingError` for sets that can't be compared, `RunFolderError` for a folder that is in use.
    """
    asked = question_set(plan.questions)
    pairs = (matched if asked.compares else alike)(sets, plan.pairs, plan.seed)
    if (folder / MARKER).exists():
        raise RunFolderError(f"{folder} already holds a study. Choose another --out; votes are never overwritten.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is not empty. Choose another --out.")
    try:
        (folder / PICTURES).mkdir(parents=True)
    except OSError as e:
        raise RunFolderError(f"{folder} cannot be made: {e.strerror}. Choose another --out.") from e
    keeper = _Keeper(folder / PICTURES)
    pairs = with_bands(pairs, [_distance(p, distances) for p in pairs])
    everything = [*pairs, *known_pairs(pairs, asked, plan.counts, keeper.made, plan.seed)]
    files = [(keeper.copied(p.pictures[0]), keeper.copied(p.pictures[1])) for p in everything]
    about = {
        "name": plan.name, "questions": plan.questions, "seed": plan.seed, "methods": list(sets),
        "rules": plan.rules.to_dict(), "distance": "given" if distances else "root mean square difference of pixels",
    }  # fmt: skip
    store = StudyStore(url or f"sqlite:///{folder / DATABASE}")
    try:
        store.fill(about, list(zip(everything, files, strict=True)), slots_of(pairs, plan.rules.votes, plan.seed))
    finally:
        store.close()
    write_bytes_atomically(folder / MARKER, json.dumps({"database": _without_password(url)}).encode())
    return {kind: sum(p.kind == kind for p in everything) for kind in ("study", "training", "qualification", "gold")}


def open_study(folder: Path, url: str | None = None) -> StudyStore:
    """The store of a study's folder. Raises `SettingError` where there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise SettingError(f"{folder} holds no study: allaprima study create --out {folder} makes one.") from e
    kept = marker.get("database")
    if kept is None and url is None and not (folder / DATABASE).is_file():
        raise SettingError(f"{folder / DATABASE} is gone: put it back, with the files of the same name beside it.")
    return StudyStore(url or kept or f"sqlite:///{folder / DATABASE}")


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Pictures of a study that aren't there."""
    return [n for n in names if not (folder / PICTURES / n).is_file()]


def _without_password(url: str | None) -> str | None:
    """The database's address, as it may lie in a folder: a password comes from PGPASSWORD or --database."""
    if url is None:
        return None
    scheme, found, rest = url.partition("://")
    who, at, where = rest.rpartition("@")
    return f"{scheme}{found}{who.partition(':')[0]}{at}{where}"


class _Keeper:
    """Copies of pictures under random names; one file for each picture, however often it is shown."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known, self._draw = folder, dict[Path, str](), random.SystemRandom()

    def copied(self, path: Path) -> str:
        if path.parent == self._folder:
            return path.name
        if path not in self._known:
            try:
                with Image.open(path) as image:
                    self._known[path] = self.made(image.convert("RGB")).name
            except (OSError, ValueError, SyntaxError) as e:
                raise SettingError(f"{path} cannot be read as a picture: {e}. Paint it again, or leave it out.") from e
        return self._known[path]

    def made(self, image: Image.Image) -> Path:
        out = io.BytesIO()
        plain = Image.new("RGB", image.size)  # a new one: nothing comes along but pixels
        plain.paste(image)
        plain.save(out, "PNG")
        path = self._folder / f"{self._draw.getrandbits(80):020x}.png"
        write_bytes_atomically(path, out.getvalue())
        return path


def _distance(pair: ImagePair, values: Mapping[tuple[str, int], float] | None) -> float | None:
    if values is not None:
        return None if pair.seed is None else values.get((pair.prompt, pair.seed))
    small: list[np.ndarray] = []
    for path in pair.pictures:
        try:
            with Image.open(path) as image:
                small.append(np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float64) / 255)
        except (OSError, ValueError, SyntaxError) as e:
            raise SettingError(f"{path} cannot be read as a picture: {e}. Paint it again, or leave it out.") from e
    return float(np.sqrt(((small[0] - small[1]) ** 2).mean()))
